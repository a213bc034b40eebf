"""Writing the `.pt` layouts out of a dataset folder, or of a repo on the Hub."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from operator import itemgetter
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from builder.asked.dataset_to_read import (
    check_site,
    check_targets,
    chosen_layers,
    export_dtype,
)
from builder.pt.dataset_samples import feature_samples, x_samples
from builder.pt.export_note import ExportNote, adopt, check_free, vectors_sha256
from builder.pt.layers_layout import BatchFiles, batch_files, open_batch
from builder.pt.samples_layout import sample_path, write_sample
from builder.pt.tensors import as_dtype
from llava_amber_activations.console import verbosity
from llava_amber_activations.console.progress import progress_of
from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.files.leftovers import export_lock_path, sweep
from llava_amber_activations.files.locks import held
from llava_amber_activations.formats.arrow_vectors import Vectors
from llava_amber_activations.formats.columns import SAMPLE
from llava_amber_activations.formats.dataset_folder import CLT_FEATURES
from llava_amber_activations.formats.dtypes import DType, torch_dtype
from llava_amber_activations.formats.layers import LayerWindow, split_name
from llava_amber_activations.formats.recipe import XSite
from llava_amber_activations.parsing.safe_pt import is_whole_pt
from llava_amber_activations.reading.layer_rows import check_wanted, layer_pieces, split_tables
from llava_amber_activations.reading.wanted_layer import WantedLayer, layer_shards
from llava_amber_activations.sources.sites import site_norms
from llava_amber_activations.sources.source import Source, open_source
from llava_amber_activations.vectors.norms import Norms
from llava_amber_activations.vectors.recycled import RecycledMemory

Layout = Literal["layers", "samples"]
DEFAULT_BATCH_SIZE = 64
# Files of so many batches are flushed to the disk at once; so many tensors are written at once.
_ENDED_AT_ONCE = 3
_MOST_WRITERS = 4


@dataclass(frozen=True)
class ExportResult:
    """What was written: files in all, how many of them just now, and what they hold."""

    n_files: int
    n_written: int
    contents: str


def export(
    source: str | Path,
    out: Path,
    *,
    layout: Layout,
    layers: str | None = None,
    n_targets: int | None = None,
    first_target: int = 1,
    batch_size: int = DEFAULT_BATCH_SIZE,
    pad_targets: bool = False,
    x_site: XSite | None = None,
    dtype: DType | None = None,
    revision: str | None = None,
) -> ExportResult:
    """Export a dataset to `.pt` files; run again after an interruption, it writes what is missing.

    Files that are there are kept where they end as whole files do: each is written aside and
    renamed. They are not compared with the data, but the dataset must be in the state that the
    export was begun with.

    Args:
        source: a dataset folder, or a dataset's id on the Hub.
        layout: `layers` writes `x` and targets, `samples` writes `clt_features` where the dataset
            has them and `x` where it does not.
        layers: such as `0-30`; all that the dataset has if None.
        n_targets: the most targets of a layer; as many as the dataset was made with if None.
        first_target: 1 starts the targets at L+1, 0 at L itself.
        batch_size: most samples of a batch file.
        pad_targets: append zero tensors up to `n_targets`, as the first capture script did.
        x_site: where `x` is read, as the dataset was captured if None. `mlp_in` is computed from
            `resid_mid` where the dataset holds the model's norms.
        dtype: of the files' tensors; if None as captured, which is exact, also where the dataset
            holds bfloat16 as float32. Another may round.

    Raises:
        ActivationsError: the source or `out` cannot be used for this, or another process exports
            into `out`.
    """
    opened = open_source(source, revision)
    recipe = opened.manifest.recipe
    most = opened.manifest.n_targets if n_targets is None else n_targets
    window = LayerWindow(recipe.n_layers, most, first_target)
    chosen = chosen_layers(opened, layout, window, layers)
    if batch_size < 1:
        raise ActivationsError(f"batch_size must be at least 1, got {batch_size}")
    check_targets(layout, n_targets, pad_targets, recipe.n_layers)
    check_site(opened, layout, x_site)
    norms = site_norms(opened, x_site)
    wanted_layers = [
        WantedLayer(layer, most, first_target, None if norms is None else norms.layer(layer))
        for layer in chosen
    ]
    if layout == "layers":
        for wanted in wanted_layers:
            check_wanted(opened, wanted)
    note = ExportNote(
        format=layout,
        layers=tuple(chosen),
        n_targets=most,
        first_target=first_target,
        batch_size=batch_size,
        pad_targets=pad_targets,
        recipe=replace(recipe, x_site=x_site or recipe.x_site),
        data_sha256=vectors_sha256(opened.manifest, with_norms=norms is not None),
        dtype=export_dtype(opened.manifest, dtype),
    )
    check_free(out)
    if recipe.extra_columns:
        verbosity.note(
            f"{source} says {', '.join(recipe.extra_columns)} of each row: .pt files hold vectors "
            "alone"
        )
    with held(export_lock_path(out), f"{out} is being exported into"):
        adopt(out, note)
        for folder in (out, *(out / split_name(layer) for layer in chosen)):
            sweep(folder)
        if layout == "samples":
            return _export_samples(opened, out, note, norms)
        return _export_layers(opened, out, wanted_layers, note)


def _export_layers(
    opened: Source, out: Path, wanted_layers: Sequence[WantedLayer], note: ExportNote
) -> ExportResult:
    n_files = n_written = 0
    plans: dict[tuple[str, ...], list[BatchRows]] = {}
    memory = RecycledMemory()
    for wanted in progress_of(wanted_layers, "export", unit="layer"):
        paths = layer_shards(opened, wanted)
        # Layers that come from the same shards have the same samples.
        if tuple(paths) not in plans:
            lengths = _sample_lengths(opened, paths)
            plans[tuple(paths)] = equal_length_batches(lengths, note.batch_size)
        batches = plans[tuple(paths)]
        n_files += 2 * len(batches)
        n_written += _export_layer(opened, paths, batches, out, wanted, note, memory)
    return ExportResult(n_files, n_written, "x and targets")


def _export_layer(
    source: Source,
    paths: list[str],
    batches: Sequence[BatchRows],
    out: Path,
    wanted: WantedLayer,
    note: ExportNote,
    memory: RecycledMemory,
) -> int:
    """Write a layer's missing batch files and return how many they were.

    Row groups are read ahead, and each is written before the next, whatever a batch's size.
    """
    files = [batch_files(out, wanted.layer, number) for number in range(len(batches))]
    missing = [each.number for each in files if not each.are_whole]
    rows = [batches[number].rows for number in missing]
    pieces = layer_pieces(source, paths, wanted, rows, memory)
    pad_to = wanted.n_targets if note.pad_targets else 0
    # Some batches wait for the disk while the next one is written.
    ending: deque[Future[None]] = deque()
    with (
        ThreadPoolExecutor(_ENDED_AT_ONCE) as enders,
        ThreadPoolExecutor(min(_MOST_WRITERS, os.cpu_count() or 1)) as writers,
    ):
        for number, of_batch in groupby(pieces, key=itemgetter(0)):
            batch, begun = batches[missing[number]], files[missing[number]]
            open_files = _write_batch(batch, begun, of_batch, pad_to, note, writers)
            if len(ending) == _ENDED_AT_ONCE:
                ending.popleft().result()
            ending.append(enders.submit(open_files.close))
        for future in ending:
            future.result()
    return 2 * len(missing)


def _write_batch(
    batch: BatchRows,
    files: BatchFiles,
    pieces: Iterator[tuple[int, list[Vectors]]],
    pad_to: int,
    note: ExportNote,
    writers: ThreadPoolExecutor,
) -> ExitStack:
    """Write a batch's values, piece by piece, and return what ends its two files."""
    dtype = torch_dtype(note.tensors_dtype)
    where = f"batch {files.number} of {files.x.parent.name}"
    with ExitStack() as stack:
        writes: list[Callable[[torch.Tensor], None]] = []
        for _, vectors in pieces:
            padding = [np.zeros_like(vectors[0])] * (pad_to - len(vectors) + 1)
            tensors = [*vectors, *padding]
            if not writes:
                shape = batch.n_samples, len(batch.rows) // batch.n_samples, vectors[0].shape[1]
                writes = stack.enter_context(open_batch(files, shape, dtype, len(tensors) - 1))

            def write(write_next: Callable[[torch.Tensor], None], rows: Vectors) -> None:
                write_next(as_dtype(rows, dtype, where))

            # Computing a checksum and writing leave the interpreter to other threads.
            writing = [writers.submit(write, *each) for each in zip(writes, tensors, strict=True)]
            # No file is closed while a thread writes to it.
            wait(writing)
            for future in writing:
                future.result()
        return stack.pop_all()


