"""Proving that a capture store or a dataset folder is whole and says the same thing everywhere."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from builder.contents.chunk_checks import check_chunks
from builder.contents.store_features import features_contents
from builder.contents.store_rows import store_contents
from builder.folder.shard_facts import check_shards
from builder.samples.check import check_samples
from llava_amber_activations.console.progress import Progress
from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.files.checksums import sha256_of
from llava_amber_activations.files.read_errors import read_errors
from llava_amber_activations.formats.arrow_vectors import (
    Vectors,
    arrow_to_targets,
    arrow_to_vectors,
    numbers_in,
)
from llava_amber_activations.formats.columns import FLOATS, SAMPLE, TARGETS, X, row_columns
from llava_amber_activations.formats.dataset_folder import (
    ALL_LAYERS,
    ALL_LAYERS_SPLIT,
    CLT_FEATURES,
    CONFIG_DIRS,
    DEFAULT_CONFIG,
    MANIFEST_FILE,
    NORMS_FILE,
    REMEDY,
    SAMPLES,
    STATISTICS_FILE,
)
from llava_amber_activations.formats.layers import LayerWindow, split_name
from llava_amber_activations.reading.layer_rows import split_tables, tables_of_layer
from llava_amber_activations.reading.wanted_layer import WantedLayer
from llava_amber_activations.sources.footers import difference, rows_of_groups
from llava_amber_activations.sources.sites import read_norms
from llava_amber_activations.sources.source import Source, open_source
from llava_amber_activations.sources.statistics import read_statistics
from llava_amber_activations.store.layout import is_store, read_recipe
from llava_amber_activations.store.norms_file import read_store_norms
from llava_amber_activations.store.samples import read_samples
from llava_amber_activations.store.sums import SUMS_FILE, sums_text
from llava_amber_activations.vectors.finite import finite_rows_of_array


@dataclass(frozen=True)
class Verified:
    """What was found right: files whose checksums hold, rows, and what was compared."""

    kind: str
    n_files: int
    n_rows: int
    checks: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        return {
            "kind": self.kind,
            "files": self.n_files,
            "rows": self.n_rows,
            "checks": list(self.checks),
        }


def verify(path: Path) -> Verified:
    """Check a capture store or a dataset folder.

    Raises:
        ActivationsError: naming the first thing that is wrong.
    """
    if not path.is_dir():
        raise ActivationsError(f"{path} is not a folder: give a capture store or a dataset folder")
    return _verify_store(path) if is_store(path) else _verify_folder(path)


def _verify_store(store: Path) -> Verified:
    recipe = read_recipe(store)
    records = read_samples(store)
    features = features_contents(store, recipe, store_contents(store, recipe, records))
    found = check_chunks(store, recipe, () if features is None else features.chunk_samples)
    read_store_norms(store, recipe)
    n_files = found.n_files
    checks = ["checksums", "samples", "finite values"]
    if (store / SUMS_FILE).exists():
        n_files += len(sums_text(store).splitlines())
    else:
        checks.append("capture.json and samples.jsonl have no checksums in format 1.0")
    if features is not None and not found.are_sealed:
        checks.append("features have no checksums in format 1.0")
    return Verified("capture store", n_files, found.n_rows, tuple(checks))


def _verify_folder(folder: Path) -> Verified:
    source = open_source(folder)
    _check_files(source, folder)
    check_shards(source)
    _check_rows(source)
    if STATISTICS_FILE in source.manifest.files:
        read_statistics(source)
    if NORMS_FILE in source.manifest.files:
        read_norms(source)
    checks = ["checksums", "row counts", "finite values"]
    manifest = source.manifest
    if SAMPLES in manifest.all_configs:
        check_samples(source)
        checks.append(f"{SAMPLES} are those of the rows")
    n_rows = sum(
        manifest.rows_of(shards)
        for config in manifest.configs
        for shards in manifest.splits(config).values()
    )
    with Progress("verify", total=n_rows, unit="row") as progress:
        for layer in manifest.layers(DEFAULT_CONFIG):
            _check_split(source, layer, progress)
        for config in (ALL_LAYERS, CLT_FEATURES):
            for split, shards in manifest.splits(config).items():
                for table in split_tables(source, shards):
                    _check_finite(table, f"{config}/{split}")
                    progress.update(len(table))
    if {DEFAULT_CONFIG, ALL_LAYERS} <= set(manifest.configs):
        checks.append(f"{DEFAULT_CONFIG} equals {ALL_LAYERS}")
    return Verified("dataset folder", len(manifest.files), manifest.n_rows, tuple(checks))


def _check_files(source: Source, folder: Path) -> None:
    manifest = source.manifest
    n_bytes = manifest.bytes_of(list(manifest.files))
    with (
        Progress("checksums", total=n_bytes, unit="B") as progress,
        ThreadPoolExecutor(os.cpu_count() or 1) as threads,
    ):
        # Computing a checksum leaves the interpreter to other threads.
        checked = threads.map(partial(_check_file, source, folder), manifest.files)
        for entry, _ in zip(manifest.files.values(), checked, strict=True):
            progress.update(entry.bytes)
    for directory in CONFIG_DIRS.values():
        for file in sorted((folder / directory).glob("*.parquet")):
            if file.relative_to(folder).as_posix() not in manifest.files:
                raise ActivationsError(
                    f"{file} is not in {MANIFEST_FILE}, and load_dataset would read it: remove it"
                )


def _check_file(source: Source, folder: Path, path: str) -> None:
    file, entry = folder / path, source.manifest.files[path]
    if not file.is_file():
        raise ActivationsError(f"{file} is missing: {REMEDY}")
    with read_errors(file):
        is_right = file.stat().st_size == entry.bytes and sha256_of(file) == entry.sha256
    if not is_right:
        raise ActivationsError(
            f"{file} is not as it was written (its SHA-256 is not the one in {MANIFEST_FILE}): "
            f"{REMEDY}"
        )
    if entry.rows is not None:
        with source.open_parquet(path) as parquet:
            rows, counts = parquet.metadata.num_rows, rows_of_groups(parquet.metadata)
        if rows != entry.rows:
            raise ActivationsError(f"{file} has {rows} rows, and {MANIFEST_FILE} {entry.rows}")
        if entry.row_groups is not None and counts != entry.row_groups:
            raise ActivationsError(
                f"{file} has other row groups than {MANIFEST_FILE} says "
                f"({difference(counts, entry.row_groups)}): {REMEDY}"
            )


def _check_rows(source: Source) -> None:
    manifest = source.manifest
    for config in manifest.configs:
        for split, paths in manifest.splits(config).items():
            rows = manifest.rows_of(paths)
            alone = manifest.configs == [CLT_FEATURES]
            if (alone or config != CLT_FEATURES) and rows != manifest.n_rows:
                raise ActivationsError(
                    f"split {split} of {config} in {source.name} has {rows} rows, "
                    f"and the others {manifest.n_rows}"
                )
    if ALL_LAYERS not in manifest.configs:
        # Where it is, each split is compared with it row by row.
        _check_samples(source, DEFAULT_CONFIG)
    _check_samples(source, CLT_FEATURES)
    features = {manifest.rows_of(paths) for paths in manifest.splits(CLT_FEATURES).values()}
    if len(features) > 1:
        raise ActivationsError(
            f"the splits of {CLT_FEATURES} in {source.name} differ in rows: {sorted(features)}"
        )


def _check_samples(source: Source, config: str) -> None:
    """Check that the splits of a config are of the same samples, in one order."""
    first: tuple[str, np.ndarray] | None = None
    for split, paths in source.manifest.splits(config).items():
        tables = split_tables(source, paths, [SAMPLE])
        samples = np.concatenate([table[SAMPLE].to_numpy() for table in tables])
        if first is None:
            first = split, samples
        elif not np.array_equal(first[1], samples):
            raise ActivationsError(
                f"the splits {first[0]} and {split} of {config} in {source.name} differ in their "
                f"samples: {REMEDY}"
            )


def _check_split(source: Source, layer: int, progress: Progress) -> None:
    """Check that a layer's own split is finite, and equal to `all_layers` where that is there."""
    manifest = source.manifest
    split = split_name(layer)
    own = split_tables(source, manifest.shards(DEFAULT_CONFIG, split))
    shards = manifest.shards(ALL_LAYERS, ALL_LAYERS_SPLIT)
    if not shards:
        n_targets = len(LayerWindow(manifest.recipe.n_layers, manifest.n_targets).targets(layer))
        for table in own:
            _check_finite(table, split)
            progress.update(len(table))
            found = arrow_to_targets(table[TARGETS]).shape[1]
            if found != n_targets:
                raise ActivationsError(
                    f"split {split} in {source.name} has {found} targets, and by {MANIFEST_FILE} "
                    f"{n_targets}: {REMEDY}"
                )
        return
    wanted = WantedLayer(layer, manifest.n_targets)
    row = 0
    for mine, theirs in _aligned(own, tables_of_layer(source, shards, wanted)):
        _check_finite(mine, split)
        where = f"rows {row} to {row + len(mine) - 1} of split {split} in {source.name}"
        if not _same_rows(mine, theirs):
            raise ActivationsError(
                f"{where} are of other samples or positions than in {ALL_LAYERS}"
            )
        for column, vectors_of in ((X, arrow_to_vectors), (TARGETS, arrow_to_targets)):
            if not _same_bits(vectors_of(mine[column]), vectors_of(theirs[column])):
                raise ActivationsError(
                    f"{column} of {where} differs from the vectors in {ALL_LAYERS}"
                )
        row += len(mine)
        progress.update(len(mine))


