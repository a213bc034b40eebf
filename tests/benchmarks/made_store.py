"""A finished capture store of drawn values, distributed as a residual stream is.

Every dimension has a scale of its own, a few dimensions are huge (the "massive activations" of
Llama-like models), and the stream grows from layer to layer while the MLP outputs stay small.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from llava_amber_activations.formats.recipe import Recipe
from llava_amber_activations.store.chunk import write_chunk
from llava_amber_activations.store.finish import finish_store
from llava_amber_activations.store.layout import (
    chunk_path,
    recipe_chunks,
    vector_names,
    write_recipe,
)
from llava_amber_activations.store.samples import SampleRecord

CHUNK_SAMPLES = 64
_HUGE = 4


@dataclass(frozen=True)
class Shape:
    """How large a store is: one row a sample."""

    rows: int = 1004
    width: int = 4096
    n_layers: int = 32
    n_targets: int = 16

    @property
    def row_bytes(self) -> int:
        """Raw float16 bytes of a row of all layers."""
        return 2 * self.n_layers * self.width * 2

    @property
    def layer_row_bytes(self) -> int:
        """Raw float16 bytes of a row of an early layer: `x` and its targets."""
        return (1 + self.n_targets) * self.width * 2


def make_store(folder: Path, shape: Shape, seed: int = 0) -> Path:
    """Write a finished float16 store into `folder`.

    Returns:
        `folder`.
    """
    recipe = Recipe(
        n_layers=shape.n_layers,
        hidden_size=shape.width,
        n_targets=shape.n_targets,
        store_dtype="float16",
        dtype="float16",
        positions="last",
        x_site="resid_mid",
        n_samples=shape.rows,
        chunk_samples=CHUNK_SAMPLES,
        model="drawn values",
        benchmark="drawn.json",
    )
    write_recipe(folder, recipe)
    generator = np.random.default_rng(seed)
    names = vector_names(range(shape.n_layers))
    scales = [_scales(generator, shape, number) for number in range(len(names))]
    for number, samples in enumerate(recipe_chunks(recipe)):
        n = len(samples)
        tensors = {
            name: torch.from_numpy(_vectors(generator, n, scale))
            for name, scale in zip(names, scales, strict=True)
        }
        tensors["sample"] = torch.arange(samples.start, samples.stop, dtype=torch.int32)
        tensors["position"] = torch.full((n,), 595, dtype=torch.int32)
        tensors["token_id"] = torch.full((n,), 29901, dtype=torch.int32)
        tensors["kind"] = torch.zeros(n, dtype=torch.int32)
        tensors["patch_row"] = torch.full((n,), -1, dtype=torch.int32)
        tensors["patch_col"] = tensors["patch_row"].clone()
        records = [
            SampleRecord(s, s + 1, f"AMBER_{s + 1}.jpg", "Describe this image.", None, 1)
            for s in samples
        ]
        write_chunk(chunk_path(folder, number), tensors, records)
    finish_store(folder, recipe)
    return folder


def _scales(generator: np.random.Generator, shape: Shape, number: int) -> np.ndarray:
    """Standard deviation of each dimension of a vector: float32 [H]."""
    layer = number % shape.n_layers
    is_stream = number < shape.n_layers
    size = 0.05 * 1.15**layer if is_stream else 0.02 * 1.1**layer
    scale = size * generator.lognormal(0.0, 0.5, shape.width)
    if is_stream:
        scale[generator.choice(shape.width, _HUGE, replace=False)] *= 100
    return scale.astype(np.float32)


def _vectors(generator: np.random.Generator, n: int, scale: np.ndarray) -> np.ndarray:
    drawn = generator.standard_normal((n, len(scale)), dtype=np.float32)
    return (drawn * scale).astype(np.float16)
