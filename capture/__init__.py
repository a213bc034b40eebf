"""Capture: run a LLaVA-type model over a query file and keep its activations in a capture store.

    from capture import LiveActivations

    live = LiveActivations("llava-hf/llava-1.5-7b-hf", "queries.json", image_dir="AMBER/image")
    live.batches(layer=5, n_targets=4, batch_size=4096)  # without a store

Runs where `datasets` is not installed: torch, the extra `capture`, safetensors, numpy, typer and
tqdm are enough, and pyarrow for batches straight from the model. What is named here is imported
when it is first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from capture.live.activations import LiveActivations, live_activations
    from capture.model.load import CaptureModel, load_model, prepare_model

_HOMES = {
    "CaptureModel": "model.load",
    "LiveActivations": "live.activations",
    "live_activations": "live.activations",
    "load_model": "model.load",
    "prepare_model": "model.load",
}

__all__ = ["CaptureModel", "LiveActivations", "live_activations", "load_model", "prepare_model"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
