"""The undamaged files, made by the project itself, and what they say, read by others' code.

ROOT/
  model, images, transcoders          a tiny LLaVA of 4 layers, 16 wide
  queries.json, queries.jsonl         five queries on three pictures
  store                               a finished capture with features
  dataset                             built of it: default, all_layers, clt_features
  own                                 built of it without all_layers
  pt-layers, pt-samples               exported from it
  expected.pickle                     an Expected
"""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from photographs import save_photographs
from safetensors.numpy import load_file
from torch import nn

from builder.build import build
from builder.export import export
from capture.model.tiny_model import make_tiny_llava
from capture.run import capture
from capture.settings import CaptureSettings

N_LAYERS, WIDTH, N_TARGETS, N_FEATURES = 4, 16, 2, 24
QUERIES = (
    ("AMBER_1.jpg", "Describe this image."),
    ("AMBER_1.jpg", "Why?"),
    ("AMBER_2.jpg", "What is behind it, où que ce soit?"),
    ("AMBER_3.jpg", "Count."),
    ("AMBER_2.jpg", "Who took it?"),
)

Tensors = dict[str, np.ndarray]


@dataclass(frozen=True)
class Expected:
    """What the files say, read before anything was damaged.

    Attributes:
        chunks, features: tensors of each file of the store, by its name.
        tensors: those of all chunks, one after the other.
        features_of: of each layer, [samples, F].
        recipe, manifest: parsed JSON of the store and of each dataset folder.
        samples: lines of `samples.jsonl`, parsed.
        statistics: tensors.
        queries: the query file, parsed.
    """

    chunks: dict[str, Tensors]
    features: dict[str, Tensors]
    tensors: Tensors
    features_of: dict[int, np.ndarray]
    recipe: dict[str, Any]
    manifest: dict[str, dict[str, Any]]
    samples: list[dict[str, Any]]
    statistics: Tensors
    queries: list[dict[str, Any]]

    def vectors(self, layer: int) -> tuple[np.ndarray, np.ndarray]:
        """Return a layer's x [rows, H] and targets [rows, n, H]."""
        last = min(layer + N_TARGETS, N_LAYERS - 1)
        targets = [self.tensors[f"mlp_out_{k:02d}"] for k in range(layer + 1, last + 1)]
        return self.tensors[f"x_{layer:02d}"], np.stack(targets, axis=1)


def settings_of(root: Path, store: Path) -> CaptureSettings:
    """Return what the store was captured with, and is gone on with."""
    return CaptureSettings(
        model=str(root / "model"),
        dataset=root / "queries.json",
        image_dir=root / "images",
        output_dir=store,
        n_targets=N_TARGETS,
        positions="all",
        transcoders=root / "transcoders",
        chunk_samples=2,
        batch_size=2,
    )


def make_originals(root: Path) -> None:
    """Make everything that the docstring of this module names."""
    make_tiny_llava(root / "model", n_layers=N_LAYERS, hidden_size=WIDTH)
    (root / "images").mkdir()
    save_photographs(root / "images", 3)
    _write_queries(root)
    _write_transcoders(root / "transcoders")
    capture(settings_of(root, root / "store"), device=torch.device("cpu"))
    build(root / "store", root / "dataset", max_shard_size="12KB")
    build(root / "store", root / "own", configs=("default",), max_shard_size="12KB")
    export(root / "dataset", root / "pt-layers", layout="layers", batch_size=2)
    export(root / "dataset", root / "pt-samples", layout="samples")
    (root / "expected.pickle").write_bytes(pickle.dumps(_expected(root)))


def _write_queries(root: Path) -> None:
    entries = [
        {"id": 101 + number, "image": image, "query": query}
        for number, (image, query) in enumerate(QUERIES)
    ]
    (root / "queries.json").write_text(json.dumps(entries, indent=2), encoding="utf-8")
    lines = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
    (root / "queries.jsonl").write_text(lines, encoding="utf-8")


def _write_transcoders(folder: Path) -> None:
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    for layer in range(N_LAYERS - 1):
        encoder = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, N_FEATURES))
        state = {
            f"enc.{name}": torch.randn(tensor.shape, generator=generator)
            for name, tensor in encoder.state_dict().items()
        }
        torch.save({"state_dict": state}, folder / f"transcoder_L{layer}.pt")


