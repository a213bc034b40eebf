"""What `streaming.py` measures, once the Hub stands and the environment names it."""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import pyarrow.parquet as pq
from ground import BATCH, LAYER, Ground, layer_names
from growth import SECTION as GROWTH
from growth import SHAPES as GROWN
from made_store import Shape
from measuring import Line, alternate, rates, touch

from builder.push import push
from llava_amber_activations import LayerStream, activation_batches, open_layer

SECTION = "3 Streaming"
REPO = "lab/bench-activations"


class Hub(Protocol):
    """What counts the bytes."""

    def bytes_sent(self, *, reset: bool = False) -> int:
        """Return the bytes of shards sent since the last reset."""


def measure_from(hub: Hub, scratch: Path, repeats: int) -> list[Line]:
    """Measure rows a second and bytes fetched, in the order of the shards and mixed."""
    folder = Ground(scratch).dataset()
    push(folder, REPO)
    shards = sorted((folder / "all_layers").iterdir())
    needed = sum(map(needed_bytes, shards))
    layer = open_layer(REPO, LAYER)
    seconds = alternate(
        {
            "in order": reader(layer, shuffle=False),
            "mixed": reader(layer, shuffle=True),
            "pyarrow": lambda: decode(shards),
        },
        repeats,
    )
    figures = {name: rates(Shape().rows, times) for name, times in seconds.items()}
    fetched = []
    for _ in range(repeats):
        hub.bytes_sent(reset=True)
        reader(open_layer(REPO, LAYER), shuffle=True)()
        fetched.append(hub.bytes_sent() / 1e6)
    lines = [
        Line(
            SECTION,
            f"one layer from a Hub on loopback, {order}",
            "pyarrow on the local files",
            "rows/s",
            figures[order],
            figures["pyarrow"],
            ">= 0.9",
        )
        for order in ("in order", "mixed")
    ]
    columns = [needed / 1e6] * repeats
    work = "bytes fetched, footers included"
    lines.append(Line(SECTION, work, "the columns' bytes", "MB", fetched, columns, "<= 1.05"))
    return [*lines, *_cold_start(repeats), *_growth(scratch, repeats)]


def _cold_start(repeats: int) -> list[Line]:
    """From a new process to the first batch, beside a process that does nothing but import torch.

    The environment that they get names the Hub.
    """
    seconds = alternate(
        {
            name: lambda program=program: subprocess.run(
                [sys.executable, "-c", program], check=True
            )
            for name, program in (("ours", _FIRST_BATCH), ("torch", "import torch"))
        },
        max(repeats, 9),
    )
    ours, torch_alone = seconds["ours"], seconds["torch"]
    more = statistics.median(mine - other for mine, other in zip(ours, torch_alone, strict=True))
    return [
        Line(
            SECTION,
            "a new process to the first batch of one layer",
            "import torch alone",
            "s",
            ours,
            torch_alone,
            note=f"{more:.2f} s more; aim: 0.5 s",
        )
    ]


_FIRST_BATCH = f"""
from llava_amber_activations import Activations
batches = Activations({REPO!r}).batches(layer={LAYER}, batch_size={BATCH}, shuffle=True)
batch = next(iter(batches))
batch["x"].sum(), batch["targets"].sum()
"""


def _growth(scratch: Path, repeats: int) -> list[Line]:
    """Rows a second at 1×, 4× and 16× rows, on the shapes of `growth.py`."""
    candidates = {}
    for shape in GROWN:
        repo = f"{REPO}-{shape.rows}"
        push(Ground(scratch).dataset(shape), repo)
        candidates[str(shape.rows)] = reader(open_layer(repo, LAYER), shuffle=True)
    seconds = alternate(candidates, repeats)
    figures = {rows: rates(int(rows), times) for rows, times in seconds.items()}
    first = str(GROWN[0].rows)
    return [
        Line(GROWTH, f"streaming, {rows} rows", f"{first} rows", "rows/s", rate, figures[first])
        for rows, rate in figures.items()
        if rows != first
    ]


def reader(layer: LayerStream, *, shuffle: bool) -> Callable[[], None]:
    """Return a pass over a layer's batches."""

    def run() -> None:
        for batch in activation_batches(layer, BATCH, shuffle=shuffle):
            touch(batch["x"])
            touch(batch["targets"])

    return run


def decode(shards: list[Path]) -> None:
    """Decode a layer's columns with pyarrow alone."""
    for path in shards:
        with pq.ParquetFile(path, memory_map=True) as file:
            for group in range(file.num_row_groups):
                file.read_row_group(group, columns=["sample", "position", *layer_names()])


def needed_bytes(path: Path) -> int:
    """Return the bytes of the columns that a layer's batches need."""
    metadata = pq.read_metadata(path)
    integers = ("sample", "id", "position", "token_id", "patch_row", "patch_col")
    names = {*integers, *layer_names()}
    return sum(
        column.total_compressed_size
        for number in range(metadata.num_row_groups)
        for index in range(metadata.num_columns)
        for column in [metadata.row_group(number).column(index)]
        if column.path_in_schema.partition(".")[0] in names
    )
