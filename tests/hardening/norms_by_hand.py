"""`mlp_in` by what `norms.safetensors` says, in the words of docs/format.md."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors import safe_open


def mlp_in_by_hand(path: Path, x: np.ndarray, layer: int) -> np.ndarray:
    """Return a layer's `mlp_in` of `x` [rows, H], with safetensors and numpy alone, in float64.

    Raises:
        Exception: whatever is wrong with the file.
    """
    with safe_open(path, framework="numpy") as file:
        about = json.loads(file.metadata()["norms"])
        weight = file.get_tensor("weight")[layer].astype(np.float64)
        names = list(file.keys())
        bias = file.get_tensor("bias")[layer].astype(np.float64) if "bias" in names else 0
    eps, kind, wide = about["eps"][layer], about["kind"], x.astype(np.float64)
    if kind == "layer_norm":
        wide = wide - wide.mean(axis=-1, keepdims=True)
    r = wide / np.sqrt(np.square(wide).mean(axis=-1, keepdims=True) + eps)
    by_kind = {"rms": weight * r, "rms_offset": (1 + weight) * r, "layer_norm": weight * r + bias}
    return by_kind[kind]
