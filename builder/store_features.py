"""A store's transcoder features as something a dataset folder is made from."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from builder.shards import Contents
from builder.spans import spans
from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.recipe import Recipe
from llava_amber_activations.schema import SAMPLE, Vectors
from llava_amber_activations.store import (
    FEATURES_DIR,
    FeaturesFile,
    features_path,
    recipe_chunks,
)


@dataclass(frozen=True)
class FeaturesContents:
    """The features of a finished store: one row for each sample that has rows.

    Attributes:
        layers: that had a transcoder.
        chunk_samples: samples of each chunk.
        width: number of features F.
    """

    store: Path
    dtype: str
    n_layers: int
    width: int
    layers: tuple[int, ...]
    chunk_samples: tuple[int, ...]

    @property
    def n_samples(self) -> int:
        """Rows of each split."""
        return sum(self.chunk_samples)

    def reader(self, layer: int | None) -> FeaturesRows:
        """Open one layer's features."""
        assert layer is not None
        return FeaturesRows(self, layer)


class FeaturesRows:
    """Reads rows of one layer's features across the chunks."""

    def __init__(self, contents: FeaturesContents, layer: int) -> None:
        self._contents = contents
        self._layer = layer
        self._starts = [0, *accumulate(contents.chunk_samples)]

    def vectors(self, name: str, rows: range) -> Vectors:
        """Read the features of some rows: [rows, F]."""
        dtype = torch.float16 if self._contents.dtype == "float16" else torch.float32
        parts = [
            self._file(chunk).rows(self._layer, start, stop).to(dtype).numpy()
            for chunk, start, stop in spans(self._starts, rows)
        ]
        return np.concatenate(parts)

    def leading(self, rows: range) -> dict[str, pa.Array]:
        """Read the sample of some rows."""
        parts = [
            self._file(chunk).sample[start:stop].numpy()
            for chunk, start, stop in spans(self._starts, rows)
        ]
        return {SAMPLE: pa.array(np.concatenate(parts))}

    def _file(self, chunk: int) -> FeaturesFile:
        return FeaturesFile(features_path(self._contents.store, chunk))


def features_contents(store: Path, recipe: Recipe, rows: Contents) -> FeaturesContents | None:
    """Open the features of every chunk of a finished store; None where none were captured.

    Raises:
        ActivationsError: a file is missing or damaged, or does not fit the others.
    """
    if recipe.transcoders_sha256 is None:
        return None
    chunk_samples, shapes = [], set()
    for chunk in range(len(recipe_chunks(recipe))):
        path = features_path(store, chunk)
        if not path.exists():
            # Every sample of the chunk was skipped.
            chunk_samples.append(0)
            continue
        file = FeaturesFile(path)
        chunk_samples.append(len(file.sample))
        shapes.add((tuple(file.layers), file.rows(file.layers[0], 0, 0).shape[1]))
    if len(shapes) != 1:
        raise ActivationsError(f"the files in {store / FEATURES_DIR} differ in layers or features")
    layers, width = shapes.pop()
    return FeaturesContents(
        store=store,
        dtype=rows.dtype,
        n_layers=recipe.n_layers,
        width=width,
        layers=layers,
        chunk_samples=tuple(chunk_samples),
    )
