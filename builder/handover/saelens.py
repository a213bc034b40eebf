"""SAELens' layout (tried with 6.54): a data set as `Dataset.save_to_disk` of `datasets` leaves it.

OUT/data-00000-of-00003.arrow    a column a hook: Array2D((1, H)); token_ids: one int32 a row;
                                 sample and position, which SAELens leaves aside
OUT/dataset_info.json            its features
OUT/state.json                   its files, in order; without it `load_from_disk` finds nothing

One row is one token: a context of one (`context_size=1`), so that no row has to be thrown away.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import torch
from datasets import Array2D, Features, Value
from datasets import Sequence as ListOf

from builder.handover.layout import Rows
from builder.handover.note import HandoverNote
from llava_amber_activations.formats.columns import POSITION, SAMPLE, TOKEN_ID

_TOKEN_IDS = "token_ids"
_NUMBERS = (SAMPLE, POSITION)
# https://arrow.apache.org/docs/format/Columnar.html#ipc-streaming-format
_END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"


class SaeLensLayout:
    """One data set of all hooks, an Arrow file a chunk."""

    equal = False
    last = ("dataset_info.json", "state.json")

    def __init__(self, note: HandoverNote) -> None:
        self._note = note
        vector = Array2D((1, note.recipe.hidden_size), note.dtype)
        self._features = Features(
            {
                **dict.fromkeys(note.hooks, vector),
                _TOKEN_IDS: ListOf(Value("int32"), length=1),
                **dict.fromkeys(_NUMBERS, Value("int32")),
            }
        )

    def files(self, chunk: int, n_chunks: int) -> list[str]:
        """Return the name of a chunk's file."""
        return [f"data-{chunk:05d}-of-{n_chunks:05d}.arrow"]

    @contextmanager
    def open(self, paths: Sequence[Path], n_rows: int) -> Iterator[_Chunk]:
        """Open a chunk's file."""
        (path,) = paths
        schema = self._features.arrow_schema
        with path.open("wb") as file:
            file.write(schema.serialize())
            yield _Chunk(file, schema, self._note.hooks)
            file.write(_END_OF_STREAM)

    def last_contents(self, sizes: Sequence[int], kept: Iterator[Any]) -> Iterator[bytes]:
        """Yield what `load_from_disk` reads first."""
        names = [name for n in range(len(sizes)) for name in self.files(n, len(sizes))]
        about = json.dumps([self._note.to_json(), names]).encode()
        state: dict[str, Any] = {
            "_data_files": [{"filename": name} for name in names],
            "_fingerprint": hashlib.sha256(about).hexdigest()[:16],
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": None,
        }
        for value in ({"features": self._features.to_dict()}, state):
            yield json.dumps(value, indent=2).encode()

    def code(self, out: Path, n_rows: int) -> str:
        """Return lines that train a sparse autoencoder of the first layer's `x`."""
        note = self._note
        return f"""\
import torch
from datasets import load_from_disk
from sae_lens import LoggingConfig, SAETrainer
from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.config import SAETrainerConfig

hook, batch_size = {note.x_hooks[0]!r}, {min(4096, max(1, n_rows // 8))}
rows = load_from_disk({str(out.resolve())!r}).with_format("torch", [hook], dtype=torch.float32)

def batches():  # SAELens calls next(), and must never come to an end
    while True:
        for batch in rows.iter(batch_size, drop_last_batch=True):
            yield batch[hook][:, 0]

device = "cuda" if torch.cuda.is_available() else "cpu"
sae = TopKTrainingSAE(TopKTrainingSAEConfig(
    d_in={note.recipe.hidden_size}, d_sae={8 * note.recipe.hidden_size}, k=32, device=device,
    normalize_activations="expected_average_only_in",
))
cfg = SAETrainerConfig(
    total_training_samples=200 * batch_size, train_batch_size_samples=batch_size, device=device,
    lr=4e-4, lr_end=4e-5, lr_scheduler_name="constant", lr_warm_up_steps=0, lr_decay_steps=0,
    n_restart_cycles=1, adam_beta1=0.9, adam_beta2=0.999, autocast=False, n_checkpoints=0,
    checkpoint_path=None, save_final_checkpoint=False, dead_feature_window=1000,
    feature_sampling_window=2000, logger=LoggingConfig(log_to_wandb=False),
)
SAETrainer(cfg, sae, batches()).fit().save_inference_model("sae")
"""


class _Chunk:
    """A chunk's file, to which batches are appended."""

    def __init__(self, file: BinaryIO, schema: pa.Schema, hooks: Sequence[str]) -> None:
        self._file = file
        self._schema = schema
        self._hooks = hooks

    def write(self, at: int, rows: Rows) -> None:
        """Append some rows, which come one after the other."""
        tokens = pa.array(rows[TOKEN_ID].numpy())
        columns = [
            *(_array2d(rows[hook], self._schema.field(hook).type) for hook in self._hooks),
            pa.FixedSizeListArray.from_arrays(tokens, 1),
            *(pa.array(rows[name].numpy()) for name in _NUMBERS),
        ]
        batch = pa.RecordBatch.from_arrays(columns, schema=self._schema)
        self._file.write(batch.serialize())

    def kept(self) -> dict[str, torch.Tensor]:
        """Return nothing: the numbers of the rows are all."""
        return {}


def _array2d(vectors: torch.Tensor, type_: pa.DataType) -> pa.ExtensionArray:
    """Return [rows, H] as a column of `datasets`' Array2D((1, H)), without a copy."""
    n_rows, width = vectors.shape
    values = pa.array(vectors.contiguous().view(-1).numpy())
    inner = pa.ListArray.from_arrays(np.arange(n_rows + 1, dtype=np.int32) * width, values)
    outer = pa.ListArray.from_arrays(np.arange(n_rows + 1, dtype=np.int32), inner)
    return pa.ExtensionArray.from_storage(type_, outer)
