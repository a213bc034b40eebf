"""8 Growth: rows a second of reading, building and streaming, at 1×, 4× and 16× rows.

    python tests/benchmarks/growth.py SCRATCH

On vectors of 1024 numbers, a quarter of the real width, so that 16× still fits a small disk.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import datasets
from ground import BATCH, LAYER, Ground
from made_store import Shape
from measuring import Line, alternate, rates, run_section, touch

from builder.build import build
from llava_amber_activations import activation_batches, load_activations, open_layer

SECTION = "8 Growth"
SHAPES = tuple(Shape(rows=rows, width=1024) for rows in (251, 1004, 4016))


def measure(scratch: Path, repeats: int) -> list[Line]:
    """Measure each way of reading and building at three sizes, in turn."""
    datasets.disable_progress_bars()
    ground = Ground(scratch)
    out = scratch / "grown"

    def reading(source: object) -> Callable[[], None]:
        def run() -> None:
            for batch in activation_batches(source, BATCH, shuffle=True):
                touch(batch["x"])
                touch(batch["targets"])

        return run

    def building(shape: Shape) -> Callable[[], object]:
        return lambda: build(ground.store(shape), out, configs=("all_layers",))

    ways: dict[str, Callable[[Shape], Callable[[], object]]] = {
        "reading, prepared": lambda shape: reading(
            load_activations(ground.dataset(shape), LAYER, cache_dir=scratch / "cache")
        ),
        "reading from the shards": lambda shape: reading(open_layer(ground.dataset(shape), LAYER)),
        "building all_layers": building,
    }
    lines = []
    for work, way in ways.items():
        candidates = {str(shape.rows): way(shape) for shape in SHAPES}
        seconds = alternate(
            candidates, repeats, before=lambda: shutil.rmtree(out, ignore_errors=True)
        )
        shutil.rmtree(out, ignore_errors=True)
        figures = {rows: rates(int(rows), times) for rows, times in seconds.items()}
        first = str(SHAPES[0].rows)
        lines += [
            Line(SECTION, f"{work}, {rows} rows", f"{first} rows", "rows/s", rate, figures[first])
            for rows, rate in figures.items()
            if rows != first
        ]
    return lines


if __name__ == "__main__":
    run_section(measure, __doc__)
