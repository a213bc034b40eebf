"""The statistics of a dataset folder, from the moments of its vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from builder.shards.moments import Moments
from builder.shards.row_sizes import least_rms
from builder.shards.vector_moments import VectorMoments
from llava_amber_activations.formats.layers import mlp_out_name, x_name
from llava_amber_activations.formats.statistics import COUNTED_KINDS, ROBUST

_VECTORS = (("x", x_name), ("mlp_out", mlp_out_name))


def statistics_of(
    moments: Mapping[str, VectorMoments], n_layers: int, width: int
) -> dict[str, torch.Tensor]:
    """Return the file's tensors; layers without moments are NaN, and have no rows."""
    tensors: dict[str, torch.Tensor] = {}
    for kind, name_of in _VECTORS:
        found = [moments.get(name_of(layer)) for layer in range(n_layers)]
        of_all = [None if each is None else each.whole for each in found]
        robust = [None if each is None else each.robust for each in found]
        limits = [np.nan if each is None else least_rms(each.outliers_from) for each in found]
        tensors |= _tensors(kind, of_all, width)
        tensors |= _tensors(f"{ROBUST}{kind}", robust, width)
        tensors[f"{ROBUST}{kind}_rms_limit"] = torch.tensor(limits, dtype=torch.float32)
    return tensors


def _tensors(of: str, moments: Sequence[Moments | None], width: int) -> dict[str, torch.Tensor]:
    n_layers, n_kinds = len(moments), len(COUNTED_KINDS)
    mean, std = np.full((2, n_layers, width), np.nan)
    norm = np.full(n_layers, np.nan)
    count = np.zeros(n_layers, dtype=np.int64)
    kind_norm = np.full((n_layers, n_kinds), np.nan)
    kind_count = np.zeros((n_layers, n_kinds), dtype=np.int64)
    for layer, found in enumerate(moments):
        if found is None:
            continue
        mean[layer], std[layer] = found.mean, found.std
        norm[layer], count[layer] = found.norm_sum / found.n, found.n
        kind_count[layer] = found.kind_n
        np.divide(found.kind_norm_sums, found.kind_n, out=kind_norm[layer], where=found.kind_n > 0)
    floats = {"mean": mean, "std": std, "mean_norm": norm, "mean_norm_by_kind": kind_norm}
    counts = {"count": count, "count_by_kind": kind_count}
    return {
        **{f"{of}_{what}": torch.from_numpy(values).float() for what, values in floats.items()},
        **{f"{of}_{what}": torch.from_numpy(values) for what, values in counts.items()},
    }
