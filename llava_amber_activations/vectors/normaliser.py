"""Bringing vectors to mean 0 and size 1, and back: affine maps of `x` and of the targets."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.formats.columns import TARGETS, X


@dataclass(frozen=True)
class AffineMap:
    """`(vectors - mean) / scale`, and its inverse.

    It is computed in float32, or in float64 where the vectors are; what comes out is of the
    vectors' own dtype, and on their device.

    Attributes:
        mean: float32 `[H]`, or `[n, H]` for vectors `[B, n, H]`.
        scale: float32, `[1]` or `[n, 1]`: one number a vector; or of the shape of `mean`.
    """

    mean: torch.Tensor
    scale: torch.Tensor

    def __call__(self, vectors: torch.Tensor) -> torch.Tensor:
        """Normalise vectors: `[B, H]`, or `[B, n, H]`.

        Raises:
            ActivationsError: they are of another shape than the map.
        """
        mean, scale, exact = self._fitted(vectors)
        return (exact - mean).div_(scale).to(vectors.dtype)

    def inverse(self, vectors: torch.Tensor) -> torch.Tensor:
        """Undo it: what the map made of some vectors gives them back, to rounding.

        Raises:
            ActivationsError: they are of another shape than the map.
        """
        mean, scale, exact = self._fitted(vectors)
        return (exact * scale).add_(mean).to(vectors.dtype)

    def to(self, device: torch.device | str) -> AffineMap:
        """Return the map on a device, so that no call has to carry it there."""
        return AffineMap(self.mean.to(device), self.scale.to(device))

    def _fitted(self, vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return mean and scale where the vectors are, and the vectors as they are computed on."""
        if vectors.shape[-self.mean.dim() :] != self.mean.shape:
            raise ActivationsError(
                f"vectors of the shape {list(vectors.shape)} do not end in "
                f"{list(self.mean.shape)}, which these statistics are for: ask for the layer and "
                "the targets that the vectors are of"
            )
        dtype = torch.promote_types(vectors.dtype, torch.float32)
        mean, scale = (each.to(vectors.device, dtype) for each in (self.mean, self.scale))
        return mean, scale, vectors.to(dtype)


@dataclass(frozen=True)
class Normaliser:
    """What brings one layer's `x` and its targets to mean 0 and size 1.

    Attributes:
        x: of vectors `[B, H]`.
        targets: of vectors `[B, n, H]`, each target by its own mean and scale.
    """

    x: AffineMap
    targets: AffineMap

    def __call__(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return a batch whose `x` and `targets` are normalised; the rest of it as it is.

        Raises:
            ActivationsError: the batch is of another number of targets, or of another width.
        """
        return {**batch, X: self.x(batch[X]), TARGETS: self.targets(batch[TARGETS])}

    def to(self, device: torch.device | str) -> Normaliser:
        """Return the normaliser on a device."""
        return dataclasses.replace(self, x=self.x.to(device), targets=self.targets.to(device))
