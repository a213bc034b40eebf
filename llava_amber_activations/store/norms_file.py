"""`norms.safetensors`, of a capture store and of the dataset folder that is built from it.

    weight     [n_layers, H] of the model's dtype
    bias       the same, where the norm has one

The metadata has one key, `norms`, whose value is a JSON object: `format_version`, `kind`, `eps` (of
each layer), `dtype` (what the model computes in), and what `tensor_file` says: the SHA-256 of each
tensor, and one over all of this. What the kinds are, `vectors.norms` says.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load

from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.files.read_errors import read_errors, reason_of
from llava_amber_activations.formats.dataset_folder import NORMS_FILE
from llava_amber_activations.formats.dtypes import DType
from llava_amber_activations.formats.recipe import Recipe
from llava_amber_activations.formats.version import check_format_version
from llava_amber_activations.parsing.checked_values import check_sha256
from llava_amber_activations.parsing.sealed_json import check_seal
from llava_amber_activations.parsing.typed_json import parse_json_object, read_object
from llava_amber_activations.store.tensor_file import tensor_sha256, write_tensors
from llava_amber_activations.vectors.norms import NormKind, Norms

_METADATA_KEY = "norms"
_WEIGHT, _BIAS = "weight", "bias"
_REMEDY = "run the same capture command again to make it anew"


@dataclass(frozen=True)
class _NormsHeader:
    """What the file says of itself."""

    kind: NormKind
    eps: tuple[float, ...]
    dtype: DType
    sha256: dict[str, str]

    def __post_init__(self) -> None:
        for name, digest in self.sha256.items():
            check_sha256(f"sha256 of {name[:40]}", digest)


def write_norms(folder: Path, norms: Norms) -> None:
    """Write the norms into a store, whole or not at all; equal norms give equal bytes."""
    tensors = {_WEIGHT: norms.weight, _BIAS: norms.bias}
    write_tensors(
        folder / NORMS_FILE,
        {name: tensor.cpu().contiguous() for name, tensor in tensors.items() if tensor is not None},
        _METADATA_KEY,
        {"kind": norms.kind, "eps": list(norms.eps), "dtype": norms.dtype},
    )


def read_store_norms(store: Path, recipe: Recipe) -> Norms | None:
    """Read the norms of a capture store; None where it has none.

    Raises:
        ActivationsError: they are damaged, or not of the recipe's model.
    """
    path = store / NORMS_FILE
    if not path.exists():
        return None
    with read_errors(path):
        content = path.read_bytes()
    return norms_of(content, recipe, path, f"delete it, and {_REMEDY}")


def norms_of(content: bytes, recipe: Recipe, where: object, remedy: str) -> Norms:
    """Return what the bytes of a norms file hold, every checksum of it compared.

    Args:
        recipe: of the store or the dataset that it lies in.
        where: the file, for messages.
        remedy: what to do about a damaged one.

    Raises:
        ActivationsError: it is damaged, or not of the recipe's model.
    """
    try:
        return _parsed(content, recipe)
    except ActivationsError as error:
        raise ActivationsError(f"{where} is damaged ({error}): {remedy}") from None


def _parsed(content: bytes, recipe: Recipe) -> Norms:
    try:
        tensors = load(content)
    except (SafetensorError, ValueError, LookupError) as error:
        raise ActivationsError(reason_of(error)) from None
    header = _header(content)
    about = read_object(_NormsHeader, header, "its header", "that of norms")
    if set(about.sha256) != set(tensors) or not {_WEIGHT} <= set(tensors) <= {_WEIGHT, _BIAS}:
        raise ActivationsError(f"it holds {', '.join(sorted(tensors)) or 'nothing'}")
    for name, tensor in tensors.items():
        if tensor_sha256(tensor) != about.sha256[name]:
            raise ActivationsError(f"{name} is not as it was written, its SHA-256 differs")
    norms = Norms(about.kind, about.eps, about.dtype, tensors[_WEIGHT], tensors.get(_BIAS))
    _check_is_of(norms, recipe)
    return norms


def _header(content: bytes) -> dict[str, Any]:
    """Return the JSON object in the metadata of a file that safetensors has read.

    https://github.com/huggingface/safetensors#format: the length of the header in eight bytes, the
    least significant first, and the header.
    """
    size = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + size]).get("__metadata__") or {}
    header = parse_json_object(metadata.get(_METADATA_KEY, "{}"), "its header")
    check_format_version(header.get("format_version"), "its header")
    check_seal(header, "its header", "it was changed", required=True)
    return header


def _check_is_of(norms: Norms, recipe: Recipe) -> None:
    """Check that norms are of a recipe's model.

    Raises:
        ActivationsError: they are not.
    """
    shape = torch.Size((recipe.n_layers, recipe.hidden_size))
    if norms.weight.shape != shape or norms.dtype != recipe.dtype:
        raise ActivationsError(
            f"it is of {norms.dtype} {list(norms.weight.shape)}, and the recipe of {recipe.dtype} "
            f"{list(shape)}"
        )
