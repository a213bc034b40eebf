"""5 Export and import of the `layers` layout, against torch.save and torch.load of its tensors.

    python tests/benchmarks/pt_layouts.py SCRATCH

torch.save has the tensors in memory; ours decodes them from the shards, checks them,
and writes each file aside. Both have every file on the disk (fsync) before the next step: the bare
loop syncs each file and its folder, as ours does. Without fsync, files are left to the page cache.

The bare ParquetWriter reads the same `.pt` files by torch.load, which checks nothing, writes the
same columns with the same encodings into row groups of the same rows, and syncs the file. Ours
checks every byte and value of the `.pt` files, and writes a whole dataset folder, with checksums,
statistics, figures and card, and syncs it. torch.load alone ends with tensors in memory.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from ground import BATCH, LAYER, Ground, layer_names
from made_store import Shape
from measuring import Line, alternate, rates, run_section, touch

from builder.export import export
from builder.import_pt import import_pt
from llava_amber_activations.files.whole import sync
from llava_amber_activations.formats.arrow_vectors import targets_to_arrow, vectors_to_arrow
from llava_amber_activations.formats.columns import TARGETS, X

SECTION = "5 Export, import"
FEW, N_FEW = "5-8", 4
_VECTOR_LEAVES = (f"{X}.list.element", f"{TARGETS}.list.element.list.element")


def measure(scratch: Path, repeats: int, shape: Shape | None = None) -> list[Line]:
    """Measure one layer, and a few, of 1004 rows unless told otherwise, in files of 64."""
    shape = shape or Shape()
    ground = Ground(scratch)
    dataset, layers = ground.dataset(shape), ground.layers(BATCH, shape)
    out = scratch / "out"
    values = _values(ground, shape)

    def save(*, synced: bool) -> None:
        folder = out / f"L{LAYER}"
        folder.mkdir(parents=True)
        for name, value in values.items():
            # By its path: into an open file of Python's, torch writes at half the speed.
            torch.save(value, folder / name)
            if synced:
                sync(folder / name)
                sync(folder)

    def load() -> None:
        for path in sorted(layers.glob("L*/*.pt")):
            loaded = torch.load(path, weights_only=True)
            for tensor in loaded.get("targets", [loaded.get("x")]):
                touch(tensor)

    def write(of: str) -> Callable[[], None]:
        pt, imported = ground.layers(BATCH, shape, of), ground.imported(BATCH, shape, of)
        return lambda: _write_bare(pt, imported, out)

    few = ground.layers(BATCH, shape, FEW)
    candidates = {
        "export": lambda: export(dataset, out, layout="layers", layers=str(LAYER)),
        "save and fsync": lambda: save(synced=True),
        "save": lambda: save(synced=False),
        "import": lambda: import_pt(layers, out),
        "write": write(str(LAYER)),
        "load": load,
        "import of few": lambda: import_pt(few, out),
        "write few": write(FEW),
    }
    seconds = alternate(candidates, repeats, before=lambda: shutil.rmtree(out, ignore_errors=True))
    shutil.rmtree(out, ignore_errors=True)
    size = shape.rows * shape.layer_row_bytes / 1e6
    n_layers = {name: N_FEW if "few" in name else 1 for name in seconds}
    figures = {name: rates(n_layers[name] * size, times) for name, times in seconds.items()}
    bare = "a bare ParquetWriter, fsync"
    return [
        Line(SECTION, work, other, "MB/s", figures[ours], figures[name], aim, note)
        for work, ours, other, name, aim, note in (
            (
                *("export of one layer", "export"),
                *("torch.save of its tensors, fsync", "save and fsync"),
                *(">= 0.9", "decodes them from the shards"),
            ),
            (
                *("export of one layer", "export"),
                *("torch.save of its tensors", "save"),
                *("", "without fsync"),
            ),
            (
                *("import of one layer", "import"),
                *(bare, "write"),
                *(">= 0.9", "statistics and figures besides, as long as of all layers"),
            ),
            (
                *(f"import of {N_FEW} layers", "import of few"),
                *(bare, "write few"),
                *(">= 0.9", "statistics and figures besides"),
            ),
            (
                *("import of one layer", "import"),
                *("torch.load of its tensors", "load"),
                *("", "writes Parquet, not the same work"),
            ),
        )
    ]


def _values(ground: Ground, shape: Shape) -> dict[str, Any]:
    """Return what each file of the layer holds, by its name."""
    x, *targets = (tensor[:, None] for tensor in ground.vectors(layer_names(), shape))
    values: dict[str, Any] = {}
    for number, start in enumerate(range(0, shape.rows, BATCH)):
        rows = slice(start, start + BATCH)
        # Clones, or each file would hold the storage of all rows.
        part = [target[rows].clone() for target in targets]
        values[f"batch_{number}_x.pt"] = {"x": x[rows].clone()}
        values[f"batch_{number}_y.pt"] = {"y": part[0], "targets": part, "n_targets": len(part)}
    return values


def _write_bare(layers: Path, imported: Path, out: Path) -> None:
    """Write what an import wrote, from the same `.pt` files, a split after the other."""
    out.mkdir()
    for path in sorted(imported.glob("data/L*.parquet")):
        folder = layers / path.name.partition("-")[0]
        with pq.ParquetFile(path) as model:
            schema, names = model.schema_arrow, model.schema_arrow.names
            sizes = [model.metadata.row_group(n).num_rows for n in range(model.num_row_groups)]
            # The columns that the files do not say are as good as any.
            leading = model.read(columns=[name for name in names if name not in (X, TARGETS)])
        with pq.ParquetWriter(
            out / path.name,
            schema,
            compression="zstd",
            compression_level=1,
            use_dictionary=False,
            write_statistics=leading.column_names,
            column_encoding=dict.fromkeys(_VECTOR_LEAVES, "BYTE_STREAM_SPLIT"),
            write_page_checksum=True,
        ) as writer:
            start = 0
            for number, rows in enumerate(sizes):
                of_group = leading.slice(start, rows)
                columns = dict(zip(leading.column_names, of_group.columns, strict=True))
                table = pa.table({**columns, **_vectors(folder, number)}).select(names)
                writer.write_table(table.cast(schema), row_group_size=rows)
                start += rows
        sync(out / path.name)
        sync(out)


def _vectors(folder: Path, number: int) -> Mapping[str, pa.Array]:
    x = torch.load(folder / f"batch_{number}_x.pt", weights_only=True)["x"]
    targets = torch.load(folder / f"batch_{number}_y.pt", weights_only=True)["targets"]
    stacked = np.stack([target[:, 0].numpy() for target in targets], axis=1)
    return {X: vectors_to_arrow(x[:, 0].numpy()), TARGETS: targets_to_arrow(stacked)}


if __name__ == "__main__":
    run_section(measure, __doc__)
