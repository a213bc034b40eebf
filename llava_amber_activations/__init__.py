"""Activations of LLaVA-1.5-7B on AMBER: what the data is, and reading it.

    from llava_amber_activations import Activations

    acts = Activations("KOKOSde/llava-amber-activations")
    for batch in acts.batches(layer=5, n_targets=4, batch_size=4096, shuffle=True, seed=0):
        batch["x"], batch["targets"]  # [B, H], [B, 4, H]

What needs `datasets` is imported when it is first asked for, so that a capture runs where
`datasets` is not installed.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from llava_amber_activations.errors import ActivationsError

if TYPE_CHECKING:
    from llava_amber_activations.activations import Activations
    from llava_amber_activations.batches.activation_batches import (
        ActivationBatches,
        activation_batches,
    )
    from llava_amber_activations.batches.hook_batches import LayerPairs, hook_batches
    from llava_amber_activations.dataset_builder import (
        LlavaAmberActivations,
        LlavaAmberActivationsConfig,
    )
    from llava_amber_activations.formats.columns import KINDS
    from llava_amber_activations.formats.layers import LayerWindow
    from llava_amber_activations.formats.recipe import Recipe
    from llava_amber_activations.loading import load_activations
    from llava_amber_activations.sources.statistics import (
        RobustStatistics,
        Statistics,
        load_statistics,
    )
    from llava_amber_activations.streams.layer_stream import LayerStream, open_layer
    from llava_amber_activations.vectors.normaliser import AffineMap, Normaliser

__version__ = "0.1.0"

_HOMES = {
    "KINDS": "formats.columns",
    "Activations": "activations",
    "AffineMap": "vectors.normaliser",
    "ActivationBatches": "batches.activation_batches",
    "LayerPairs": "batches.hook_batches",
    "LayerStream": "streams.layer_stream",
    "LayerWindow": "formats.layers",
    "LlavaAmberActivations": "dataset_builder",
    "LlavaAmberActivationsConfig": "dataset_builder",
    "Normaliser": "vectors.normaliser",
    "Recipe": "formats.recipe",
    "RobustStatistics": "sources.statistics",
    "Statistics": "sources.statistics",
    "activation_batches": "batches.activation_batches",
    "hook_batches": "batches.hook_batches",
    "load_activations": "loading",
    "load_statistics": "sources.statistics",
    "open_layer": "streams.layer_stream",
}

__all__ = [
    "KINDS",
    "ActivationBatches",
    "Activations",
    "ActivationsError",
    "AffineMap",
    "LayerPairs",
    "LayerStream",
    "LayerWindow",
    "LlavaAmberActivations",
    "LlavaAmberActivationsConfig",
    "Normaliser",
    "Recipe",
    "RobustStatistics",
    "Statistics",
    "activation_batches",
    "hook_batches",
    "load_activations",
    "load_statistics",
    "open_layer",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
