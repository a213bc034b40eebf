"""`statistics.safetensors`: its tensors, checked as they are read, and written.

    x_mean, x_std               float32 [n_layers, H]
    x_mean_norm                 float32 [n_layers]
    x_count                     int64 [n_layers]
    x_mean_norm_by_kind         float32 [n_layers, kinds]
    x_count_by_kind             int64 [n_layers, kinds]
    mlp_out_mean …              the same of mlp_out
    robust_x_mean …             all of these without outliers
    robust_x_rms_limit          float32 [n_layers], and robust_mlp_out_rms_limit

The standard deviation is the population's (divided by the number of rows), the norm Euclidean. The
kinds are those that the file's metadata names. A layer that the dataset does not hold, and the mean
of no rows, is NaN. Format 1.0 had means, deviations and mean norms over all rows, and no more.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file

from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.files.read_errors import reason_of
from llava_amber_activations.files.whole import written_whole
from llava_amber_activations.formats.dataset_folder import REMEDY, STATISTICS_FILE
from llava_amber_activations.formats.recipe import Recipe
from llava_amber_activations.formats.statistics import (
    COUNTED_KINDS,
    METADATA_KEY,
    ROBUST,
    statistics_metadata,
)
from llava_amber_activations.sources.source import Source

_VECTORS = ("x", "mlp_out")
_OF_1_0 = tuple(f"{kind}_{what}" for kind in _VECTORS for what in ("mean", "std", "mean_norm"))
_LIMIT = "rms_limit"


@dataclass(frozen=True)
class StatisticsFile:
    """What the file holds.

    Attributes:
        tensors: by their names; kinds are those of `COUNTED_KINDS`, whichever the file counted.
        is_robust: whether those without outliers are among them.
    """

    tensors: dict[str, torch.Tensor]
    is_robust: bool


def read_statistics_file(source: Source) -> StatisticsFile:
    """Read the file of a source that is open.

    Raises:
        ActivationsError: the source holds none, or it is damaged or of other sizes than its recipe
            says.
    """
    manifest = source.manifest
    if STATISTICS_FILE not in manifest.files:
        raise ActivationsError(f"{source.name} holds no {STATISTICS_FILE}: it has only features")
    damaged = f"{STATISTICS_FILE} of {source.name} is damaged"
    try:
        content = source.read_bytes(STATISTICS_FILE)
        tensors = load(content)
        kinds = _kinds_of(content)
    except (SafetensorError, ValueError, LookupError, TypeError) as error:
        raise ActivationsError(f"{damaged} ({reason_of(error)}): {REMEDY}") from None
    forms = _forms(manifest.recipe, len(kinds))
    is_newer = any(name in tensors for name in forms if name not in _OF_1_0)
    for name in forms if is_newer else _OF_1_0:
        dtype, shape = forms[name]
        found = tensors.get(name)
        if found is None:
            raise ActivationsError(f"{damaged} (it has no {name}): {REMEDY}")
        if found.dtype != dtype or found.shape != shape:
            raise ActivationsError(
                f"{damaged} ({name} is {found.dtype} {list(found.shape)}, not "
                f"{str(dtype).removeprefix('torch.')} {list(shape)}): {REMEDY}"
            )
    tensors |= _by_our_kinds(tensors, kinds) if is_newer else _counts(tensors, manifest.n_rows)
    return StatisticsFile(tensors, is_newer)


def _kinds_of(content: bytes) -> Sequence[str]:
    """Return the kinds that a file counts, the last of them those that are not known.

    Raises:
        ValueError: its metadata is no JSON, or names them wrongly.
        LookupError, TypeError: likewise.
    """
    size = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + size]).get("__metadata__", {})
    if METADATA_KEY not in metadata:
        return COUNTED_KINDS
    kinds = json.loads(metadata[METADATA_KEY])["kinds"]
    if not isinstance(kinds, list) or kinds[-1:] != [COUNTED_KINDS[-1]]:
        raise ValueError("its metadata names no kinds")
    return kinds


def _by_our_kinds(
    tensors: dict[str, torch.Tensor], kinds: Sequence[str]
) -> dict[str, torch.Tensor]:
    """Return what a file counted by its own kinds by those of this release.

    Kinds that an earlier release did not know have no rows; those that only a later one knows are
    unknown here.
    """
    if tuple(kinds) == COUNTED_KINDS:
        return {}
    unknown = len(COUNTED_KINDS) - 1
    places = torch.tensor(
        [COUNTED_KINDS.index(kind) if kind in COUNTED_KINDS else unknown for kind in kinds]
    )
    found = {}
    for vector in (f"{of}{kind}" for of in ("", ROBUST) for kind in _VECTORS):
        counts = tensors[f"{vector}_count_by_kind"]
        norms = tensors[f"{vector}_mean_norm_by_kind"]
        shape = len(counts), len(COUNTED_KINDS)
        # The mean of no rows is NaN, and adds nothing.
        sums = torch.where(counts > 0, norms.double() * counts, 0)
        of_all = torch.zeros(shape, dtype=torch.int64).index_add_(1, places, counts)
        totals = torch.zeros(shape, dtype=torch.float64).index_add_(1, places, sums)
        found[f"{vector}_count_by_kind"] = of_all
        found[f"{vector}_mean_norm_by_kind"] = (totals / of_all).float()
    return found


def _forms(recipe: Recipe, n_kinds: int) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Return dtype and shape of every tensor of the file, by its name."""
    layers, kinds = (recipe.n_layers,), (recipe.n_layers, n_kinds)
    dimensions = (recipe.n_layers, recipe.hidden_size)
    of = {
        "mean": (torch.float32, dimensions),
        "std": (torch.float32, dimensions),
        "mean_norm": (torch.float32, layers),
        "count": (torch.int64, layers),
        "mean_norm_by_kind": (torch.float32, kinds),
        "count_by_kind": (torch.int64, kinds),
        _LIMIT: (torch.float32, layers),
    }
    return {
        f"{robust}{vector}_{what}": form
        for robust in ("", ROBUST)
        for vector in _VECTORS
        for what, form in of.items()
        if robust or what != _LIMIT
    }


def _counts(tensors: dict[str, torch.Tensor], n_rows: int) -> dict[str, torch.Tensor]:
    """Return what format 1.0 did not write, as far as it is known: rows, of an unknown kind."""
    found = {}
    for kind in _VECTORS:
        norm = tensors[f"{kind}_mean_norm"]
        count = torch.where(norm.isnan(), 0, n_rows)
        none = torch.zeros(len(norm), len(COUNTED_KINDS) - 1, dtype=torch.int64)
        found[f"{kind}_count"] = count
        found[f"{kind}_count_by_kind"] = torch.cat([none, count[:, None]], dim=1)
        norms = torch.cat([none * torch.nan, norm[:, None]], dim=1)
        found[f"{kind}_mean_norm_by_kind"] = norms
    return found


def write_statistics(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write the tensors of the module's docstring into a dataset folder."""
    with written_whole(folder / STATISTICS_FILE) as partial:
        save_file(tensors, partial, metadata=statistics_metadata())
