"""Handing a data set over to another trainer: its vectors, in the layout that its loader reads.

OUT/export.json                    what is exported, written first
OUT/unfinished/…                   the files, until the last chunk is there
OUT/…                              the layout's own files
OUT/rows/rows-00000.safetensors    which rows each chunk has
OUT/SHA256SUMS                     of all of them, written last
"""

from __future__ import annotations

import os
from collections.abc import Container, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch

from builder.asked.handover_asked import HandoverAsked
from builder.handover.chunks import (
    ChunkPlan,
    files_of_record,
    is_whole,
    open_record,
    plan_chunks,
    row_numbers,
    rows_name,
    write_record,
)
from builder.handover.layout import Layout, Rows
from builder.handover.note import HandoverNote, adopt, note_of
from builder.handover.places import begin_again, is_finished, place_of, put_in_place, write_sums
from builder.pt.export_note import EXPORT_FILE, check_free
from llava_amber_activations.activations import Activations
from llava_amber_activations.batches.activation_batches import ActivationBatches
from llava_amber_activations.console.progress import Progress
from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.extras import need_extras
from llava_amber_activations.files.checksums import sha256_of
from llava_amber_activations.files.leftovers import export_lock_path
from llava_amber_activations.files.locks import held
from llava_amber_activations.files.whole import written_whole
from llava_amber_activations.formats.columns import POSITION, SAMPLE
from llava_amber_activations.formats.dataset_folder import FileEntry
from llava_amber_activations.formats.dtypes import torch_dtype
from llava_amber_activations.store.tensor_file import TensorFile
from llava_amber_activations.vectors.finite import finite_rows

# Rows are read so many bytes at a time, and mixed over no more rows than two such batches, or what
# `hook_batches` mixes at least.
_BATCH_BYTES = 64 * 2**20
_MOST_BATCH_ROWS = 4096
_MOST_THREADS = 4


@dataclass(frozen=True)
class HandoverResult:
    """What was written.

    Attributes:
        note: what was exported.
        n_chunks, n_written: chunks in all, and how many of them just now.
        n_rows: rows in all.
        n_skipped: rows that `skip_first` left out.
        n_left_out: rows that were left out because chunks are of one size.
        code: lines of Python that train on the export.
    """

    note: HandoverNote
    n_chunks: int
    n_written: int
    n_rows: int
    n_skipped: int
    n_left_out: int
    code: str


def hand_over(
    source: str | Path, out: Path, asked: HandoverAsked, *, revision: str | None = None
) -> HandoverResult:
    """Export a dataset in another trainer's layout; run again after an interruption, it goes on.

    Rows come mixed, in the order that the seed gives; `rows/` says which row each one is. Vectors
    keep every bit unless another dtype is asked for. A chunk is written aside and renamed, and
    nothing lies where the trainer looks before everything is there.

    Args:
        source: a dataset folder, or a dataset's id on the Hub.
        asked: which layout, layers, site, dtype and order.
        revision: branch, tag or commit on the Hub.

    Raises:
        ActivationsError: the source or `out` cannot be used for this, a value does not fit the
            dtype, or another process exports into `out`.
    """
    acts = Activations(source, revision)
    note = note_of(acts.source, asked)
    layout = layout_of(note)
    check_free(out)
    with held(export_lock_path(out), f"{out} is being exported into"):
        batches = _batches(acts, note)
        adopt(out, note)
        plan = plan_chunks(_counted(batches.n_rows), note.chunk_rows, equal=layout.equal)
        n_chunks = len(plan.sizes)
        names = [layout.files(chunk, n_chunks) for chunk in range(n_chunks)]
        missing = [chunk for chunk in range(n_chunks) if not is_whole(out, chunk, names[chunk])]
        if missing or not is_finished(out):
            begin_again(out)
            start = batches.state_dict()
            said = row_numbers(note.recipe.extra_columns)
            with Progress("export", total=sum(plan.sizes), unit="row") as progress:
                progress.update(sum(plan.sizes) - sum(plan.sizes[chunk] for chunk in missing))
                for run in _runs(missing):
                    batches.load_state_dict({**start, "rows_done": plan.first_row(run.start)})
                    supply = _RowSupply(_of_dtype(iter(batches), note), said)
                    for chunk in run:
                        _write_chunk(out, layout, plan, chunk, supply, progress)
            _finish(out, note, layout, plan)
        return HandoverResult(
            note=note,
            n_chunks=n_chunks,
            n_written=len(missing),
            n_rows=sum(plan.sizes),
            n_skipped=_counted(batches.n_left_out),
            n_left_out=plan.left_out,
            code=layout.code(out, sum(plan.sizes)),
        )


def layout_of(note: HandoverNote) -> Layout:
    """Return the layout that a note names; what it needs is imported now.

    Raises:
        ActivationsError: what it needs is not installed.
    """
    if note.format == "saelens":
        from builder.handover.saelens import SaeLensLayout

        return SaeLensLayout(note)
    if note.format == "crosslayer-coding":
        need_extras("--format crosslayer-coding", "crosslayer-coding")
        from builder.handover.crosslayer_coding import CrosslayerCodingLayout

        return CrosslayerCodingLayout(note)
    from builder.handover.llamascopium import LlamascopiumLayout

    return LlamascopiumLayout(note)


