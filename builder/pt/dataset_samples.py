"""A dataset's rows, gathered sample by sample."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, zip_longest

import numpy as np
import pyarrow as pa
import torch

from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.formats.arrow_vectors import Vectors, arrow_to_vectors
from llava_amber_activations.formats.columns import FEATURES, SAMPLE, X
from llava_amber_activations.formats.dataset_folder import (
    ALL_LAYERS,
    ALL_LAYERS_SPLIT,
    CLT_FEATURES,
)
from llava_amber_activations.formats.layers import split_name, x_name
from llava_amber_activations.reading.layer_rows import split_tables, x_tables
from llava_amber_activations.sources.source import Source
from llava_amber_activations.vectors.norms import Norms, apply_norm


@dataclass(frozen=True)
class Sample:
    """One sample's rows.

    Attributes:
        number: its `sample`.
        vectors: what was asked for, each [T, H].
    """

    number: int
    vectors: list[Vectors]

    def __len__(self) -> int:
        return len(self.vectors[0])


def x_samples(
    source: Source, layers: Sequence[int], norms: Norms | None = None
) -> Iterator[Sample]:
    """Yield each sample with the `x` of each of `layers`.

    Args:
        norms: by which `x` is computed from the source's; None where it is theirs.

    Raises:
        ActivationsError: their dtype cannot hold a value of it.
    """
    shards = source.manifest.shards(ALL_LAYERS, ALL_LAYERS_SPLIT)
    if shards:
        names = [x_name(layer) for layer in layers]
        samples = _gathered(_blocks(split_tables(source, shards, [SAMPLE, *names]), names))
        return samples if norms is None else _normed(samples, layers, norms)
    samples = _side_by_side(
        [_gathered(_blocks(x_tables(source, layer), [X])) for layer in layers], source
    )
    return samples if norms is None else _normed(samples, layers, norms)


def _normed(samples: Iterator[Sample], layers: Sequence[int], norms: Norms) -> Iterator[Sample]:
    for sample in samples:
        vectors = zip(layers, sample.vectors, strict=True)
        # Copies: what Arrow holds is not to be written to.
        found = [
            apply_norm(torch.from_numpy(np.array(x)), norms.layer(layer)) for layer, x in vectors
        ]
        yield Sample(sample.number, [each.numpy() for each in found])


def feature_samples(source: Source, layers: Sequence[int]) -> Iterator[Sample]:
    """Yield each sample with the `features` of each of `layers`."""
    tables = [
        split_tables(source, source.manifest.shards(CLT_FEATURES, split_name(layer)))
        for layer in layers
    ]
    return _side_by_side([_gathered(_blocks(each, [FEATURES])) for each in tables], source)


def _blocks(
    tables: Iterator[pa.Table], names: Sequence[str]
) -> Iterator[tuple[np.ndarray, list[Vectors]]]:
    for table in tables:
        yield table[SAMPLE].to_numpy(), [arrow_to_vectors(table[name]) for name in names]


def _gathered(blocks: Iterator[tuple[np.ndarray, list[Vectors]]]) -> Iterator[Sample]:
    """Cut blocks of rows where `sample` changes, and join a sample that goes over several."""
    number: int | None = None
    pieces: list[list[Vectors]] = []
    for samples, vectors in blocks:
        edges = [0, *(np.flatnonzero(np.diff(samples)) + 1), len(samples)]
        for start, stop in pairwise(edges):
            if start == stop:
                continue
            if pieces and samples[start] != number:
                yield _joined(number, pieces)
                pieces = []
            number = int(samples[start])
            pieces.append([vector[start:stop] for vector in vectors])
    if pieces:
        yield _joined(number, pieces)


def _joined(number: int | None, pieces: list[list[Vectors]]) -> Sample:
    assert number is not None
    if len(pieces) == 1:
        return Sample(number, pieces[0])
    return Sample(number, [np.concatenate(parts) for parts in zip(*pieces, strict=True)])


def _side_by_side(layers: Sequence[Iterator[Sample]], source: Source) -> Iterator[Sample]:
    """Walk the layers' splits in step and join each sample's vectors."""
    for samples in zip_longest(*layers):
        if None in samples or len({sample.number for sample in samples}) > 1:
            raise ActivationsError(
                f"the splits of {source.name} differ in their samples: "
                "llava-amber verify says where"
            )
        yield Sample(samples[0].number, [sample.vectors[0] for sample in samples])
