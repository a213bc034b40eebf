"""The `samples` layout as something a dataset folder is made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from builder.contents.spans import spans
from builder.pt.names import find_samples
from builder.pt.values import check_values, read_sample
from llava_amber_activations.console.progress import progress_of
from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.formats.arrow_vectors import Vectors
from llava_amber_activations.formats.columns import SAMPLE
from llava_amber_activations.formats.dtypes import torch_dtype
from llava_amber_activations.parsing.safe_pt import check_pt, map_pt


@dataclass(frozen=True)
class SamplesContents:
    """A folder of the `samples` layout whose files fit together.

    Attributes:
        files: by their numbers, which become the rows' `sample`.
        rows_of_samples: positions T of each file.
        layers: that every file holds.
        n_layers: of the model.
        n_unchecked: files that have no checksums.
    """

    files: Mapping[int, Path]
    rows_of_samples: tuple[int, ...]
    layers: tuple[int, ...]
    n_layers: int
    width: int
    dtype: str
    n_unchecked: int

    def reader(self, layer: int | None) -> SamplesRows:
        """Open one layer of the files."""
        assert layer is not None
        return SamplesRows(self, layer)


class SamplesRows:
    """Reads rows of one layer across the sample files; files are mapped, not loaded."""

    def __init__(self, contents: SamplesContents, layer: int) -> None:
        self._contents = contents
        self._layer = layer
        self._paths = list(contents.files.values())
        self._starts = [0, *accumulate(contents.rows_of_samples)]

    def vectors(self, name: str, rows: range) -> Vectors:
        """Read the features of some rows: [rows, F]."""
        dtype = torch_dtype(self._contents.dtype)
        parts = []
        for index, start, stop in spans(self._starts, rows):
            tensor = read_sample(self._paths[index], map_pt)[self._layer][start:stop]
            parts.append(tensor.to(dtype).numpy())
        return np.concatenate(parts)

    def leading(self, rows: range) -> dict[str, pa.Array]:
        """Return the number of the file that each row is from."""
        samples = np.array(list(self._contents.files), dtype=np.int32)
        repeated = np.repeat(samples, self._contents.rows_of_samples)
        return {SAMPLE: pa.array(repeated[rows.start : rows.stop])}


def scan_samples(folder: Path, known_layers: int | None = None) -> SamplesContents:
    """Look at every file of a folder and check that they fit together.

    Args:
        known_layers: layers of the model; as many as the files show if None.

    Raises:
        ActivationsError: a file cannot be read, files differ in their layers or widths, or they
            are not of a model with `known_layers`.
    """
    files = find_samples(folder)
    rows: list[int] = []
    layers: tuple[int, ...] = ()
    widths: set[int] = set()
    half = True
    n_unchecked = 0
    for number, path in progress_of(files.items(), "read", unit="file"):
        n_unchecked += not check_pt(path)
        activations = read_sample(path, map_pt)
        for layer, tensor in activations.items():
            check_values(tensor[None], path, f"activations[{layer}]", number)
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
    n_layers = layers[-1] + 1
    if known_layers is not None and known_layers < n_layers:
        raise ActivationsError(
            f"{folder} holds layer {n_layers - 1}, so the model has more than {known_layers} "
            "layers: give its own --n-layers"
        )
    return SamplesContents(
        files=files,
        rows_of_samples=tuple(rows),
        layers=layers,
        n_layers=known_layers or n_layers,
        width=widths.pop(),
        dtype="float16" if half else "float32",
        n_unchecked=n_unchecked,
    )
