"""4 Build: float16 in, against a bare ParquetWriter and Dataset.to_parquet; peak memory.

    python tests/benchmarks/building.py SCRATCH

Ours reads the store, writes and checks a whole dataset folder, with checksums, statistics, card and
figures, and has it on the disk (fsync) before it is renamed. The bare writer has the vectors in
memory, writes the same columns in the same encoding and row groups, and leaves them to the page
cache; `to_parquet` likewise, in its own encoding.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from ground import Ground, all_names, layer_names
from made_store import Shape
from measuring import Line, alternate, rates, run_section

from builder.build import build
from llava_amber_activations.formats.arrow_vectors import targets_to_arrow, vectors_to_arrow

SECTION = "4 Build"
# The default config is six times the bytes of all_layers: fewer rows say as much.
FEW = Shape(rows=128)
MANY = Shape(rows=4016)
GROUP = 64
BARE_NOTE = "from memory, no checksums, no fsync"

_PEAK = """
import sys
from pathlib import Path
from builder.build import build
build(Path(sys.argv[1]), Path(sys.argv[2]), configs=("all_layers",))
# Not getrusage: its maximum begins with what the parent held.
status = dict(line.split(":") for line in open("/proc/self/status"))
print(int(status["VmHWM"].split()[0]) * 1024 / 1e6)
"""


def measure(scratch: Path, repeats: int) -> list[Line]:
    """Measure all_layers, the default config, and peak memory at 1×, 4× and 16× rows."""
    datasets.disable_progress_bars()
    ground = Ground(scratch)
    names = all_names()
    vectors = dict(zip(names, ground.vectors(names), strict=True))
    every = pa.table({name: vectors_to_arrow(each.numpy()) for name, each in vectors.items()})
    every_of_many = pa.table(
        {
            name: vectors_to_arrow(each.numpy())
            for name, each in zip(names, ground.vectors(names, MANY), strict=True)
        }
    )
    few = dict(zip(names, ground.vectors(names, FEW), strict=True))
    layers = []
    for layer in range(31):
        x, *targets = [few[name].numpy() for name in layer_names(layer) if name in few]
        stacked = np.stack(targets, axis=1)
        layers.append(pa.table({"x": vectors_to_arrow(x), "targets": targets_to_arrow(stacked)}))
    return [
        *_against(ground, "all_layers", Shape(), [every], repeats),
        *_against(ground, "default", FEW, layers, repeats),
        *_of_many(ground, every_of_many, repeats),
        *_memory(ground),
    ]


def _against(
    ground: Ground, config: str, shape: Shape, tables: list[pa.Table], repeats: int
) -> list[Line]:
    out = ground.scratch / "built"
    store = ground.store(shape)
    size = sum(table.nbytes for table in tables) / 1e6

    def ours(num_proc: int) -> Callable[[], None]:
        def run() -> None:
            build(store, out, configs=(config,), num_proc=num_proc)

        return run

    def to_parquet() -> None:
        out.mkdir()
        for number, table in enumerate(tables):
            datasets.Dataset(table).to_parquet(out / f"{number}.parquet")

    seconds = alternate(
        {"1": ours(1), "2": ours(2), "bare": lambda: _bare(out, tables), "to_parquet": to_parquet},
        repeats,
        before=lambda: shutil.rmtree(out, ignore_errors=True),
    )
    shutil.rmtree(out, ignore_errors=True)
    figures = {name: rates(size, times) for name, times in seconds.items()}
    return [
        Line(
            SECTION,
            f"{config}, num_proc={processes}",
            other,
            "MB/s",
            figures[processes],
            figures[name],
            aim,
            note,
        )
        for processes in ("1", "2")
        for name, other, aim, note in (
            ("bare", "a bare ParquetWriter", ">= 0.9", BARE_NOTE),
            ("to_parquet", "Dataset.to_parquet", ">= 4", ""),
        )
    ]


def _bare(out: Path, tables: list[pa.Table]) -> None:
    """Write tables as ours are encoded, a file each."""
    out.mkdir()
    for number, table in enumerate(tables):
        leaves = {
            name: f"{name}.list.element" + (".list.element" if name == "targets" else "")
            for name in table.column_names
        }
        with pq.ParquetWriter(
            out / f"{number}.parquet",
            table.schema,
            compression="zstd",
            compression_level=1,
            use_dictionary=False,
            write_statistics=False,
            column_encoding=dict.fromkeys(leaves.values(), "BYTE_STREAM_SPLIT"),
        ) as writer:
            for start in range(0, len(table), GROUP):
                writer.write_table(table.slice(start, GROUP), row_group_size=GROUP)


def _of_many(ground: Ground, table: pa.Table, repeats: int) -> list[Line]:
    out, store = ground.scratch / "built", ground.store(MANY)
    seconds = alternate(
        {
            "1": lambda: build(store, out, configs=("all_layers",)),
            "2": lambda: build(store, out, configs=("all_layers",), num_proc=2),
            "bare": lambda: _bare(out, [table]),
        },
        repeats,
        before=lambda: shutil.rmtree(out, ignore_errors=True),
    )
    figures = {name: rates(table.nbytes / 1e6, times) for name, times in seconds.items()}
    work, bare = f"all_layers, {MANY.rows} rows, num_proc=", "a bare ParquetWriter"
    return [
        Line(SECTION, work + n, bare, "MB/s", figures[n], figures["bare"], ">= 0.9", BARE_NOTE)
        for n in ("1", "2")
    ]


def _memory(ground: Ground) -> list[Line]:
    """Peak memory of a process that builds all_layers."""
    peaks = []
    for rows in (251, 1004, 4016):
        out = ground.scratch / "built"
        shutil.rmtree(out, ignore_errors=True)
        done = subprocess.run(
            [sys.executable, "-c", _PEAK, str(ground.store(Shape(rows=rows))), str(out)],
            check=True,
            capture_output=True,
            text=True,
        )
        peaks.append(float(done.stdout.split()[-1]))
        shutil.rmtree(out)
    return [
        Line(SECTION, f"peak memory, {rows} rows", "1 GiB", "MB", [peak], [2**30 / 1e6], "<= 1")
        for rows, peak in zip((251, 1004, 4016), peaks, strict=True)
    ]


if __name__ == "__main__":
    run_section(measure, __doc__)
