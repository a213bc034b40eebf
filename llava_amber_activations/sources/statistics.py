"""Statistics of a dataset, to normalise by, as they are read from `statistics.safetensors`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

import torch

from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.formats.layers import LayerWindow
from llava_amber_activations.formats.statistics import ROBUST
from llava_amber_activations.sources.source import Source, open_source
from llava_amber_activations.sources.statistics_file import read_statistics_file
from llava_amber_activations.vectors.normaliser import AffineMap, Normaliser


@dataclass(frozen=True)
class RowStatistics:
    """Statistics of some rows of every layer.

    Attributes:
        x_mean, x_std: of each dimension, float32 `[n_layers, H]`; NaN where a layer has no rows.
        x_mean_norm: mean Euclidean norm, float32 `[n_layers]`.
        x_count: rows, int64 `[n_layers]`.
        x_mean_norm_by_kind: mean norm of the rows of each kind of token, those of `KINDS` and last
            unknown: float32 `[n_layers, 6]`; NaN where there are none.
        x_count_by_kind: rows of each kind, int64 `[n_layers, 6]`.
        mlp_out_mean, mlp_out_std, mlp_out_mean_norm, mlp_out_count, mlp_out_mean_norm_by_kind,
            mlp_out_count_by_kind: the same of `mlp_out`.
    """

    x_mean: torch.Tensor
    x_std: torch.Tensor
    x_mean_norm: torch.Tensor
    x_count: torch.Tensor
    x_mean_norm_by_kind: torch.Tensor
    x_count_by_kind: torch.Tensor
    mlp_out_mean: torch.Tensor
    mlp_out_std: torch.Tensor
    mlp_out_mean_norm: torch.Tensor
    mlp_out_count: torch.Tensor
    mlp_out_mean_norm_by_kind: torch.Tensor
    mlp_out_count_by_kind: torch.Tensor


@dataclass(frozen=True)
class RobustStatistics(RowStatistics):
    """Statistics of the rows of every layer that are no outliers.

    A row is an outlier of one vector, the `x` or the `mlp_out` of one layer, where its root mean
    square (its norm divided by √H) is not below the limit, about ten times the median of all rows.

    Attributes:
        x_rms_limit, mlp_out_rms_limit: float32 `[n_layers]`: the least power of 2^(1/8) that is
            ten times the median or more; infinite where half of the rows are zeros.
    """

    x_rms_limit: torch.Tensor
    mlp_out_rms_limit: torch.Tensor


@dataclass(frozen=True)
class Statistics(RowStatistics):
    """Statistics of all rows of every layer, and, as `robust`, of those that are no outliers.

    In a dataset of an earlier release the counts are those of its rows, and all of them are of an
    unknown kind.

    Attributes:
        name: of the dataset.
        n_targets: the most targets of a layer that it was made with.
    """

    name: str = ""
    n_targets: int = 1
    _robust: RobustStatistics | None = field(default=None, repr=False)

    @property
    def robust(self) -> RobustStatistics:
        """The statistics of the rows that are no outliers.

        Raises:
            ActivationsError: an earlier release made the dataset, which did not tell them apart.
        """
        if self._robust is None:
            raise ActivationsError(
                f"the statistics of {self.name} are over all rows, outliers among them: build the "
                "dataset again with this release for those without, or ask for robust=False"
            )
        return self._robust

    def normaliser(
        self,
        layer: int,
        n_targets: int | None = None,
        first_target: int = 1,
        *,
        robust: bool = True,
        per_dimension: bool = False,
    ) -> Normaliser:
        """Return the map that brings a layer's `x`, and each of its targets, to mean 0 and size 1.

        It is of `x` as the dataset holds it, at the recipe's own `x_site`.

        Args:
            layer: whose `x` it is.
            n_targets: the most targets; as many as the dataset was made with if None.
            first_target: distance from the layer to its first target, 0 or 1.
            robust: by the rows that are no outliers; False: by all of them.
            per_dimension: each dimension by its own standard deviation, so that all become equally
                large. Otherwise one number a vector, which keeps directions, and so angles: then
                the mean of `‖v‖²` over the rows is H.

        Raises:
            ActivationsError: the layer has no targets, or the dataset does not hold it or one of
                them, or has no robust statistics.
        """
        n_layers = len(self.x_mean)
        most = self.n_targets if n_targets is None else n_targets
        targets = list(LayerWindow(n_layers, most, first_target).targets(layer))
        rows = self.robust if robust else self
        x = self._map("x", rows.x_mean, rows.x_std, [layer], per_dimension)
        return Normaliser(
            AffineMap(x.mean[0], x.scale[0]),
            self._map("mlp_out", rows.mlp_out_mean, rows.mlp_out_std, targets, per_dimension),
        )

    def _map(
        self,
        kind: str,
        means: torch.Tensor,
        stds: torch.Tensor,
        layers: list[int],
        per_dimension: bool,
    ) -> AffineMap:
        """Return the map of several layers' vectors: [B, layers, H]."""
        mean, std = means[layers], stds[layers]
        for layer, is_lacking in zip(layers, mean.isnan().any(dim=-1).tolist(), strict=True):
            if is_lacking:
                raise ActivationsError(
                    f"{self.name} holds no {kind} of layer {layer}, and so no statistics of it"
                )
        scale = std if per_dimension else std.double().square().mean(-1, keepdim=True).sqrt()
        # What never varies is 0 when its mean is taken off, whatever it is divided by.
        return AffineMap(mean, torch.where(scale > 0, scale, 1).float())


_ROW_FIELDS = tuple(each.name for each in dataclasses.fields(RowStatistics))
_ROBUST_FIELDS = tuple(each.name for each in dataclasses.fields(RobustStatistics))


def load_statistics(source: str | Path, revision: str | None = None) -> Statistics:
    """Read the statistics of a dataset folder, or of a dataset on the Hub.

    Args:
        source: a dataset folder, or a dataset's id on the Hub.
        revision: branch, tag or commit on the Hub.

    Raises:
        ActivationsError: the source is not a dataset of activations, or holds no statistics, or
            they are damaged or of other sizes than its recipe says.
    """
    return read_statistics(open_source(source, revision))


def read_statistics(source: Source) -> Statistics:
    """Read the statistics of a source that is open.

    Raises:
        ActivationsError: as `load_statistics`.
    """
    read = read_statistics_file(source)
    return Statistics(
        **{name: read.tensors[name] for name in _ROW_FIELDS},
        name=source.name,
        n_targets=source.manifest.n_targets,
        _robust=RobustStatistics(**{name: read.tensors[ROBUST + name] for name in _ROBUST_FIELDS})
        if read.is_robust
        else None,
    )
