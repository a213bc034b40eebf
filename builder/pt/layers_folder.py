"""A folder of the `layers` layout as something a dataset folder is made from.

It is looked through first: which files there are, and the shapes that they say they have. Their
values are read once, batch after batch, when rows of them are written: then a batch's files are
checked, every layer's together.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from builder.contents.spans import first_rows, run_of
from builder.pt.layers_layout import BatchFiles, find_batches, read_targets, read_x, target_key
from builder.pt.tensors import changed_meanwhile, check_finite, common_dtype, equal_values
from llava_amber_activations.console.progress import progress_of
from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.formats.columns import (
    ID,
    IMAGE,
    KIND,
    NO_PATCH,
    PATCH_COL,
    PATCH_ROW,
    POSITION,
    SAMPLE,
    TOKEN_ID,
)
from llava_amber_activations.formats.dtypes import dataset_dtype
from llava_amber_activations.formats.layers import LayerWindow, mlp_out_name, x_name
from llava_amber_activations.parsing.safe_pt import check_pt, map_pt

_CHECKED_AT_ONCE = 4


@dataclass(frozen=True)
class LayersFolder:
    """A folder of the `layers` layout whose files fit together; their values are yet to be checked.

    Attributes:
        files: of each batch, of each layer that is there.
        shapes: (samples, positions) of each batch.
        n_layers: of the model.
        file_targets: the most targets of a layer in the files, padding of zeros left out.
        first_target: distance from a layer to its first target in the files, 0 or 1.
        n_targets: the most targets of a layer in its split, which begin at the next layer.
        mlp_outs: the layers whose MLP output is in the files.
        store_dtype: of the files' tensors, or what holds all of them exactly.
        n_unchecked: files that have no checksums.
    """

    files: Mapping[int, Sequence[BatchFiles]]
    shapes: tuple[tuple[int, int], ...]
    n_layers: int
    width: int
    file_targets: int
    first_target: int
    n_targets: int
    mlp_outs: tuple[int, ...]
    store_dtype: str
    n_unchecked: int

    @property
    def extra_columns(self) -> tuple[str, ...]:
        """None: a file holds nothing but vectors."""
        return ()

    @property
    def rows_of_samples(self) -> list[int]:
        """Rows of each sample, in order."""
        return [positions for samples, positions in self.shapes for _ in range(samples)]

    @property
    def dtype(self) -> str:
        """Float type of a dataset that holds them exactly."""
        return dataset_dtype(self.store_dtype)

    @property
    def part_rows(self) -> list[int]:
        """Rows of each batch."""
        return [samples * positions for samples, positions in self.shapes]

    @property
    def is_complete(self) -> bool:
        """Whether every layer that has targets in the files is there."""
        window = LayerWindow(self.n_layers, self.file_targets, self.first_target)
        return tuple(self.files) == tuple(window.sources)

    @property
    def split_layers(self) -> list[int]:
        """The layers that get a split: all that have a target after them."""
        return [layer for layer in self.files if layer < self.n_layers - 1]

    @property
    def all_names(self) -> list[str]:
        """Each vector that the folder holds, once."""
        return [*map(x_name, self.files), *map(mlp_out_name, self.mlp_outs)]

    def targets(self, layer: int) -> range:
        """Return the layers of the targets of a layer's split."""
        return LayerWindow(self.n_layers, self.n_targets).targets(layer)

    def open_part(self, number: int) -> dict[str, torch.Tensor]:
        """Check all files of a batch, and return each vector of it once: [rows, H].

        Every byte that has a checksum is held against it, every value is looked at, and the MLP
        output of a layer must be the same wherever it is a target.

        Raises:
            ActivationsError: a file is not as it was written, or no longer as it was looked at, a
                value is not finite, or layers contradict each other.
        """
        files = {layer: batches[number] for layer, batches in self.files.items()}
        with ThreadPoolExecutor(_CHECKED_AT_ONCE) as threads:
            # Computing a checksum leaves the interpreter to other threads.
            for _ in threads.map(check_pt, (path for f in files.values() for path in (f.x, f.y))):
                pass
        first_sample = int(self._first_samples[number])
        window = LayerWindow(self.n_layers, self.file_targets, self.first_target)
        vectors: dict[str, torch.Tensor] = {}
        seen: dict[int, tuple[int, torch.Tensor]] = {}
        for layer, batch in files.items():
            x = read_x(batch.x, map_pt)
            self._check_shape(x, batch.x, number)
            check_finite(x, batch.x, "x", first_sample)
            vectors[x_name(layer)] = x.reshape(-1, self.width)
            # What stands behind them in the file is a padding of zeros.
            held = window.targets(layer)
            targets = read_targets(batch.y, map_pt)[: len(held)]
            for index, (mlp_layer, target) in enumerate(zip(held, targets, strict=True)):
                self._check_shape(target, batch.y, number)
                earlier, expected = seen.setdefault(mlp_layer, (layer, target))
                is_same = earlier != layer and equal_values(target, expected)
                # What equals a finite one is finite.
                if not is_same:
                    check_finite(target, batch.y, target_key(index), first_sample)
                if not is_same and earlier != layer:
                    raise ActivationsError(
                        f"{batch.y.parents[1]}: batch {batch.number} of L{earlier} and L{layer} "
                        f"differ in the MLP output of layer {mlp_layer}: their samples are not the "
                        "same, or not in one order"
                    )
                vectors.setdefault(mlp_out_name(mlp_layer), target.reshape(-1, self.width))
        return vectors

    def _check_shape(self, tensor: torch.Tensor, path: Path, number: int) -> None:
        if tuple(tensor.shape) != (*self.shapes[number], self.width):
            raise changed_meanwhile(path)

    @cached_property
    def _first_samples(self) -> np.ndarray:
        """Number of each batch's first sample."""
        return first_rows([samples for samples, _ in self.shapes])

    @cached_property
    def _first_rows(self) -> np.ndarray:
        """Number of each sample's first row, ascending."""
        return first_rows(self.rows_of_samples)

    def leading(self, rows: range) -> dict[str, pa.Array]:
        """Return the leading columns: what the files do not say is made up as the card tells."""
        row = np.arange(rows.start, rows.stop)
        sample = run_of(self._first_rows, row)
        position = row - self._first_rows[sample]
        known = {SAMPLE: sample, ID: sample, POSITION: position}
        unknown = {TOKEN_ID: -1, PATCH_ROW: NO_PATCH, PATCH_COL: NO_PATCH}
        return {
            **{name: pa.array(numbers.astype(np.int32)) for name, numbers in known.items()},
            **{
                name: pa.array([number] * len(rows), pa.int32()) for name, number in unknown.items()
            },
            **{name: pa.array([""] * len(rows), pa.string()) for name in (IMAGE, KIND)},
        }


