"""A store's transcoder features as something a dataset folder is made from."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
import pyarrow as pa

from builder.contents.checked_once import checked_in
from builder.contents.spans import spans
from builder.contents.store_rows import StoreContents
from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.formats.arrow_vectors import Vectors
from llava_amber_activations.formats.columns import SAMPLE
from llava_amber_activations.formats.dtypes import torch_dtype
from llava_amber_activations.formats.recipe import Recipe
from llava_amber_activations.store.chunk import Chunk
from llava_amber_activations.store.features import FEATURES_DIR, FeaturesFile, features_path
from llava_amber_activations.store.layout import chunk_path, recipe_chunks


@dataclass(frozen=True)
class FeaturesContents:
    """The features of a finished store: one row for each sample that has rows.

    Attributes:
        layers: that had a transcoder.
        chunk_samples: samples of each chunk.
        width: number of features F.
        build: as the store's rows have it.
    """

    store: Path
    dtype: str
    n_layers: int
    width: int
    layers: tuple[int, ...]
    chunk_samples: tuple[int, ...]
    build: str

    @property
    def extra_columns(self) -> tuple[str, ...]:
        """None: of a sample's features, nothing more is said."""
        return ()

    @property
    def n_samples(self) -> int:
        """Rows of each split."""
        return sum(self.chunk_samples)

    def reader(self, layer: int | None) -> FeaturesRows:
        """Open one layer's features."""
        assert layer is not None
        return FeaturesRows(self, layer)


class FeaturesRows:
    """Reads rows of one layer's features across the chunks, each checked when it is first read.

    Raises:
        ActivationsError: from every reading, a file is not as it was written.
    """

    def __init__(self, contents: FeaturesContents, layer: int) -> None:
        self._contents = contents
        self._layer = layer
        self._starts = [0, *accumulate(contents.chunk_samples)]
        self._checked = checked_in(contents.build)

    def vectors(self, name: str, rows: range) -> Vectors:
        """Read the features of some rows: [rows, F]."""
        dtype = torch_dtype(self._contents.dtype)
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
        file = FeaturesFile(features_path(self._contents.store, chunk))
        key = ("features", chunk, self._layer)
        self._checked.check(key, lambda: file.check_layer(self._layer))
        return file


def features_contents(store: Path, recipe: Recipe, rows: StoreContents) -> FeaturesContents | None:
    """Open the features of every chunk of a finished store; None where none were captured.

    Raises:
        ActivationsError: a file is missing or damaged, is not the one that its chunk was written
            with, or does not fit the others.
    """
    if recipe.transcoders_sha256 is None:
        return None
    chunk_samples, shapes = [], set()
    for number in range(len(recipe_chunks(recipe))):
        chunk = Chunk(chunk_path(store, number))
        samples = [record.sample for record in chunk.records if record.n_rows]
        chunk_samples.append(len(samples))
        # Without a row there are no features; in format 1.0 no chunk names its file.
        if chunk.features_sha256 is None and not samples:
            continue
        if chunk.features_sha256 is None and chunk.is_sealed:
            raise ActivationsError(
                f"{chunk.path} names no features, and its recipe has transcoders: delete it, and "
                "run the same capture command again to make it anew"
            )
        file = FeaturesFile(features_path(store, number))
        file.check(samples, recipe.store_dtype, chunk.features_sha256)
        shapes.add((tuple(file.layers), file.width))
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
        build=rows.build,
    )