def _expected(root: Path) -> Expected:
    chunks = {path.name: load_file(path) for path in sorted((root / "store/chunks").iterdir())}
    features = {path.name: load_file(path) for path in sorted((root / "store/features").iterdir())}
    lines = (root / "store/samples.jsonl").read_text(encoding="utf-8").splitlines()
    names = next(iter(chunks.values()))
    return Expected(
        chunks=chunks,
        features=features,
        tensors={name: np.concatenate([each[name] for each in chunks.values()]) for name in names},
        features_of={
            layer: np.concatenate([each[f"features_{layer:02d}"] for each in features.values()])
            for layer in range(N_LAYERS - 1)
        },
        recipe=json.loads((root / "store/capture.json").read_bytes()),
        manifest={
            name: json.loads((root / name / "manifest.json").read_bytes())
            for name in ("dataset", "own")
        },
        samples=[json.loads(line) for line in lines],
        statistics=load_file(root / "dataset/statistics.safetensors"),
        queries=json.loads((root / "queries.json").read_bytes()),
    )


def dataset_problem(folder: Path, expected: Expected, all_layers: bool = True) -> str | None:
    """Compare a dataset folder, read by pyarrow alone, with what was captured; None if equal."""
    tensors, samples = expected.tensors, expected.samples
    for layer in range(N_LAYERS - 1):
        table = _split(folder, f"data/L{layer}-*.parquet")
        x, targets = expected.vectors(layer)
        wanted = {"x": x, "targets": targets}
        for name, values in wanted.items():
            if not _same(_values(table, name), values):
                return f"{name} of L{layer} differs"
        for name in ("sample", "position", "token_id"):
            if not _same(table[name].to_numpy(), tensors[name]):
                return f"{name} of L{layer} differs"
        for name in ("id", "image"):
            if table[name].to_pylist() != [samples[s][name] for s in tensors["sample"]]:
                return f"{name} of L{layer} differs"
        features = _values(_split(folder, f"clt_features/L{layer}-*.parquet"), "features")
        if not _same(features, expected.features_of[layer]):
            return f"features of L{layer} differ"
    if all_layers:
        table = _split(folder, "all_layers/train-*.parquet")
        for name, values in tensors.items():
            if name.startswith(("x_", "mlp_out_")) and not _same(_values(table, name), values):
                return f"{name} of all_layers differs"
    statistics = load_file(folder / "statistics.safetensors")
    means = np.stack([tensors[f"x_{k:02d}"].mean(0, dtype=np.float64) for k in range(N_LAYERS)])
    if not np.allclose(statistics["x_mean"], means, rtol=1e-4, atol=1e-5):
        return "x_mean of the statistics differs"
    return None


def _split(folder: Path, pattern: str) -> Any:
    import pyarrow as pa

    return pa.concat_tables([pq.ParquetFile(path).read() for path in sorted(folder.glob(pattern))])


def _values(table: Any, name: str) -> np.ndarray:
    return np.array(table[name].to_pylist(), dtype=np.float32)


def _same(first: np.ndarray, second: np.ndarray) -> bool:
    return first.shape == second.shape and bool((first == second).all())


def pt_values(path: Path) -> dict[str, np.ndarray]:
    """Return every tensor of a `.pt` file as torch alone reads it, its checksums checked.

    Raises:
        Exception: whatever is wrong with it.
    """
    content = path.read_bytes()
    if content.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(content)) as file:
            if file.testzip() is not None:
                raise ValueError("a checksum of the zip is wrong")
    found: dict[str, np.ndarray] = {}

    def collect(value: Any, name: str) -> None:
        if isinstance(value, torch.Tensor):
            found[name] = value.detach().float().numpy()
        elif isinstance(value, dict):
            for key, item in value.items():
                collect(item, f"{name}/{key}")
        elif isinstance(value, (list, tuple)):
            for number, item in enumerate(value):
                collect(item, f"{name}/{number}")

    collect(torch.load(io.BytesIO(content), weights_only=True), "")
    return found
