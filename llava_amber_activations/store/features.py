"""A chunk's transcoder features: `features/features-00000.safetensors` of a capture store.

    features_00 …      [samples, F] of the store's dtype, of each layer that has a transcoder
    sample             int32 [samples], those of the chunk's samples that have rows

Its checksums are as a chunk's (`tensor_file`); the chunk's header names the one that covers them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.formats.columns import SAMPLE
from llava_amber_activations.store.tensor_file import Look, TensorFile, write_tensors

FEATURES_DIR = "features"
_METADATA_KEY = "features"
_FEATURES = "features_"
_REMEDY = (
    "delete it and the chunk of its number, and run the same capture command again to make them "
    "anew"
)


def features_path(store: Path, chunk: int) -> Path:
    """Return the path of a chunk's transcoder features."""
    return store / FEATURES_DIR / f"features-{chunk:05d}.safetensors"


def features_name(layer: int) -> str:
    """Name of a layer's features in a features file: `features_05`."""
    return f"{_FEATURES}{layer:02d}"


def write_features(path: Path, features: Mapping[int, torch.Tensor], sample: torch.Tensor) -> str:
    """Write a chunk's features, whole or not at all.

    Args:
        features: of each layer, [samples, F].
        sample: int32 [samples], those of the chunk's samples that have rows.

    Returns:
        The checksum for the chunk's header, which covers all of them.
    """
    tensors = {features_name(layer): tensor for layer, tensor in features.items()}
    return write_tensors(path, {**tensors, SAMPLE: sample}, _METADATA_KEY, {})


class FeaturesFile:
    """A chunk's features, open for reading.

    Attributes:
        sample: int32 [samples].
        layers: that have features, ascending.

    Raises:
        ActivationsError: the file is missing, truncated or not a features file.
    """

    def __init__(self, path: Path) -> None:
        try:
            self.file = TensorFile(path, _METADATA_KEY, _REMEDY)
        except FileNotFoundError:
            raise ActivationsError(f"{path} is missing: {_REMEDY}") from None
        numbers = [name.removeprefix(_FEATURES) for name in self.file.names - {SAMPLE}]
        if not numbers or not all(number.isdecimal() for number in numbers):
            raise self.file.damaged("it is not a file of features")
        self.layers = sorted(map(int, numbers))
        self.file.check_form(SAMPLE, "int32", None)
        self.sample = self.file.rows(SAMPLE, 0, 2**31)

    @property
    def width(self) -> int:
        """Number of features F."""
        return self.rows(self.layers[0], 0, 0).shape[1]

    def rows(self, layer: int, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Read samples `start` … `stop` of a layer's features: [samples, F]."""
        stop = len(self.sample) if stop is None else stop
        return self.file.rows(features_name(layer), start, stop)

    def check(self, samples: Sequence[int], dtype: str, sha256: str | None) -> None:
        """Check whose features they are, their dtype and shapes, and what the chunk says of them.

        Args:
            samples: of the chunk, those that have rows.
            dtype: of the store.
            sha256: from the chunk's header; None in format 1.0.

        Raises:
            ActivationsError: they are not those that the chunk was written with.
        """
        if sha256 is not None and self.file.identity != sha256:
            raise self.file.damaged("it is not the one that its chunk was written with")
        if self.file.is_sealed:
            self.file.check_tensor(SAMPLE)
        if self.sample.tolist() != list(samples):
            raise self.file.damaged("it has features of other samples than its chunk has rows of")
        for layer in self.layers:
            self.file.check_form(features_name(layer), dtype, len(samples), None)
        widths = {self.rows(layer, 0, 0).shape[1] for layer in self.layers}
        if len(widths) > 1:
            raise self.file.damaged(f"its layers have {sorted(widths)} features")

    def check_layer(self, layer: int, look: Look | None = None) -> None:
        """Check the bytes of a layer's features, where they have a checksum (from format 1.1 on).

        Args:
            look: is shown each piece on the way, as by `TensorFile.check_tensor`.

        Raises:
            ActivationsError: they are not as they were written.
        """
        self.file.check_tensor(features_name(layer), look)
