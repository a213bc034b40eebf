"""10 The sink: batches that are ready, on their way into chunks on the disk; the model is left out.

    python tests/benchmarks/sink.py SCRATCH

Samples of 600 rows, of all 64 vectors of 4096 float16 numbers (300 MiB a sample), two a chunk, four
chunks a run: put in order, checked, hashed, written and fsynced. The bare write puts the same bytes
into files of the same size, and fsyncs each. On tmpfs (where /dev/shm is one) it is beside a copy
of the same bytes in memory. Peak memory is that of a run in which each chunk's batches are made
anew before they are put, as a model would make them, in chunks.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from measuring import Line, alternate, rates, run_section

from capture.passes.host_copy import HostCopy
from capture.passes.preparation import PlannedBatch, PreparedBatch
from capture.samples.queries import Query
from capture.sink.chunk import COLUMNS, CapturedBatch
from capture.sink.chunk_sink import CapturedChunk, chunk_sink

SECTION = "10 The sink"
N_LAYERS, WIDTH, ROWS = 32, 4096, 600
CHUNK_SAMPLES, N_CHUNKS = 2, 4
_SHM = Path("/dev/shm")


def measure(scratch: Path, repeats: int) -> list[Line]:
    """Measure the disk, tmpfs where there is one, and the peak of memory."""
    vectors = [_vectors(sample) for sample in range(CHUNK_SAMPLES)]
    lines = _writing(scratch / "sink", vectors, repeats, "on the disk")
    if _SHM.is_dir() and shutil.disk_usage(_SHM).free > 2 * N_CHUNKS * _chunk_bytes():
        folder = _SHM / f"sink-{os.getpid()}"
        lines += _writing(folder, vectors, repeats, "on tmpfs")
    peaks = [_peak(scratch / "sink", vectors) for _ in range(3)]
    chunks = [1.0] * len(peaks)
    return [*lines, Line(SECTION, "peak memory", "one chunk", "chunks", peaks, chunks, "<= 3")]


def _writing(folder: Path, vectors: list[torch.Tensor], repeats: int, where: str) -> list[Line]:
    folder.mkdir(parents=True, exist_ok=True)
    chunks = [_chunk(number, vectors) for number in range(N_CHUNKS)]

    def emptied() -> None:
        shutil.rmtree(folder)
        (folder / "chunks").mkdir(parents=True)

    def ours() -> None:
        with chunk_sink(folder, _model(), torch.float16) as sink:
            for chunk in chunks:
                sink.put(chunk)

    def bare() -> None:
        for number in range(N_CHUNKS):
            with (folder / f"{number}").open("wb", buffering=0) as file:
                for each in vectors:
                    file.write(each.view(-1).view(torch.uint8).numpy().data)
                os.fsync(file.fileno())

    def copied() -> None:
        for _ in range(N_CHUNKS):
            for each in vectors:
                each.clone()

    try:
        seconds = alternate({"ours": ours, "bare": bare, "copy": copied}, repeats, before=emptied)
    finally:
        shutil.rmtree(folder)
    size = N_CHUNKS * _chunk_bytes() / 1e6
    figures = {name: rates(size, times) for name, times in seconds.items()}
    work = f"ready batches to chunks {where}"
    on_disk = where == "on the disk"
    return [
        Line(SECTION, work, other, "MB/s", figures["ours"], figures[name], aim)
        for name, other, aim in (
            ("bare", "the bare write and fsync", ">= 0.9" if on_disk else ""),
            ("copy", "copying the bytes in memory", "" if on_disk else ">= 0.5"),
        )
    ]


def _peak(folder: Path, vectors: list[torch.Tensor]) -> float:
    """Return the most memory of a run beyond what lay there before, in chunks."""
    (folder / "chunks").mkdir(parents=True)
    Path("/proc/self/clear_refs").write_text("5")  # proc_pid_clear_refs(5): the peak begins anew
    before = _peak_bytes()
    try:
        with chunk_sink(folder, _model(), torch.float16) as sink:
            for number in range(2 * N_CHUNKS):
                sink.put(_chunk(number, [each.clone() for each in vectors]))
        return (_peak_bytes() - before) / _chunk_bytes()
    finally:
        shutil.rmtree(folder)


def _peak_bytes() -> int:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def _vectors(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2 * N_LAYERS, ROWS, WIDTH, generator=generator).half()


def _chunk(number: int, vectors: list[torch.Tensor]) -> CapturedChunk:
    first = number * CHUNK_SAMPLES
    samples = range(first, first + CHUNK_SAMPLES)
    queries = [Query(sample, sample, f"{sample}.jpg", "What?") for sample in samples]
    batches = [_batch(query, each) for query, each in zip(queries, vectors, strict=True)]
    return CapturedChunk(number, queries, batches, 1)


def _batch(query: Query, vectors: torch.Tensor) -> CapturedBatch:
    columns = {name: torch.zeros(ROWS, dtype=torch.int32) for name in COLUMNS}
    columns["sample"] = torch.full((ROWS,), query.sample, dtype=torch.int32)
    prepared = PreparedBatch(PlannedBatch(0, (query,)), (query,))
    return CapturedBatch(prepared, HostCopy(vectors), columns)


def _model() -> Any:
    return SimpleNamespace(decoder=SimpleNamespace(layers=[None] * N_LAYERS, hidden_size=WIDTH))


def _chunk_bytes() -> int:
    return CHUNK_SAMPLES * 2 * N_LAYERS * ROWS * WIDTH * 2


if __name__ == "__main__":
    run_section(measure, __doc__)
