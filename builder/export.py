"""Writing the `.pt` layouts out of a dataset folder, or of a repo on the Hub."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from builder.asked.dataset_to_read import available_layers, check_site, check_targets
from builder.pt.dataset_samples import feature_samples, x_samples
from builder.pt.export_note import ExportNote, adopt, check_free, vectors_sha256
from builder.pt.layers_layout import batch_files, write_batch
from builder.pt.samples_layout import sample_path, write_sample
from llava_amber_activations.console.progress import progress_of
from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.files.leftovers import export_lock_path, sweep
from llava_amber_activations.files.locks import held
from llava_amber_activations.formats.arrow_vectors import Vectors
from llava_amber_activations.formats.columns import SAMPLE
from llava_amber_activations.formats.dataset_folder import CLT_FEATURES
from llava_amber_activations.formats.layers import LayerWindow, parse_layers, split_name
from llava_amber_activations.formats.recipe import XSite
from llava_amber_activations.parsing.safe_pt import is_whole_pt
from llava_amber_activations.reading.layer_rows import check_wanted, layer_ranges, split_tables
from llava_amber_activations.reading.wanted_layer import WantedLayer, layer_shards
from llava_amber_activations.sources.sites import site_norms
from llava_amber_activations.sources.source import Source, open_source
from llava_amber_activations.vectors.norms import Norms
from llava_amber_activations.vectors.recycled import RecycledMemory

Layout = Literal["layers", "samples"]
DEFAULT_BATCH_SIZE = 64
_SAVED_AT_ONCE = 3


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

    Raises:
        ActivationsError: the source or `out` cannot be used for this, or another process exports
            into `out`.
    """
    opened = open_source(source, revision)
    recipe = opened.manifest.recipe
    most = opened.manifest.n_targets if n_targets is None else n_targets
    window = LayerWindow(recipe.n_layers, most, first_target)
    available = available_layers(opened, layout, window)
    chosen = available if layers is None else parse_layers(layers, available)
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
    )
    check_free(out)
    with held(export_lock_path(out), f"{out} is being exported into"):
        adopt(out, note)
        for folder in (out, *(out / split_name(layer) for layer in chosen)):
            sweep(folder)
        if layout == "samples":
            return _export_samples(opened, out, chosen, norms)
        return _export_layers(opened, out, wanted_layers, batch_size, pad_targets)


def _export_layers(
    opened: Source,
    out: Path,
    wanted_layers: Sequence[WantedLayer],
    batch_size: int,
    pad_targets: bool,
) -> ExportResult:
    n_files = n_written = 0
    plans: dict[tuple[str, ...], list[BatchRows]] = {}
    memory = RecycledMemory()
    for wanted in progress_of(wanted_layers, "export", unit="layer"):
        paths = layer_shards(opened, wanted)
        # Layers that come from the same shards have the same samples.
        if tuple(paths) not in plans:
            lengths = _sample_lengths(opened, paths)
            plans[tuple(paths)] = equal_length_batches(lengths, batch_size)
        batches = plans[tuple(paths)]
        pad_to = wanted.n_targets if pad_targets else 0
        n_files += 2 * len(batches)
        n_written += _export_layer(opened, paths, batches, out, wanted, pad_to, memory)
    return ExportResult(n_files, n_written, "x and targets")


def _export_layer(
    source: Source,
    paths: list[str],
    batches: Sequence[BatchRows],
    out: Path,
    wanted: WantedLayer,
    pad_to: int,
    memory: RecycledMemory,
) -> int:
    """Write a layer's missing batch files and return how many they were."""
    files = [batch_files(out, wanted.layer, number) for number in range(len(batches))]
    missing = [each.number for each in files if not each.are_whole]
    rows = [batches[number].rows for number in missing]
    ranges = layer_ranges(source, paths, wanted, rows, memory)

    def save(number: int, vectors: list[Vectors]) -> None:
        batch = batches[number]
        shape = (batch.n_samples, len(batch.rows) // batch.n_samples, -1)
        x, *targets = (_tensor(rows).view(shape) for rows in vectors)
        targets += [torch.zeros_like(targets[0]) for _ in range(pad_to - len(targets))]
        write_batch(files[number], x, targets)

    # One batch waits for the disk while another is copied and a third is read.
    saving: deque[Future[None]] = deque()
    with ThreadPoolExecutor(_SAVED_AT_ONCE) as pool:
        for number, vectors in zip(missing, ranges, strict=True):
            if len(saving) == _SAVED_AT_ONCE:
                saving.popleft().result()
            saving.append(pool.submit(save, number, vectors))
        for future in saving:
            future.result()
    return 2 * len(missing)


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


def _tensor(rows: Vectors) -> torch.Tensor:
    """View [rows, H] as a tensor whose storage is no larger, or the file would hold all of it."""
    return torch.from_numpy(rows if rows.flags.writeable else rows.copy())


def _export_samples(
    source: Source, out: Path, layers: Sequence[int], norms: Norms | None
) -> ExportResult:
    n_files = n_written = 0
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
            layer: torch.from_numpy(np.array(vectors))
            for layer, vectors in zip(layers, sample.vectors, strict=True)
        }
        write_sample(path, activations)
    return ExportResult(n_files, n_written, contents)
