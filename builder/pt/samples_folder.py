"""A folder of the `samples` layout as something a dataset folder is made from.

It is looked through first, and the values of its files are read once, file after file, when rows of
them are written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from builder.contents.spans import first_rows, run_of
from builder.pt.samples_layout import find_samples, layer_key, read_sample
from builder.pt.tensors import changed_meanwhile, check_finite, common_dtype
from llava_amber_activations.console.progress import progress_of
from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.formats.columns import SAMPLE
from llava_amber_activations.formats.dtypes import dataset_dtype
from llava_amber_activations.parsing.safe_pt import check_pt, map_pt
from llava_amber_activations.store.features import features_name


@dataclass(frozen=True)
class SamplesFolder:
    """A folder of the `samples` layout whose files fit together; their values are to be checked.

    Attributes:
        files: by their numbers, which become the rows' `sample`.
        rows_of_samples: positions T of each file.
        layers: that every file holds.
        n_layers: of the model.
        store_dtype: of the files' tensors, or what holds all of them exactly.
        n_unchecked: files that have no checksums.
    """

    files: Mapping[int, Path]
    rows_of_samples: tuple[int, ...]
    layers: tuple[int, ...]
    n_layers: int
    width: int
    store_dtype: str
    n_unchecked: int

    @property
    def dtype(self) -> str:
        """Float type of a dataset that holds them exactly."""
        return dataset_dtype(self.store_dtype)

    @property
    def extra_columns(self) -> tuple[str, ...]:
        """None: a file holds nothing but vectors."""
        return ()

    @property
    def part_rows(self) -> tuple[int, ...]:
        """Rows of each file."""
        return self.rows_of_samples

    def open_part(self, number: int) -> dict[str, torch.Tensor]:
        """Check a file, all of it, and return its features by their names: [rows, F].

        Raises:
            ActivationsError: it is not as it was written, or no longer as it was looked at, or a
                value is not finite.
        """
        sample = self._numbers[number]
        path = self.files[int(sample)]
        check_pt(path)
        activations = read_sample(path, map_pt)
        shapes = {tuple(tensor.shape) for tensor in activations.values()}
        if tuple(activations) != self.layers or shapes != {
            (self.rows_of_samples[number], self.width)
        }:
            raise changed_meanwhile(path)
        for layer, tensor in activations.items():
            check_finite(tensor[None], path, layer_key(layer), int(sample))
        return {features_name(layer): tensor for layer, tensor in activations.items()}

    @cached_property
    def _numbers(self) -> np.ndarray:
        return np.array(list(self.files), dtype=np.int32)

    @cached_property
    def _first_rows(self) -> np.ndarray:
        """Number of each file's first row, ascending."""
        return first_rows(self.rows_of_samples)

    def leading(self, rows: range) -> dict[str, pa.Array]:
        """Return the number of the file that each row is from."""
        row = np.arange(rows.start, rows.stop)
        file = run_of(self._first_rows, row)
        return {SAMPLE: pa.array(self._numbers[file])}


def scan_samples(folder: Path, known_layers: int | None = None) -> SamplesFolder:
    """Look through a folder and check that its files fit together; values are not read yet.

    Args:
        known_layers: layers of the model; as many as the files show if None.

    Raises:
        ActivationsError: a file is none of this layout, files differ in their layers or widths, or
            they are not of a model with `known_layers`.
    """
    files = find_samples(folder)
    rows: list[int] = []
    layers: tuple[int, ...] = ()
    widths: set[int] = set()
    dtypes: set[torch.dtype] = set()
    n_unchecked = 0
    for path in progress_of(files.values(), "look through", unit="file"):
        n_unchecked += not check_pt(path, values=False)
        activations = read_sample(path, map_pt)
        layers = layers or tuple(activations)
        widths |= {tensor.shape[1] for tensor in activations.values()}
        counts = {tensor.shape[0] for tensor in activations.values()}
        if tuple(activations) != layers or len(widths) > 1 or len(counts) > 1:
            raise ActivationsError(
                f"{path} does not fit the files before it: every file needs the layers "
                f"{layers[0]} to {layers[-1]}, all of one width and one number of positions"
            )
        rows.append(counts.pop())
        dtypes |= {tensor.dtype for tensor in activations.values()}
    n_layers = layers[-1] + 1
    if known_layers is not None and known_layers < n_layers:
        raise ActivationsError(
            f"{folder} holds layer {n_layers - 1}, so the model has more than {known_layers} "
            "layers: give its own --n-layers"
        )
    return SamplesFolder(
        files=files,
        rows_of_samples=tuple(rows),
        layers=layers,
        n_layers=known_layers or n_layers,
        width=widths.pop(),
        store_dtype=common_dtype(dtypes),
        n_unchecked=n_unchecked,
    )
