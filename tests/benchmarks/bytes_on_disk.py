"""6 Bytes on the disk of a row, in every config, against raw float16 and the `.pt` layouts.

python tests/benchmarks/bytes_on_disk.py SCRATCH
"""

from __future__ import annotations

from pathlib import Path

from ground import BATCH, LAYER, Ground
from made_store import Shape
from measuring import Line, run_section

from builder.export import export

SECTION = "6 Bytes a row"
# One file of the original project's published samples: 31 vectors of 4096 float32.
PUBLISHED_SAMPLE = 31 * 4096 * 4


def measure(scratch: Path, repeats: int) -> list[Line]:
    """Count the bytes of files; nothing varies from one repeat to the next."""
    ground, shape = Ground(scratch), Shape()
    every = _size(ground.dataset(shape), "all_layers/*") / shape.rows
    own_splits = ground.dataset(shape, ("default",))
    one = _size(own_splits, f"data/L{LAYER}-*") / shape.rows
    default = _size(own_splits, "data/*") / shape.rows
    layers = _size(ground.layers(BATCH, shape), "L*/*") / shape.rows
    all_layers_pt = _size(ground.layers(BATCH, shape, "0-30"), "L*/*") / shape.rows
    few = ground.dataset(Shape(rows=64))
    samples_folder = scratch / "samples"
    export(few, samples_folder, layout="samples")
    samples = _size(samples_folder, "sample_*.pt") / 64
    raw_layer, raw_every = shape.layer_row_bytes, shape.row_bytes

    def line(work: str, other: str, ours: float, theirs: float, aim: str = "") -> Line:
        return Line(SECTION, work, other, "KiB", [ours / 1024], [theirs / 1024], aim)

    return [
        line("all_layers: 64 vectors", "raw float16", every, raw_every, "<= 0.88"),
        line("all_layers: 64 vectors", "the layers layout, all layers", every, all_layers_pt),
        line("all_layers: 64 vectors", "the samples layout (x alone)", every, samples),
        line(
            "all_layers: 64 vectors",
            "a published sample (31 x, float32)",
            every,
            PUBLISHED_SAMPLE,
            "<= 1",
        ),
        line("default, one layer: 17 vectors", "raw float16", one, raw_layer, "<= 0.88"),
        line("default, one layer: 17 vectors", "the layers layout", one, layers),
        line("default, all layers", "the layers layout, all layers", default, all_layers_pt),
    ]


def _size(folder: Path, pattern: str) -> int:
    return sum(path.stat().st_size for path in folder.glob(pattern) if path.is_file())


if __name__ == "__main__":
    run_section(measure, __doc__)