@dataclass(frozen=True)
class _LayerForm:
    """What the files of a layer say of their tensors."""

    shapes: tuple[tuple[int, int], ...]
    width: int
    n_targets: int
    dtypes: frozenset[torch.dtype]
    n_unchecked: int


def scan_layers(
    folder: Path, known_layers: int | None = None, first_target: int = 1
) -> LayersFolder:
    """Look through a folder and check that its files fit together; values are not read yet.

    Args:
        known_layers: layers of the model; the fewest that the files allow if None.
        first_target: 1 where a layer's first target is the next layer's MLP output, 0 where it is
            its own.

    Raises:
        ActivationsError: a file is none of this layout, a batch lacks one of its two files, layers
            differ in their batches, shapes or number of targets, or the files are not of a model
            with `known_layers`.
    """
    files = find_batches(folder)
    first = next(iter(files))
    forms: dict[int, _LayerForm] = {}
    for layer, batches in progress_of(files.items(), "look through", unit="layer"):
        forms[layer] = _form_of(folder, layer, batches)
        for field in ("shapes", "width"):
            ours, theirs = getattr(forms[layer], field), getattr(forms[first], field)
            if ours != theirs:
                raise ActivationsError(
                    f"{folder}: L{layer} has {field} {ours} and L{first} has {theirs}: "
                    "every layer needs the same samples and positions"
                )
    n_layers = max(layer + first_target + form.n_targets for layer, form in forms.items())
    if known_layers is not None:
        if known_layers < n_layers:
            raise ActivationsError(
                f"{folder} holds the MLP output of layer {n_layers - 1}, so the model has more "
                f"than {known_layers} layers: give its own --n-layers and --first-target"
            )
        n_layers = known_layers
    file_targets = max(form.n_targets for form in forms.values())
    window = LayerWindow(n_layers, file_targets, first_target)
    mlp_outs: set[int] = set()
    for layer, form in forms.items():
        targets = window.targets(layer)
        if form.n_targets != len(targets):
            raise ActivationsError(
                f"{folder}: L{layer} has {form.n_targets} targets, where the other layers let "
                f"{len(targets)} be expected in a model of {n_layers} layers"
            )
        mlp_outs.update(targets)
    return LayersFolder(
        files=files,
        shapes=forms[first].shapes,
        n_layers=n_layers,
        width=forms[first].width,
        file_targets=file_targets,
        first_target=first_target,
        n_targets=_split_targets(folder, list(files), mlp_outs, n_layers, file_targets),
        mlp_outs=tuple(sorted(mlp_outs)),
        store_dtype=common_dtype(dtype for form in forms.values() for dtype in form.dtypes),
        n_unchecked=sum(form.n_unchecked for form in forms.values()),
    )


