"""crosslayer-coding's layout (commit 9499108): what its `LocalActivationStore` reads.

OUT/chunk_0.h5         layer_0/inputs, layer_0/targets, …: [rows, H]; the targets are the same
                       layer's MLP output
OUT/metadata.json      num_layers, d_model, total_tokens, dtype, and what is exported
OUT/norm_stats.json    mean and std of each layer's inputs and targets, for its "mean_std"
OUT/index.bin          of each chunk its number (int32), its rows (int32) and its first row (int64);
                       without it the store finds nothing

Layers are numbered from 0 on, as its index does, also where only some are exported: `layers` in
metadata.json says which they are. A batch comes from one chunk, and what remains of a chunk is left
out, so that chunks are of one size.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from builder.handover.hdf5_disk import Hdf5Disk
from builder.handover.layout import Rows
from builder.handover.note import HandoverNote

_KINDS = ("inputs", "targets")
_POWERS = (1, 2)
_MANY_STEPS = 1000
_INDEX = np.dtype([("chunk", "<i4"), ("rows", "<i4"), ("first_row", "<i8")])


class CrosslayerCodingLayout:
    """An HDF5 file a chunk, of all layers."""

    equal = True
    last = ("metadata.json", "norm_stats.json", "index.bin")

    def __init__(self, note: HandoverNote) -> None:
        self._note = note

    def files(self, chunk: int, n_chunks: int) -> list[str]:
        """Return the name of a chunk's file."""
        return [f"chunk_{chunk}.h5"]

    @contextmanager
    def open(self, paths: Sequence[Path], n_rows: int) -> Iterator[_Chunk]:
        """Open a chunk's file."""
        (path,) = paths
        with path.open("w+b", buffering=0) as file:
            disk = Hdf5Disk(file, path)
            with h5py.File(disk, "w") as hdf5:
                yield _Chunk(hdf5, disk, self._note, n_rows)
            disk.check()

    def last_contents(self, sizes: Sequence[int], kept: Iterator[Any]) -> Iterator[bytes]:
        """Yield the store's metadata, the moments of what was exported, and the index."""
        note = self._note
        metadata = {
            "model_name": note.recipe.model or "unknown",
            "dataset": note.recipe.benchmark or "unknown",
            "num_layers": len(note.layers),
            "d_model": note.recipe.hidden_size,
            "dtype": note.dtype,
            "total_tokens": sum(sizes),
            "chunk_tokens": sizes[0],
            "layers": list(note.layers),
            "inputs": note.x_hooks,
            "targets": note.mlp_out_hooks,
        }
        yield json.dumps(metadata, indent=2).encode()
        yield json.dumps(_norm_stats(sum(sizes), kept)).encode()
        index = np.zeros(len(sizes), _INDEX)
        index["chunk"] = np.arange(len(sizes))
        index["rows"] = sizes
        index["first_row"] = np.cumsum([0, *sizes])[:-1]
        yield index.tobytes()

    def code(self, out: Path, n_rows: int) -> str:
        """Return lines that train a cross-layer transcoder with `CLTTrainer`."""
        note = self._note
        batch = min(4096, max(1, n_rows // 32))
        steps = n_rows // batch
        # In fewer steps, 4e-4 moves the loss by less than two batches differ.
        rate = "4e-4" if steps >= _MANY_STEPS else "4e-3"
        return f"""\
# pip install git+https://github.com/curt-tigges/crosslayer-coding@9499108
import torch
from clt.config import CLTConfig, TrainingConfig
from clt.training.trainer import CLTTrainer

CLTTrainer(
    CLTConfig(
        num_features={8 * note.recipe.hidden_size}, num_layers={len(note.layers)},
        d_model={note.recipe.hidden_size}, activation_fn="batchtopk", batchtopk_k=32,
        normalization_method="mean_std",
    ),
    TrainingConfig(
        # A rate for a try, of one epoch: so that the loss falls in these steps.
        learning_rate={rate}, training_steps={steps},
        train_batch_size_tokens={batch}, activation_path={str(out.resolve())!r},
        # Not its default, bfloat16, which trains no step at all, without a word.
        activation_dtype={note.dtype!r}, normalization_method="mean_std", log_interval=10,
        # batchtopk is sparse without it; it grows in each step, faster than the loss falls.
        apply_sparsity_penalty_to_batchtopk=False,
    ),
    log_dir="clt", device="cuda" if torch.cuda.is_available() else "cpu",
).train()
"""


class _Chunk:
    """A chunk's file, and the sums of what was written into it.

    Sums of float64 are exact enough here: of float16 values, whose squares are exact in it, and of
    any others as long as a dimension's mean is not millions of times its deviation.
    """

    def __init__(self, file: h5py.File, disk: Hdf5Disk, note: HandoverNote, n_rows: int) -> None:
        self._disk = disk
        self._hooks = dict(zip(_KINDS, (note.x_hooks, note.mlp_out_hooks), strict=True))
        width = note.recipe.hidden_size
        self._places = {
            (kind, number): file.create_dataset(
                f"layer_{number}/{kind}", (n_rows, width), note.dtype, track_times=False
            )
            for kind in _KINDS
            for number in range(len(note.layers))
        }
        self._sums = {
            _sum_name(kind, power): np.zeros((len(note.layers), width))
            for kind in _KINDS
            for power in _POWERS
        }

    def write(self, at: int, rows: Rows) -> None:
        """Write some rows, and add them to the sums."""
        for (kind, number), place in self._places.items():
            vectors = rows[self._hooks[kind][number]].numpy()
            place[at : at + len(vectors)] = vectors
            self._disk.check()
            values = vectors.astype(np.float64)
            self._sums[_sum_name(kind, 1)][number] += values.sum(axis=0)
            self._sums[_sum_name(kind, 2)][number] += np.einsum("rh,rh->h", values, values)

    def kept(self) -> dict[str, torch.Tensor]:
        """Return the sums of the values, and of their squares: float64 [layers, H] each."""
        return {name: torch.from_numpy(values) for name, values in self._sums.items()}


def _sum_name(kind: str, power: int) -> str:
    return f"{kind}_sum{power}"


def _norm_stats(n_rows: int, kept: Iterator[Mapping[str, torch.Tensor]]) -> dict[str, Any]:
    """Return what norm_stats.json holds; the deviation is the sample's, as the trainer's own is."""
    total: dict[str, torch.Tensor] = {}
    for sums in kept:
        for name in (_sum_name(kind, power) for kind in _KINDS for power in _POWERS):
            total[name] = sums[name] + total[name] if name in total else sums[name]
    stats: dict[str, Any] = {}
    for kind in _KINDS:
        mean = total[_sum_name(kind, 1)] / n_rows
        squares = (total[_sum_name(kind, 2)] - n_rows * mean**2).clamp_min(0)
        std = (squares / max(n_rows - 1, 1)).sqrt()
        for number in range(len(mean)):
            of_layer = {"mean": mean[number].tolist(), "std": std[number].tolist()}
            stats.setdefault(str(number), {})[kind] = of_layer
    return stats
