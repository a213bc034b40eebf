"""Features of trained transcoders: `relu(enc(x))` of every layer, pooled over a sample's rows.

    DIR/transcoder_L0.pt …   {'state_dict': {'enc.0.weight': [H], 'enc.0.bias': [H],      LayerNorm
                                             'enc.1.weight': [F, H], 'enc.1.bias': [F],   Linear
                                             'dec.…': …}}

as the original project's trainer writes them; keys may stand behind `_orig_mod.`, which a compiled
module adds. Only the encoder is read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional

from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.files.checksums import files_sha256
from llava_amber_activations.formats.layers import layers_text
from llava_amber_activations.parsing.safe_pt import floats_of, load_pt

_FILE = re.compile(r"transcoder_L([0-9]+)\.pt")
_KEYS = ("enc.0.weight", "enc.0.bias", "enc.1.weight", "enc.1.bias")


@dataclass(frozen=True)
class Encoder:
    """One layer's encoder: LayerNorm's weight and bias [H], Linear's weight [F, H] and bias [F]."""

    norm_weight: torch.Tensor
    norm_bias: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Return `relu(enc(x))` of [rows, H]: [rows, F] in float32."""
        width = (x.shape[1],)
        normed = functional.layer_norm(x.float(), width, self.norm_weight, self.norm_bias)
        return functional.relu(functional.linear(normed, self.weight, self.bias))


def load_encoders(
    folder: Path,
    n_layers: int,
    hidden_size: int,
    device: torch.device,
    kept: Sequence[int] | None = None,
) -> dict[int, Encoder]:
    """Load the encoder of every kept layer that a folder has a checkpoint of.

    Args:
        kept: layers whose `x` is kept, of which features are made; all if None.

    Raises:
        ActivationsError: there is none of a kept layer, one cannot be read or would execute code,
            does not fit the model, or they differ in their number of features.
    """
    paths = _checkpoints(folder)
    if not paths:
        raise ActivationsError(f"{folder} holds no transcoder_L*.pt: give the trainer's folder")
    if max(paths) >= n_layers:
        raise ActivationsError(
            f"{folder} has a transcoder of layer {max(paths)}, and the model {n_layers} layers"
        )
    kept = range(n_layers) if kept is None else kept
    if not set(paths) & set(kept):
        raise ActivationsError(
            f"{folder} has transcoders of the layers {layers_text(paths)}, and none of those "
            f"that are kept ({layers_text(kept)}): keep theirs too, with --layers"
        )
    encoders = {
        layer: _load(path, hidden_size, device) for layer, path in paths.items() if layer in kept
    }
    sizes = {encoder.weight.shape[0] for encoder in encoders.values()}
    if len(sizes) > 1:
        raise ActivationsError(
            f"the transcoders in {folder} have {sorted(sizes)} features: all need as many"
        )
    return encoders


def checkpoints_sha256(folder: Path | None) -> str | None:
    """Return one checksum of all checkpoints in a folder; None where none are wanted."""
    if folder is None:
        return None
    return files_sha256(folder, folder.glob("transcoder_L*.pt"))


def _checkpoints(folder: Path) -> dict[int, Path]:
    """Return the checkpoints of a folder by their layers, ascending."""
    found: dict[int, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        match = _FILE.fullmatch(path.name)
        if match and found.setdefault(int(match[1]), path) != path:
            raise ActivationsError(
                f"{folder} has {found[int(match[1])].name} and {path.name}, two names of one "
                "layer: keep one of them"
            )
    return dict(sorted(found.items()))


def _load(path: Path, hidden_size: int, device: torch.device) -> Encoder:
    state = load_pt(path)
    state = state.get("state_dict", state) if isinstance(state, dict) else {}
    named = state.items() if isinstance(state, dict) else ()
    tensors = {str(name).removeprefix("_orig_mod."): tensor for name, tensor in named}
    missing = [key for key in _KEYS if not isinstance(tensors.get(key), torch.Tensor)]
    if missing:
        raise ActivationsError(f"{path} lacks {missing[0]}: it is not a transcoder's checkpoint")
    weights = [floats_of(tensors[key], path, key) for key in _KEYS]
    # Copies: what is computed does not change with the file.
    encoder = Encoder(*(each.to(device, torch.float32, copy=True) for each in weights))
    n_features = len(encoder.weight) if encoder.weight.ndim else 0
    shapes = ((hidden_size,), (hidden_size,), (n_features, hidden_size), (n_features,))
    for key, shape in zip(_KEYS, shapes, strict=True):
        if tensors[key].shape != shape:
            raise ActivationsError(
                f"{key} of {path} has the shape {list(tensors[key].shape)}, not {list(shape)}: "
                "it was trained for another model"
            )
    return encoder


def pool(features: torch.Tensor, element: torch.Tensor, n_elements: int, how: str) -> torch.Tensor:
    """Pool rows into elements.

    Args:
        features: [rows, F].
        element: int64 [rows], ascending: whose row each one is.
        how: `max`, `mean` or `last` of an element's rows.

    Returns:
        [n_elements, F]; zeros for an element without rows.
    """
    pooled = features.new_zeros(n_elements, features.shape[1])
    if how == "last":
        # Only the last rows: which of several writes to one place stays is not promised.
        is_last = torch.ones_like(element, dtype=torch.bool)
        is_last[:-1] = element[1:] != element[:-1]
        pooled[element[is_last]] = features[is_last]
        return pooled
    index = element[:, None].expand_as(features)
    reduce = {"max": "amax", "mean": "mean"}[how]
    return pooled.scatter_reduce(0, index, features, reduce, include_self=False)
