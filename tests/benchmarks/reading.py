"""1 Training batches: random order, `x` and 16 targets (or all 64 vectors) as tensors, touched.

    python tests/benchmarks/reading.py SCRATCH

Each candidate runs through one epoch, and one before the clock runs. Files of `.pt` are read in
random order, and their rows in the order that they have, which is the least that such a folder
costs. A safetensors file is mapped and its rows taken at random. The memory copy makes the same
tensors of a batch out of rows that lie in memory in that order already. A batch is whole before it
is touched: one tensor after the other would never leave the processor's cache.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import torch
from ground import BATCH, LAYER, MANY_ROWS, Ground, all_names, layer_names
from made_store import Shape
from measuring import Line, alternate, rates, run_section, touch, touched
from safetensors.torch import load_file

from llava_amber_activations import (
    Activations,
    activation_batches,
    load_activations,
    open_layer,
)

SECTION = "1 Training batches"


def measure(scratch: Path, repeats: int) -> list[Line]:
    """Measure one layer in batches of 64 and 4096 rows, and all layers in batches of 64."""
    datasets.disable_progress_bars()
    ground = Ground(scratch)
    return [
        *_one_layer(ground, Shape(), BATCH, repeats),
        *_one_layer(ground, MANY_ROWS, 4096, repeats),
        *_all_layers(ground, repeats),
        *_hooks(ground, repeats),
    ]


def _one_layer(ground: Ground, shape: Shape, batch_size: int, repeats: int) -> list[Line]:
    folder = ground.dataset(shape)
    prepared = load_activations(folder, layer=LAYER, cache_dir=ground.scratch / "cache")
    streamed = open_layer(folder, LAYER)
    pt = ground.layers(batch_size, shape) / f"L{LAYER}"
    safetensors = ground.safetensors(shape)
    memory_x, *targets = ground.vectors(layer_names(), shape)
    memory_targets = torch.stack(targets, dim=1)
    del targets
    formatted = prepared.with_format("torch", columns=["x", "targets"])

    def ours(source: object) -> Callable[[], None]:
        batches = activation_batches(source, batch_size, shuffle=True, seed=0)

        def run() -> None:
            for batch in batches:
                touch(batch["x"])
                touch(batch["targets"])

        return run

    def torch_load() -> None:
        for number in np.random.default_rng(0).permutation(len(list(pt.glob("*_x.pt")))):
            x = torch.load(pt / f"batch_{number}_x.pt", weights_only=True)
            y = torch.load(pt / f"batch_{number}_y.pt", weights_only=True)
            touch(x["x"])
            for target in y["targets"]:
                touch(target)

    def with_format() -> None:
        order = np.random.default_rng(0).permutation(shape.rows)
        for start in range(0, shape.rows, batch_size):
            batch = formatted[order[start : start + batch_size]]
            touch(batch["x"])
            touch(batch["targets"])

    def mapped() -> None:
        tensors = load_file(safetensors)
        order = torch.from_numpy(np.random.default_rng(0).permutation(shape.rows))
        for rows in order.split(batch_size):
            batch = [tensors[name].index_select(0, rows) for name in ("x", "targets")]
            for tensor in batch:
                touch(tensor)

    def copied() -> None:
        for start in range(0, shape.rows, batch_size):
            rows = slice(start, start + batch_size)
            batch = [memory_x[rows].clone(), memory_targets[rows].clone()]
            for tensor in batch:
                touch(tensor)

    seconds = alternate(
        {
            "ours": ours(prepared),
            "ours, from the shards": ours(streamed),
            "torch.load": torch_load,
            "with_format": with_format,
            "safetensors": mapped,
            "copy": copied,
        },
        repeats,
    )
    size = shape.rows * shape.layer_row_bytes / 1e6
    figures = {name: rates(size, times) for name, times in seconds.items()}
    work = f"one layer, batches of {batch_size}"
    lines = [
        Line(SECTION, work, other, "MB/s", figures["ours"], figures[name], aim, note)
        for name, other, aim, note in (
            ("torch.load", "torch.load of the layers layout", ">= 5", ""),
            ("with_format", 'with_format("torch")', ">= 15", "its tensors are float32"),
            ("safetensors", "a safetensors file, rows taken", "", ""),
            ("copy", "copying the bytes in memory", ">= 0.8", ""),
        )
    ]
    shards, other = figures["ours, from the shards"], figures["torch.load"]
    work = f"one layer, batches of {batch_size}, from the shards (nothing prepared)"
    return [*lines, Line(SECTION, work, "torch.load of the layers layout", "MB/s", shards, other)]


def _all_layers(ground: Ground, repeats: int) -> list[Line]:
    shape, names = Shape(), all_names()
    # load_dataset alone opens the folder; this project's part is the batches.
    prepared = datasets.load_dataset(
        str(ground.dataset(shape)), "all_layers", split="train", cache_dir=ground.scratch / "cache"
    )
    formatted = prepared.with_format("torch", columns=names)
    # What holds every vector that the layout has: each x, and the targets of L0 and of L15.
    pt = ground.layers(BATCH, shape, "0-30")
    files = [
        *(f"L{layer}/batch_%d_x.pt" for layer in range(31)),
        *(f"L{n}/batch_%d_y.pt" for n in (0, 15)),
    ]
    tensors = load_file(ground.all_safetensors())
    memory = ground.vectors(names)

    batches = activation_batches(prepared, BATCH, shuffle=True, seed=0)

    def ours() -> None:
        for batch in batches:
            for name in names:
                touch(batch[name])

    def torch_load() -> None:
        for number in np.random.default_rng(0).permutation(-(-shape.rows // BATCH)):
            for file in files:
                loaded = torch.load(pt / (file % number), weights_only=True)
                for tensor in loaded.get("targets", [loaded.get("x")]):
                    touch(tensor)

    def with_format() -> None:
        order = np.random.default_rng(0).permutation(shape.rows)
        for start in range(0, shape.rows, BATCH):
            batch = formatted[order[start : start + BATCH]]
            for name in names:
                touch(batch[name])

    def mapped() -> None:
        order = torch.from_numpy(np.random.default_rng(0).permutation(shape.rows))
        for rows in order.split(BATCH):
            batch = [tensors[name].index_select(0, rows) for name in names]
            for tensor in batch:
                touch(tensor)

    def copied() -> None:
        for start in range(0, shape.rows, BATCH):
            batch = [vectors[start : start + BATCH].clone() for vectors in memory]
            for tensor in batch:
                touch(tensor)

    seconds = alternate(
        {
            "ours": ours,
            "torch.load": torch_load,
            "with_format": with_format,
            "safetensors": mapped,
            "copy": copied,
        },
        repeats,
    )
    size = shape.rows * shape.row_bytes / 1e6
    figures = {name: rates(size, times) for name, times in seconds.items()}
    # 31 x and 31 mlp_out: the layout has neither the last x nor the first mlp_out.
    figures["torch.load"] = [62 / 64 * rate for rate in figures["torch.load"]]
    return [
        Line(
            SECTION,
            "all layers, batches of 64",
            other,
            "MB/s",
            figures["ours"],
            figures[name],
            aim,
            note,
        )
        for name, other, aim, note in (
            ("torch.load", "torch.load of the layers layout", ">= 5", "only the files it needs"),
            ("with_format", 'with_format("torch")', ">= 15", "its tensors are float32"),
            ("safetensors", "a safetensors file, rows taken", "", ""),
            ("copy", "copying the bytes in memory", ">= 0.8", ""),
        )
    ]


def _hooks(ground: Ground, repeats: int) -> list[Line]:
    """Measure same-layer pairs of every layer at once, under TransformerLens' names."""
    shape = Shape()
    acts = Activations(ground.dataset(shape))
    memory = dict(zip(all_names(), ground.vectors(all_names()), strict=True))
    options = {"batch_size": BATCH, "shuffle": True, "seed": 0}
    prepared = acts.hook_batches(prepared=True, cache_dir=ground.scratch / "cache", **options)
    from_shards = acts.hook_batches(**options)
    every = datasets.load_dataset(
        str(ground.dataset(shape)), "all_layers", split="train", cache_dir=ground.scratch / "cache"
    )
    columns = activation_batches(every, BATCH, shuffle=True, seed=0)
    layers = [
        acts.batches(layer, 1, first_target=0, **{**options, "shuffle": False})
        for layer in range(shape.n_layers)
    ]

    def zipped() -> None:
        """Put layers side by side that were opened one by one, in order."""
        for batches in zip(*layers, strict=True):
            for batch in batches:
                touch(batch["x"])
                touch(batch["targets"])

    def copied() -> None:
        for start in range(0, shape.rows, BATCH):
            batch = [vectors[start : start + BATCH].clone() for vectors in memory.values()]
            for tensor in batch:
                touch(tensor)

    seconds = alternate(
        {
            "prepared": touched(prepared),
            "shards": touched(from_shards),
            "all_layers": touched(columns),
            "zipped": zipped,
            "copy": copied,
        },
        repeats,
    )
    size = shape.rows * shape.row_bytes / 1e6
    figures = {name: rates(size, times) for name, times in seconds.items()}
    work = "hook_batches of 32 layers, batches of 64"
    return [
        Line(SECTION, f"{work}, {ours_is}", other, "MB/s", figures[mine], figures[name], aim)
        for mine, ours_is, name, other, aim in (
            ("prepared", "prepared", "all_layers", "activation_batches of all_layers", ">= 0.9"),
            ("prepared", "prepared", "copy", "copying the bytes in memory", ""),
            ("shards", "from the shards", "zipped", "a zip of 32 open_layer", ""),
            ("shards", "from the shards", "copy", "copying the bytes in memory", ""),
        )
    ]


if __name__ == "__main__":
    run_section(measure, __doc__)
