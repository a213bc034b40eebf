"""5 Export and import of the `layers` layout, against torch.save and torch.load of its tensors.

    python tests/benchmarks/pt_layouts.py SCRATCH

torch.save has the tensors in memory and leaves its files to the page cache; ours decodes them from
the shards, and has each file on the disk (fsync) before it is renamed. torch.load ends with tensors
in memory; ours writes a dataset folder out of them, which is to compress every byte.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from ground import BATCH, LAYER, Ground, layer_names
from made_store import Shape
from measuring import Line, alternate, rates, run_section, touch

from builder.export import export
from builder.import_pt import import_pt

SECTION = "5 Export, import"


def measure(scratch: Path, repeats: int) -> list[Line]:
    """Measure one layer of 1004 rows in files of 64."""
    ground, shape = Ground(scratch), Shape()
    dataset, layers = ground.dataset(shape), ground.layers(BATCH, shape)
    out = scratch / "out"
    x, *targets = (tensor[:, None] for tensor in ground.vectors(layer_names(), shape))

    def save() -> None:
        (out / "L5").mkdir(parents=True)
        for number, start in enumerate(range(0, shape.rows, BATCH)):
            rows = slice(start, start + BATCH)
            # Clones, or each file would hold the storage of all rows.
            part = [target[rows].clone() for target in targets]
            torch.save({"x": x[rows].clone()}, out / f"L5/batch_{number}_x.pt")
            value = {"y": part[0], "targets": part, "n_targets": len(part)}
            torch.save(value, out / f"L5/batch_{number}_y.pt")

    def load() -> None:
        for path in sorted(layers.glob("L*/*.pt")):
            loaded = torch.load(path, weights_only=True)
            for tensor in loaded.get("targets", [loaded.get("x")]):
                touch(tensor)

    seconds = alternate(
        {
            "export": lambda: export(dataset, out, layout="layers", layers=str(LAYER)),
            "save": save,
            "import": lambda: import_pt(layers, out),
            "load": load,
        },
        repeats,
        before=lambda: shutil.rmtree(out, ignore_errors=True),
    )
    shutil.rmtree(out, ignore_errors=True)
    size = shape.rows * shape.layer_row_bytes / 1e6
    figures = {name: rates(size, times) for name, times in seconds.items()}
    return [
        Line(
            SECTION,
            "export of one layer",
            "torch.save of its tensors",
            "MB/s",
            figures["export"],
            figures["save"],
            ">= 0.8",
            "decodes, and fsyncs every file",
        ),
        Line(
            SECTION,
            "import of one layer",
            "torch.load of its tensors",
            "MB/s",
            figures["import"],
            figures["load"],
            ">= 0.8",
            "writes Parquet, not the same work",
        ),
    ]


if __name__ == "__main__":
    run_section(measure, __doc__)
