"""The `samples` layout as something a dataset folder is made from."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from builder.pt_files import check_values, read_sample, sample_path
from builder.spans import spans
from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.schema import SAMPLE, Vectors

_SAMPLE_FILE = re.compile(r"sample_(\d{4,})\.pt")


def is_samples_layout(folder: Path) -> bool:
    """Whether a folder holds `sample_0000.pt` and so on."""
    return bool(_sample_numbers(folder))


def _sample_numbers(folder: Path) -> list[int]:
    found = (_SAMPLE_FILE.fullmatch(path.name) for path in folder.iterdir())
    return sorted(int(match[1]) for match in found if match)


@dataclass(frozen=True)
class SamplesContents:
    """A folder of the `samples` layout whose files fit together.

    Attributes:
        samples: number of each file, which becomes the row's `sample`.
        rows_of_samples: positions T of each file.
        layers: that every file holds.
    """

    folder: Path
    samples: tuple[int, ...]
    rows_of_samples: tuple[int, ...]
    layers: tuple[int, ...]
    width: int
    dtype: str

    @property
    def n_layers(self) -> int:
        """Layers that the model has at least."""
        return self.layers[-1] + 1

    def reader(self, layer: int | None) -> SamplesRows:
        """Open one layer of the files."""
        assert layer is not None
        return SamplesRows(self, layer)


class SamplesRows:
    """Reads rows of one layer across the sample files; files are mapped, not loaded."""

    def __init__(self, contents: SamplesContents, layer: int) -> None:
        self._contents = contents
        self._layer = layer
        self._starts = [0, *accumulate(contents.rows_of_samples)]

    def vectors(self, name: str, rows: range) -> Vectors:
        """Read the features of some rows: [rows, F]."""
        dtype = getattr(torch, self._contents.dtype)
        parts = []
        for index, start, stop in spans(self._starts, rows):
            path = sample_path(self._contents.folder, self._contents.samples[index])
            tensor = read_sample(path)[self._layer][start:stop]
            parts.append(tensor.to(dtype).numpy())
        return np.concatenate(parts)

    def leading(self, rows: range) -> dict[str, pa.Array]:
        """Return the number of the file that each row is from."""
        samples = np.array(self._contents.samples, dtype=np.int32)
        repeated = np.repeat(samples, self._contents.rows_of_samples)
        return {SAMPLE: pa.array(repeated[rows.start : rows.stop])}


def scan_samples(folder: Path) -> SamplesContents:
    """Look at every file of a folder and check that they fit together.

    Raises:
        ActivationsError: a file cannot be read, or files differ in their layers or widths.
    """
    numbers = _sample_numbers(folder)
    rows: list[int] = []
    layers: tuple[int, ...] = ()
    widths: set[int] = set()
    half = True
    for number in numbers:
        path = sample_path(folder, number)
        activations = read_sample(path)
        for tensor in activations.values():
            check_values(tensor, path)
        layers = layers or tuple(activations)
        widths |= {tensor.shape[1] for tensor in activations.values()}
        counts = {tensor.shape[0] for tensor in activations.values()}
        if tuple(activations) != layers or len(widths) > 1 or len(counts) > 1:
            raise ActivationsError(
                f"{path} does not fit the files before it: every file needs the layers "
                f"{layers[0]} to {layers[-1]}, all of one width and one number of positions"
            )
        rows.append(counts.pop())
        half = half and all(tensor.dtype == torch.float16 for tensor in activations.values())
    return SamplesContents(
        folder=folder,
        samples=tuple(numbers),
        rows_of_samples=tuple(rows),
        layers=layers,
        width=widths.pop(),
        dtype="float16" if half else "float32",
    )