def _batches(acts: Activations, note: HandoverNote) -> ActivationBatches:
    row_bytes = len(note.hooks) * note.recipe.hidden_size * 4
    return acts.hook_batches(
        note.layers,
        x_site=note.x_site,
        rows=True,
        batch_size=max(1, min(_MOST_BATCH_ROWS, _BATCH_BYTES // row_bytes)),
        shuffle=True,
        seed=note.seed,
        rank=0,
        world_size=1,
        skip_first=note.skip_first,
    )


def _counted(n_rows: int | None) -> int:
    assert n_rows is not None, "the manifest counts the rows of every shard"
    return n_rows


def _runs(numbers: Sequence[int]) -> Iterator[range]:
    """Yield the runs of some ascending numbers."""
    for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        found = [number for _, number in run]
        yield range(found[0], found[-1] + 1)


class _RowSupply:
    """The rows of batches, as many at a time as are asked for.

    Attributes:
        said: what is said of each row, and its dtype.
    """

    def __init__(self, batches: Iterator[Rows], said: Mapping[str, torch.dtype]) -> None:
        self.said = said
        self._batches = batches
        self._left: Rows = {}

    def take(self, n_rows: int) -> Iterator[Rows]:
        """Yield the next rows, in pieces of a batch at most."""
        while n_rows:
            rows = self._left or next(self._batches)
            n = min(n_rows, _length(rows))
            self._left = _cut(rows, slice(n, None)) if n < _length(rows) else {}
            n_rows -= n
            yield _cut(rows, slice(0, n))


def _length(rows: Rows) -> int:
    return len(rows[SAMPLE])


def _cut(rows: Rows, which: slice) -> Rows:
    return {name: tensor[which] for name, tensor in rows.items()}


def _of_dtype(batches: Iterator[Rows], note: HandoverNote) -> Iterator[Rows]:
    """Yield batches with the vectors' dtype.

    Raises:
        ActivationsError: a value does not fit it.
    """
    dtype = torch_dtype(note.dtype)
    for rows in batches:
        if rows[note.hooks[0]].dtype == dtype:
            yield rows
            continue
        converted = {hook: rows[hook].to(dtype) for hook in note.hooks}
        for hook, vectors in converted.items():
            finite = finite_rows(vectors)
            if not finite.all():
                row = int((~finite).nonzero()[0, 0])
                raise ActivationsError(
                    f"{hook} of sample {int(rows[SAMPLE][row])}, position "
                    f"{int(rows[POSITION][row])}, holds a value that {note.dtype} cannot: export "
                    "with another --dtype, into a new folder"
                )
        yield {**rows, **converted}


def _write_chunk(
    out: Path, layout: Layout, plan: ChunkPlan, chunk: int, supply: _RowSupply, progress: Progress
) -> None:
    """Write a chunk, and when its files are whole what says so."""
    size = plan.sizes[chunk]
    names = layout.files(chunk, len(plan.sizes))
    numbers = {name: torch.empty(size, dtype=dtype) for name, dtype in supply.said.items()}
    with ExitStack() as files:
        partials = [files.enter_context(written_whole(place_of(out, name))) for name in names]
        with layout.open(partials, size) as opened:
            at = 0
            for rows in supply.take(size):
                opened.write(at, rows)
                for name, column in numbers.items():
                    column[at : at + _length(rows)] = rows[name]
                at += _length(rows)
                progress.update(_length(rows))
            kept = opened.kept()
        with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as threads:
            entries = list(threads.map(_entry_of, partials))
    write_record(out, chunk, {**numbers, **kept}, dict(zip(names, entries, strict=True)))


def _entry_of(path: Path) -> FileEntry:
    return FileEntry(sha256_of(path), path.stat().st_size)


def _finish(out: Path, note: HandoverNote, layout: Layout, plan: ChunkPlan) -> None:
    """Write the last files, and put everything where the trainer looks for it."""
    chunks = range(len(plan.sizes))
    said = row_numbers(note.recipe.extra_columns)
    kept = (_kept(open_record(out, chunk), said, len(note.layers)) for chunk in chunks)
    for name, content in zip(layout.last, layout.last_contents(plan.sizes, kept), strict=True):
        with written_whole(place_of(out, name)) as partial:
            partial.write_bytes(content)
    put_in_place(out, layout.last)
    sums = {name: sha256_of(out / name) for name in (EXPORT_FILE, *layout.last)}
    for chunk in chunks:
        files = files_of_record(open_record(out, chunk))
        sums |= {name: entry.sha256 for name, entry in files.items()}
        sums[rows_name(chunk)] = sha256_of(out / rows_name(chunk))
    write_sums(out, sums)


def _kept(record: TensorFile, said: Container[str], n_layers: int) -> dict[str, torch.Tensor]:
    """Return what a layout kept of a chunk, beside what is said of its rows: [layers, …] each."""
    names = {name for name in record.names if name not in said}
    for name in names:
        record.check_tensor(name)
    return {name: record.rows(name, 0, n_layers) for name in names}
