"""Llamascopium's layout (OpenMOSS, tried with 2.0.0b34): what its `CachedActivationLoader` reads.

OUT/blocks.5.hook_resid_mid/chunk-00000000.safetensors
    activation [rows, H], tokens int64 [rows], mask and attention_mask bool [rows]

Every hook has the same number of chunks, and a chunk of every hook the same tokens. Chunks are of
one size: on several GPUs the loader takes a chunk for each, and takes them for equally long.
`mask` is true throughout: rows that are not wanted are left out instead, because on several GPUs
the loader refuses a mask that is not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from builder.handover.layout import Rows
from builder.handover.note import HandoverNote
from llava_amber_activations.formats.columns import TOKEN_ID
from llava_amber_activations.formats.dtypes import torch_dtype


class LlamascopiumLayout:
    """A folder a hook, a safetensors file a chunk. A chunk is held in memory while it fills."""

    equal = True
    last: tuple[str, ...] = ()

    def __init__(self, note: HandoverNote) -> None:
        self._note = note

    def files(self, chunk: int, n_chunks: int) -> list[str]:
        """Return the names of a chunk's files: one a hook."""
        return [f"{hook}/chunk-{chunk:08d}.safetensors" for hook in self._note.hooks]

    @contextmanager
    def open(self, paths: Sequence[Path], n_rows: int) -> Iterator[_Chunk]:
        """Fill a chunk, and write its files when it is full."""
        chunk = _Chunk(self._note, n_rows)
        yield chunk
        true = torch.ones(n_rows, dtype=torch.bool)
        for hook, path in zip(self._note.hooks, paths, strict=True):
            tensors = {
                "activation": chunk.vectors.pop(hook),
                "tokens": chunk.tokens,
                "mask": true,
                "attention_mask": true.clone(),
            }
            path.write_bytes(save(tensors))

    def last_contents(self, sizes: Sequence[int], kept: Iterator[Any]) -> Iterator[bytes]:
        """Yield nothing: the loader counts the chunks."""
        yield from ()

    def code(self, out: Path, n_rows: int) -> str:
        """Return lines that train a cross-layer transcoder with `train_clt`."""
        note = self._note
        return f"""\
import torch
from llamascopium import (
    ActivationFactoryActivationsSource, ActivationFactoryConfig, ActivationFactoryTarget,
    CLTConfig, InitializerConfig, TrainCLTSettings, TrainerConfig, train_clt,
)

hooks_in = [f"blocks.{{layer}}.{_suffix(note.x_hooks[0])}" for layer in {list(note.layers)}]
hooks_out = [f"blocks.{{layer}}.{_suffix(note.mlp_out_hooks[0])}" for layer in {list(note.layers)}]
device = "cuda" if torch.cuda.is_available() else "cpu"
source = ActivationFactoryActivationsSource(
    name="activations", path={str(out.resolve())!r}, device=device, dtype=torch.float32,
    num_workers=0, prefetch=None,
)
train_clt(TrainCLTSettings(
    sae=CLTConfig(
        hook_points_in=hooks_in, hook_points_out=hooks_out, d_model={note.recipe.hidden_size},
        expansion_factor=8, act_fn="topk", top_k=32, dtype=torch.float32, device=device,
    ),
    initializer=InitializerConfig(init_encoder_with_decoder_transpose=False),
    trainer=TrainerConfig(
        # One epoch, of which ten batches are used before the first step.
        total_training_tokens={n_rows}, initial_k=32, lr=4e-4, lr_warm_up_steps=1,
        amp_dtype=torch.float32,
        skip_metrics_calculation=True, log_frequency=10, n_checkpoints=0, exp_result_path="clt",
    ),
    activation_factory=ActivationFactoryConfig(
        sources=[source], target=ActivationFactoryTarget.ACTIVATIONS_1D,
        hook_points=hooks_in + hooks_out, batch_size={min(4096, max(1, n_rows // 32))},
    ),
    sae_name="clt", sae_series="clt", device_type=device,
))
"""


class _Chunk:
    """A chunk in memory.

    Attributes:
        vectors: by hook, [rows, H].
        tokens: int64 [rows].
    """

    def __init__(self, note: HandoverNote, n_rows: int) -> None:
        shape, dtype = (n_rows, note.recipe.hidden_size), torch_dtype(note.dtype)
        self.vectors = {hook: torch.empty(shape, dtype=dtype) for hook in note.hooks}
        self.tokens = torch.empty(n_rows, dtype=torch.int64)

    def write(self, at: int, rows: Rows) -> None:
        """Copy some rows to where they belong."""
        for hook, vectors in self.vectors.items():
            vectors[at : at + len(rows[hook])] = rows[hook]
        self.tokens[at : at + len(rows[TOKEN_ID])] = rows[TOKEN_ID]

    def kept(self) -> dict[str, torch.Tensor]:
        """Return nothing: the numbers of the rows are all."""
        return {}


def _suffix(hook: str) -> str:
    return hook.split(".", 2)[2]