def _aligned(
    first: Iterator[pa.Table], second: Iterator[pa.Table]
) -> Iterator[tuple[pa.Table, pa.Table]]:
    """Cut two streams of the same number of rows into pairs of equally many."""
    a = b = None
    while True:
        a = a if a is not None and len(a) else next(first, None)
        b = b if b is not None and len(b) else next(second, None)
        if a is None or b is None:
            return
        n = min(len(a), len(b))
        yield a.slice(0, n), b.slice(0, n)
        a, b = a.slice(n), b.slice(n)


def _same_rows(mine: pa.Table, theirs: pa.Table) -> bool:
    """Whether two tables say the same of their rows; what is not known of both is the same."""
    names = row_columns(mine.schema.names)
    if names != row_columns(theirs.schema.names):
        return False
    exact = [name for name in names if name not in FLOATS]
    return mine.select(exact).equals(theirs.select(exact)) and all(
        _same_bits(numbers_in(mine[name]), numbers_in(theirs[name]))
        for name in names
        if name in FLOATS
    )


def _same_bits(first: Vectors, second: Vectors) -> bool:
    bits = np.uint16 if first.itemsize == 2 else np.uint32
    same_kind = first.dtype == second.dtype and first.shape == second.shape
    return same_kind and bool((first.view(bits) == second.view(bits)).all())


def _check_finite(table: pa.Table, where: str) -> None:
    for field in table.schema:
        if pa.types.is_fixed_size_list(field.type):
            vectors = arrow_to_vectors(table[field.name])
        elif field.name == TARGETS:
            vectors = arrow_to_targets(table[field.name])
        else:
            continue
        finite = finite_rows_of_array(vectors)
        if not finite.all():
            sample = table[SAMPLE][int(np.argmin(finite))].as_py()
            raise ActivationsError(f"{field.name} of sample {sample} in {where} is not finite")