@dataclass(frozen=True)
class BatchRows:
    """One batch file: its rows in the dataset, and how many samples of equal length they are."""

    rows: range
    n_samples: int


def equal_length_batches(lengths: Sequence[int], batch_size: int) -> list[BatchRows]:
    """Group consecutive samples of equal length, `batch_size` at most; nothing is padded."""
    batches: list[BatchRows] = []
    row = 0
    for length, group in groupby(lengths):
        left = len(list(group))
        while left:
            n_samples = min(left, batch_size)
            batches.append(BatchRows(range(row, row + n_samples * length), n_samples))
            row += n_samples * length
            left -= n_samples
    return batches


def _sample_lengths(source: Source, paths: list[str]) -> list[int]:
    """Return how many rows each sample of some shards has."""
    column = [table[SAMPLE].to_numpy() for table in split_tables(source, paths, [SAMPLE])]
    samples = np.concatenate(column)
    edges = [0, *(np.flatnonzero(np.diff(samples)) + 1), len(samples)]
    return [int(stop - start) for start, stop in pairwise(edges)]


def _export_samples(
    source: Source, out: Path, note: ExportNote, norms: Norms | None
) -> ExportResult:
    n_files = n_written = 0
    layers, dtype = note.layers, torch_dtype(note.tensors_dtype)
    if CLT_FEATURES in source.manifest.configs:
        samples, contents = feature_samples(source, layers), "transcoder features"
    else:
        samples, contents = x_samples(source, layers, norms), "x"
    n_samples = source.manifest.recipe.n_samples
    for sample in progress_of(samples, "export", unit="sample", total=n_samples):
        n_files += 1
        path = sample_path(out, sample.number)
        if is_whole_pt(path):
            continue
        n_written += 1
        activations = {
            # A copy, in memory of its own.
            layer: as_dtype(np.array(vectors), dtype, f"layer {layer} of sample {sample.number}")
            for layer, vectors in zip(layers, sample.vectors, strict=True)
        }
        write_sample(path, activations)
    return ExportResult(n_files, n_written, contents)
