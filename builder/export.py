"""Writing the `.pt` layouts out of a dataset folder, or of a repo on the Hub."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tqdm import tqdm

from builder.pt_files import EXPORT_FILE, sample_path, save_pt, x_path, y_path
from builder.sample_blocks import Sample, feature_samples, layer_samples, x_samples
from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.files import is_empty_or_missing, parse_json_object, write_json
from llava_amber_activations.folder import ALL_LAYERS, CLT_FEATURES, DEFAULT_CONFIG
from llava_amber_activations.layer_rows import LayerView
from llava_amber_activations.layers import LayerWindow, parse_layers
from llava_amber_activations.schema import Vectors
from llava_amber_activations.source import Source, open_source

Layout = Literal["layers", "samples"]
DEFAULT_BATCH_SIZE = 64


@dataclass(frozen=True)
class ExportResult:
    """What was written: files in all, how many of them just now, and what they hold."""

    n_files: int
    n_written: int
    contents: str


def export(
    source: str | Path,
    out: Path,
    *,
    layout: Layout,
    layers: str | None = None,
    n_targets: int | None = None,
    first_target: int = 1,
    batch_size: int = DEFAULT_BATCH_SIZE,
    pad_targets: bool = False,
    revision: str | None = None,
) -> ExportResult:
    """Export a dataset to `.pt` files; run again after an interruption, it writes what is missing.

    Args:
        source: a dataset folder, or a dataset's id on the Hub.
        layout: `layers` writes `x` and targets, `samples` writes `clt_features` where the dataset
            has them and `x` where it does not.
        layers: such as `0-30`; all that the dataset has if None.
        n_targets: the most targets of a layer; as many as the dataset was made with if None.
        first_target: 1 starts the targets at L+1, 0 at L itself.
        batch_size: most samples of a batch file.
        pad_targets: append zero tensors up to `n_targets`, as the first capture script did.

    Raises:
        ActivationsError: the source or `out` cannot be used for this.
    """
    opened = open_source(source, revision)
    available = _available_layers(opened, layout, first_target)
    chosen = parse_layers(layers, available) if layers else available
    most = n_targets or opened.manifest.n_targets
    _adopt(
        out,
        {
            "format": layout,
            "layers": list(chosen),
            "n_targets": most,
            "first_target": first_target,
            "batch_size": batch_size,
            "pad_targets": pad_targets,
            "recipe": opened.manifest.recipe.to_json(),
        },
    )
    if layout == "samples":
        return _export_samples(opened, out, chosen)
    n_files = n_written = 0
    for layer in tqdm(chosen, unit=" layers", desc="export"):
        view = LayerView(layer, most, first_target)
        files, written = _export_layer(opened, out, view, batch_size, most if pad_targets else 0)
        n_files, n_written = n_files + files, n_written + written
    return ExportResult(n_files, n_written, "x and targets")


def _available_layers(source: Source, layout: Layout, first_target: int) -> tuple[int, ...]:
    manifest = source.manifest
    if layout == "samples" and CLT_FEATURES in manifest.configs:
        return tuple(int(split[1:]) for split in manifest.splits(CLT_FEATURES))
    if ALL_LAYERS in manifest.configs:
        window = LayerWindow(manifest.recipe.n_layers, 1, first_target)
        return tuple(window.sources)
    layers = tuple(int(split[1:]) for split in manifest.splits(DEFAULT_CONFIG))
    if not layers:
        raise ActivationsError(f"{source.name} has no x and targets: export it as --format samples")
    return layers


def _adopt(out: Path, parameters: dict[str, Any]) -> None:
    """Begin an export folder, or check that it was begun with the same parameters."""
    path = out / EXPORT_FILE
    if not path.exists():
        if not is_empty_or_missing(out):
            raise ActivationsError(f"{out} already holds something: give a new or an empty folder")
        write_json(path, parameters)
        return
    begun = parse_json_object(path.read_bytes(), path)
    different = [key for key in parameters if begun.get(key) != parameters[key]]
    if different:
        raise ActivationsError(
            f"{out} holds an export with another {', '.join(different)}: give a new folder"
        )


def _export_layer(
    source: Source, out: Path, view: LayerView, batch_size: int, pad_to: int
) -> tuple[int, int]:
    """Write a layer's batch files; return how many there are and how many were written."""
    n_batches = n_written = 0
    for number, batch in enumerate(_batches(layer_samples(source, view), batch_size)):
        n_batches += 1
        paths = x_path(out, view.layer, number), y_path(out, view.layer, number)
        if all(path.exists() for path in paths):
            continue
        n_written += 1
        targets = [
            torch.from_numpy(np.stack([sample.vectors[k] for sample in batch]))
            for k in range(1, len(batch[0].vectors))
        ]
        targets += [torch.zeros_like(targets[0]) for _ in range(pad_to - len(targets))]
        save_pt(paths[0], {"x": torch.from_numpy(np.stack([s.vectors[0] for s in batch]))})
        save_pt(paths[1], {"y": targets[0], "targets": targets, "n_targets": len(targets)})
    return 2 * n_batches, 2 * n_written


def _batches(samples: Iterator[Sample], batch_size: int) -> Iterator[list[Sample]]:
    """Group consecutive samples of equal length; nothing is padded."""
    batch: list[Sample] = []
    for sample in samples:
        if batch and (len(batch) == batch_size or len(sample) != len(batch[0])):
            yield batch
            batch = []
        batch.append(sample)
    if batch:
        yield batch


def _export_samples(source: Source, out: Path, layers: Sequence[int]) -> ExportResult:
    n_files = n_written = 0
    if CLT_FEATURES in source.manifest.configs:
        samples, contents = feature_samples(source, layers), "transcoder features"
    else:
        samples, contents = x_samples(source, layers), "x"
    for sample in tqdm(samples, total=None, unit=" samples", desc="export"):
        n_files += 1
        path = sample_path(out, sample.number)
        if path.exists():
            continue
        n_written += 1
        activations = {
            layer: torch.from_numpy(_squeezed(vectors))
            for layer, vectors in zip(layers, sample.vectors, strict=True)
        }
        save_pt(path, {"activations": activations})
    return ExportResult(n_files, n_written, contents)


def _squeezed(vectors: Vectors) -> Vectors:
    """Return [H] for a sample of one position and [T, H] for more, in memory of its own."""
    return np.array(vectors[0] if len(vectors) == 1 else vectors)
