"""Every byte and every value of a store's chunks and features, checked by all cores."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from llava_amber_activations.console.progress import Progress
from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.files.read_errors import read_errors
from llava_amber_activations.formats.columns import SAMPLE
from llava_amber_activations.formats.recipe import Recipe
from llava_amber_activations.store.chunk import Chunk
from llava_amber_activations.store.features import FeaturesFile, features_name, features_path
from llava_amber_activations.store.layout import chunk_path, recipe_chunks, vector_names
from llava_amber_activations.store.tensor_file import Look
from llava_amber_activations.vectors.finite import finite_rows

# So that no core waits for the last tensors of a file.
_FILES_AT_ONCE = 2


@dataclass(frozen=True)
class ChunkChecks:
    """What was checked: files, rows, and whether all of them have a checksum of each tensor."""

    n_files: int
    n_rows: int
    are_sealed: bool


@dataclass(frozen=True)
class _Checks:
    """The checks of a file's tensors, which other threads do.

    Attributes:
        n_bytes: of the file.
        vectors: tensors whose values must be finite; what a message calls them, by their names.
        done: of each check, the bytes that it read, and the tensors that are not finite.
    """

    path: Path
    n_bytes: int
    vectors: Mapping[str, str]
    done: Sequence[Future[tuple[int, set[str]]]]

    def finish(self, progress: Progress) -> None:
        """Wait for all of them.

        Raises:
            ActivationsError: a tensor is not as it was written, or else not finite: the first one.
        """
        not_finite: set[str] = set()
        left = self.n_bytes
        for each in self.done:
            n_bytes, found = each.result()
            not_finite |= found
            progress.update(n_bytes)
            left -= n_bytes
        progress.update(left)
        for name, called in self.vectors.items():
            if name in not_finite:
                raise ActivationsError(f"{called} of {self.path} has values that are not finite")


def check_chunks(store: Path, recipe: Recipe, feature_samples: Sequence[int]) -> ChunkChecks:
    """Read every tensor of a finished store once, a piece at a time, and check it.

    A core checks one tensor at a time, and holds a MiB of it.

    Args:
        feature_samples: samples of each chunk that have features; none where none were captured.

    Raises:
        ActivationsError: a tensor is not as it was written, or has a value that is not finite; the
            first one, by the order of the chunks.
    """
    chunks = [chunk_path(store, number) for number in range(len(recipe_chunks(recipe)))]
    features = {
        number: features_path(store, number) for number, n in enumerate(feature_samples) if n
    }
    n_rows, are_sealed = 0, True
    under_way: deque[_Checks] = deque()
    total = sum(map(_size_of, [*chunks, *features.values()]))
    with (
        Progress("verify", total=total, unit="B") as progress,
        ThreadPoolExecutor(os.cpu_count() or 1) as pool,
    ):
        try:
            for number, path in enumerate(chunks):
                chunk = Chunk(path)
                n_rows += chunk.n_rows
                are_sealed &= chunk.is_sealed
                under_way.append(_begin_chunk(pool, chunk, recipe))
                if number in features:
                    under_way.append(_begin_features(pool, features[number]))
                while len(under_way) >= _FILES_AT_ONCE:
                    under_way.popleft().finish(progress)
            for each in under_way:
                each.finish(progress)
        finally:
            # What is wrong is said at once.
            pool.shutdown(cancel_futures=True)
    return ChunkChecks(len(chunks) + len(features), n_rows, are_sealed)


def _begin_chunk(pool: ThreadPoolExecutor, chunk: Chunk, recipe: Recipe) -> _Checks:
    # Format 1.0 has one checksum of all of a chunk, which is read for it.
    names = sorted(chunk.names) if chunk.is_sealed else [SAMPLE]
    done = [pool.submit(_check, partial(chunk.check_tensor, name)) for name in names]
    vectors = {name: name for name in vector_names(recipe.kept_layers)}
    return _Checks(chunk.path, _size_of(chunk.path), vectors, done)


def _begin_features(pool: ThreadPoolExecutor, path: Path) -> _Checks:
    file = FeaturesFile(path)
    done = [pool.submit(_check, partial(file.check_layer, layer)) for layer in file.layers]
    vectors = {features_name(layer): f"layer {layer}" for layer in file.layers}
    return _Checks(path, _size_of(path), vectors, done)


def _check(check: Callable[[Look], None]) -> tuple[int, set[str]]:
    n_bytes, not_finite = 0, set()

    def look(name: str, piece: torch.Tensor) -> None:
        nonlocal n_bytes
        n_bytes += piece.nbytes
        if piece.is_floating_point() and not finite_rows(piece[None]).all():
            not_finite.add(name)

    check(look)
    return n_bytes, not_finite


def _size_of(path: Path) -> int:
    with read_errors(path):
        return path.stat().st_size
