"""Looking through a folder of the `layers` layout: whether its files are whole and fit together."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from builder.pt.layers_layout import LayersContents
from builder.pt.names import BatchFiles, find_batches
from builder.pt.values import check_values, read_targets, read_x
from llava_amber_activations.console.progress import progress_of
from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.formats.layers import LayerWindow
from llava_amber_activations.parsing.safe_pt import check_pt, map_pt


@dataclass(frozen=True)
class _LayerScan:
    shapes: tuple[tuple[int, int], ...]
    width: int
    n_targets: int
    half: bool
    n_unchecked: int


def scan_layers(
    folder: Path, known_layers: int | None = None, first_target: int = 1
) -> LayersContents:
    """Look at every file of a folder and check that they fit together.

    Args:
        known_layers: layers of the model; the fewest that the files allow if None.
        first_target: 1 where a layer's first target is the next layer's MLP output, 0 where it is
            its own.

    Raises:
        ActivationsError: a file cannot be read, a batch lacks one of its two files, layers differ
            in their batches, shapes, number of targets, or in a target that they share, or the
            files are not of a model with `known_layers`.
    """
    files = find_batches(folder)
    first = next(iter(files))
    scans = {}
    for layer, batches in progress_of(files.items(), "read", unit="layer"):
        scans[layer] = _scan_layer(folder, layer, batches)
        for field in ("shapes", "width"):
            ours, theirs = getattr(scans[layer], field), getattr(scans[first], field)
            if ours != theirs:
                raise ActivationsError(
                    f"{folder}: L{layer} has {field} {ours} and L{first} has {theirs}: "
                    "every layer needs the same samples and positions"
                )
    n_layers = max(layer + first_target + scan.n_targets for layer, scan in scans.items())
    if known_layers is not None:
        if known_layers < n_layers:
            raise ActivationsError(
                f"{folder} holds the MLP output of layer {n_layers - 1}, so the model has more "
                f"than {known_layers} layers: give its own --n-layers and --first-target"
            )
        n_layers = known_layers
    file_targets = max(scan.n_targets for scan in scans.values())
    window = LayerWindow(n_layers, file_targets, first_target)
    holders: dict[int, int] = {}
    for layer, scan in scans.items():
        targets = window.targets(layer)
        if scan.n_targets != len(targets):
            raise ActivationsError(
                f"{folder}: L{layer} has {scan.n_targets} targets, where the other layers let "
                f"{len(targets)} be expected in a model of {n_layers} layers"
            )
        # Of several, the nearest layer: ascending, the last.
        holders |= dict.fromkeys(targets, layer)
    for batch in progress_of(range(len(files[first])), "compare", unit="batch file"):
        _check_shared_targets(folder, files, batch, scans, first_target)
    return LayersContents(
        files=files,
        shapes=scans[first].shapes,
        n_layers=n_layers,
        width=scans[first].width,
        file_targets=file_targets,
        first_target=first_target,
        n_targets=_split_targets(folder, list(files), holders, n_layers, file_targets),
        holders=dict(sorted(holders.items())),
        dtype="float16" if all(scan.half for scan in scans.values()) else "float32",
        n_unchecked=sum(scan.n_unchecked for scan in scans.values()),
    )


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


def _check_shared_targets(
    folder: Path,
    files: Mapping[int, Sequence[BatchFiles]],
    batch: int,
    scans: Mapping[int, _LayerScan],
    first_target: int,
) -> None:
    """Check that the MLP output of a layer is the same wherever it is a target."""
    seen: dict[int, tuple[int, torch.Tensor]] = {}
    for layer, scan in scans.items():
        targets = read_targets(files[layer][batch].y, map_pt)[: scan.n_targets]
        for number, target in enumerate(targets, start=layer + first_target):
            earlier, expected = seen.setdefault(number, (layer, target))
            if earlier != layer and not _equal(target, expected):
                raise ActivationsError(
                    f"{folder}: batch {files[layer][batch].number} of L{earlier} and L{layer} "
                    f"differ in the MLP output of layer {number}: their samples are not the same, "
                    "or not in one order"
                )


def _equal(first: torch.Tensor, second: torch.Tensor) -> bool:
    if first.dtype != second.dtype:
        # Exact: float32 holds every value of the other two.
        return torch.equal(first.float(), second.float())
    return torch.equal(first, second)


def _scan_layer(folder: Path, layer: int, batches: Sequence[BatchFiles]) -> _LayerScan:
    shapes: list[tuple[int, int]] = []
    widths, counts, dtypes = set(), set(), set()
    n_targets = n_unchecked = n_samples = 0
    for batch in batches:
        n_unchecked += sum(not check_pt(path) for path in (batch.x, batch.y))
        x, targets = read_x(batch.x, map_pt), read_targets(batch.y, map_pt)
        for number, target in enumerate(targets):
            if target.shape != x.shape:
                raise ActivationsError(
                    f"targets[{number}] of {batch.y} has the shape {list(target.shape)} and its x "
                    f"{list(x.shape)}: they must be equal"
                )
        check_values(x, batch.x, "x", n_samples)
        for number, target in enumerate(targets):
            check_values(target, batch.y, f"targets[{number}]", n_samples)
        shapes.append((x.shape[0], x.shape[1]))
        n_samples += x.shape[0]
        widths.add(x.shape[2])
        counts.add(len(targets))
        dtypes |= {x.dtype, *(target.dtype for target in targets)}
        n_targets = max(n_targets, _without_padding(targets))
    if len(widths) > 1 or len(counts) > 1:
        raise ActivationsError(
            f"{folder}: the batches of L{layer} differ in width {sorted(widths)} "
            f"or in their number of targets {sorted(counts)}"
        )
    half = dtypes == {torch.float16}
    return _LayerScan(tuple(shapes), widths.pop(), n_targets, half, n_unchecked)


def _without_padding(targets: list[torch.Tensor]) -> int:
    """Return how many targets there are when zeros past the last layer are not counted."""
    n = len(targets)
    while n > 1 and not targets[n - 1].any():
        n -= 1
    return n
