"""The float types of vectors: their names in a recipe, in a dataset, in safetensors, in torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

DType = Literal["float16", "bfloat16", "float32"]

# Those of a dataset folder: `datasets` does not know bfloat16.
DATASET_DTYPES = ("float16", "float32")

# What safetensors calls them, and the row numbers.
SAFETENSORS_NAMES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32", "int32": "I32"}


def dataset_dtype(store_dtype: str) -> str:
    """Return the float type that holds a store's values exactly and that `datasets` knows.

    float16 stays; bfloat16 is exact in float32, whose zero bytes compress to nothing.
    """
    return "float16" if store_dtype == "float16" else "float32"


def torch_dtype(name: str) -> torch.dtype:
    """Return torch's own name of a float type."""
    import torch

    return {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}[name]
