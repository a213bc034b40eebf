"""What runs live: the model and what it is asked, and what a row of a batch is made of."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import torch

from capture.live.chunk_rows import Tensors
from capture.live.wanted import WantedVectors
from capture.model.load import CaptureModel
from capture.opening import OpenCapture
from llava_amber_activations.formats.columns import FLOATS, LEADING, NUMBERED
from llava_amber_activations.formats.dtypes import torch_dtype

# Of a recipe, what decides no row and no order: the last bits of values at most.
_DECIDES_NO_ROW = (
    *("device", "versions", "batch_size", "auto_batch_size", "compile", "reuse_prefix"),
    *("n_targets", "x_site", "layers", "transcoders_sha256", "pool", "dtype"),
)
# Of each of a model's parameters, so many numbers tell it from another's.
_NUMBERS_OF_A_PARAMETER = 16


@dataclass(frozen=True)
class LiveModel:
    """A model that runs live.

    Attributes:
        opened: it, and what it is asked.
        mix_rows: most rows that are mixed with one another.
        weights: names the weights, where the recipe does not.
        skipped: why samples could not be run, as far as they have been.
    """

    opened: OpenCapture
    mix_rows: int
    weights: str | None = None
    skipped: dict[int, str] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """Where the model is, and its rows."""
        return self.opened.model.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the rows' vectors."""
        return torch_dtype(self.opened.recipe.store_dtype)

    @property
    def columns(self) -> list[str]:
        """What is said of a row, beside its vectors."""
        extra = self.opened.recipe.extra_columns
        return [name for name in NUMBERED if name in LEADING or name in extra]

    def row_bytes(self, n_vectors: int) -> int:
        """Return the bytes of a row on the device: of so many vectors, and what is said of it."""
        width = self.opened.model.decoder.hidden_size
        return n_vectors * width * self.dtype.itemsize + 4 * len(self.columns)

    def empty(self, n_rows: int, wanted: WantedVectors, *, columns: bool) -> Tensors:
        """Return a batch's tensors for so many rows, of anything.

        Args:
            columns: whether a batch says which rows it holds.
        """
        device, width = self.device, self.opened.model.decoder.hidden_size
        tensors: Tensors = {}
        for name in self.columns if columns else ():
            dtype = torch.float32 if name in FLOATS else torch.int32
            tensors[name] = torch.empty(n_rows, dtype=dtype, device=device)
        for name in wanted.named:
            shape = n_rows, *wanted.shape(name, width)
            tensors[name] = torch.empty(shape, dtype=self.dtype, device=device)
        return tensors

    def digest(self) -> str:
        """Name the model, its weights, and what it is asked, in so far as it decides the rows."""
        recipe = self.opened.recipe.to_json()
        decides = {name: value for name, value in recipe.items() if name not in _DECIDES_NO_ROW}
        said = repr(("live", sorted(decides.items()), self.weights))
        return hashlib.sha256(said.encode()).hexdigest()[:16]


@torch.inference_mode()
def fingerprint(model: CaptureModel) -> str:
    """Name a loaded model's weights, by the first numbers of each of its parameters."""
    digest = hashlib.sha256()
    for name, parameter in model.whole.named_parameters():
        some = parameter.reshape(-1)[:_NUMBERS_OF_A_PARAMETER].float().cpu()
        digest.update(f"{name} {tuple(parameter.shape)}".encode() + some.numpy().tobytes())
    return digest.hexdigest()[:16]
