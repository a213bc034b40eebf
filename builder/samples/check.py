"""Config `samples` held against the rows of the configs that have vectors."""

from __future__ import annotations

from collections import Counter

import pyarrow as pa
import pyarrow.compute as pc

from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.formats.columns import ID, IMAGE, N_ROWS, SAMPLE
from llava_amber_activations.formats.dataset_folder import (
    ALL_LAYERS,
    CLT_FEATURES,
    DEFAULT_CONFIG,
    REMEDY,
    SAMPLES,
    SAMPLES_SPLIT,
)
from llava_amber_activations.formats.schema import layers_of
from llava_amber_activations.reading.layer_rows import split_tables
from llava_amber_activations.reading.sample_table import count_samples, read_samples_table
from llava_amber_activations.sources.source import Source


def check_samples(source: Source) -> None:
    """Check that config `samples` is of the samples that the rows are of, and counts those rows.

    Raises:
        ActivationsError: it is not.
    """
    manifest = source.manifest
    path = manifest.shards(SAMPLES, SAMPLES_SPLIT)[0]
    where = source.url(path)
    with source.open_parquet(path) as parquet:
        n_layers = layers_of(parquet.schema_arrow, where)
    if n_layers != manifest.recipe.n_layers:
        raise ActivationsError(
            f"{where} is of a model of {n_layers} layers, and the recipe of "
            f"{manifest.recipe.n_layers}: {REMEDY}"
        )
    table = read_samples_table(source)
    _check_numbers(table, where, source)
    with_rows = table.filter(pc.greater(table[N_ROWS], 0))
    difference = _difference(with_rows, _counted(source))
    if difference is not None:
        sample, said, counted = difference
        raise ActivationsError(
            f"{where} says of sample {sample} that it has {said}, and its rows have {counted}: "
            f"{REMEDY}"
        )


def _check_numbers(table: pa.Table, where: str, source: Source) -> None:
    """Check that samples ascend, and are as many as were captured."""
    recipe = source.manifest.recipe
    samples = table[SAMPLE]
    if samples.null_count or table[N_ROWS].null_count:
        raise ActivationsError(f"{where} has samples without a number or a count: {REMEDY}")
    numbers = samples.to_pylist()
    # Imported files may leave out numbers.
    in_order = numbers == (
        list(range(len(numbers))) if recipe.origin == "capture" else sorted(set(numbers))
    )
    if not in_order or len(numbers) != recipe.n_samples:
        raise ActivationsError(
            f"{where} has not a row for each of the {recipe.n_samples} samples, in their order: "
            f"{REMEDY}"
        )


def _counted(source: Source) -> pa.Table:
    """Return the samples that have rows, as the configs of vectors have them."""
    manifest = source.manifest
    if ALL_LAYERS in manifest.configs or DEFAULT_CONFIG in manifest.configs:
        return count_samples(source)
    shards = next(iter(manifest.splits(CLT_FEATURES).values()))
    counts: Counter[int] = Counter()
    for rows in split_tables(source, shards, [SAMPLE]):
        counts.update(rows[SAMPLE].to_pylist())
    return pa.table({SAMPLE: list(counts), N_ROWS: list(counts.values())})


def _difference(said: pa.Table, counted: pa.Table) -> tuple[int, str, str] | None:
    """Return the first sample of which two tables differ, and what each has of it.

    What the first does not know, it does not say.
    """
    names = [name for name in (N_ROWS, ID, IMAGE) if name in counted.schema.names]
    rows = {row[SAMPLE]: row for row in said.select([SAMPLE, *names]).to_pylist()}
    others = {row[SAMPLE]: row for row in counted.to_pylist()}
    for sample in sorted(rows.keys() | others.keys()):
        row, other = rows.get(sample, {N_ROWS: 0}), others.get(sample, {N_ROWS: 0})
        for name in names:
            if row.get(name) is not None and row[name] != other.get(name):
                return sample, f"{name} {row[name]!r}", f"{name} {other.get(name)!r}"
    return None