def _form_of(folder: Path, layer: int, batches: Sequence[BatchFiles]) -> _LayerForm:
    shapes: list[tuple[int, int]] = []
    widths, counts, dtypes = set(), set(), set()
    n_targets = n_unchecked = 0
    for batch in batches:
        n_unchecked += sum(not check_pt(path, values=False) for path in (batch.x, batch.y))
        x, targets = read_x(batch.x, map_pt), read_targets(batch.y, map_pt)
        for number, target in enumerate(targets):
            if target.shape != x.shape:
                raise ActivationsError(
                    f"{target_key(number)} of {batch.y} has the shape {list(target.shape)} and its "
                    f"x {list(x.shape)}: they must be equal"
                )
        shapes.append((x.shape[0], x.shape[1]))
        widths.add(x.shape[2])
        counts.add(len(targets))
        dtypes |= {x.dtype, *(target.dtype for target in targets)}
        n_targets = max(n_targets, _without_padding(targets))
    if len(widths) > 1 or len(counts) > 1:
        raise ActivationsError(
            f"{folder}: the batches of L{layer} differ in width {sorted(widths)} "
            f"or in their number of targets {sorted(counts)}"
        )
    return _LayerForm(tuple(shapes), widths.pop(), n_targets, frozenset(dtypes), n_unchecked)


def _without_padding(targets: list[torch.Tensor]) -> int:
    """Return how many targets there are when zeros past the last layer are not counted."""
    n = len(targets)
    # The first sample tells, unless it is padding: no more is read here.
    while n > 1 and not any(sample.any() for sample in targets[n - 1]):
        n -= 1
    return n


def _split_targets(
    folder: Path, layers: Sequence[int], held: Container[int], n_layers: int, most: int
) -> int:
    """Return the most targets, from the next layer on, that are there for every layer.

    Files whose targets begin at the layer itself hold one fewer of them, unless the layers after
    it are there too.
    """
    sources = [layer for layer in layers if layer < n_layers - 1]
    if not sources:
        raise ActivationsError(
            f"{folder} holds only the last layer of a model of {n_layers}, and a layer's split "
            "holds the targets from the next layer on: add the files of other layers"
        )
    for n_targets in range(most, 0, -1):
        window = LayerWindow(n_layers, n_targets)
        if all(target in held for source in sources for target in window.targets(source)):
            return n_targets
    lacking = next(layer for layer in sources if layer + 1 not in held)
    raise ActivationsError(
        f"{folder} holds no MLP output of the layer after L{lacking}, and a layer's split holds "
        f"the targets from the next layer on: add the files of L{lacking + 1}, or take away those "
        f"of L{lacking}"
    )
