"""What the sections measure on: a store, its dataset folder, and the same rows in other layouts.

Everything is made once in the scratch folder, and found there by the next section.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from made_store import Shape, make_store
from safetensors.torch import save_file

from builder.build import build
from builder.export import export
from builder.import_pt import import_pt
from llava_amber_activations.store.chunk import Chunk

LAYER = 5
# AMBER, one row a sample.
WHOLE = Shape()
MANY_ROWS = Shape(rows=4096, n_layers=32)
BATCH = 64


@dataclass(frozen=True)
class Ground:
    """Paths below the scratch folder."""

    scratch: Path

    def store(self, shape: Shape = WHOLE) -> Path:
        """A finished store of drawn values."""
        name = f"store-{shape.rows}x{shape.width}"
        return self._once(name, lambda folder: make_store(folder, shape))

    def dataset(self, shape: Shape = WHOLE, configs: tuple[str, ...] = ("all_layers",)) -> Path:
        """Its dataset folder."""
        name = f"dataset-{shape.rows}x{shape.width}-{'-'.join(configs)}"
        return self._once(name, lambda folder: build(self.store(shape), folder, configs=configs))

    def layers(self, batch_size: int, shape: Shape = WHOLE, layers: str = str(LAYER)) -> Path:
        """Layers in the `layers` layout."""
        name = f"layers-{shape.rows}x{shape.width}-{layers}-{batch_size}"
        return self._once(
            name,
            lambda folder: export(
                self.dataset(shape), folder, layout="layers", layers=layers, batch_size=batch_size
            ),
        )

    def imported(self, batch_size: int, shape: Shape = WHOLE, layers: str = str(LAYER)) -> Path:
        """What the `layers` layout of some layers is imported as."""
        name = f"imported-{shape.rows}x{shape.width}-{layers}-{batch_size}"
        pt = self.layers(batch_size, shape, layers)
        return self._once(name, lambda folder: import_pt(pt, folder))

    def vectors(self, names: list[str], shape: Shape = WHOLE) -> list[torch.Tensor]:
        """Vectors of every row, in memory: [rows, H] each."""
        chunks = [Chunk(path) for path in sorted((self.store(shape) / "chunks").iterdir())]
        return [torch.cat([chunk.rows(name) for chunk in chunks]) for name in names]

    def safetensors(self, shape: Shape = WHOLE) -> Path:
        """One safetensors file of a layer: x [rows, H] and targets [rows, 16, H]."""

        def make(path: Path) -> None:
            x, *targets = self.vectors(layer_names(), shape)
            save_file({"x": x, "targets": torch.stack(targets, dim=1)}, path)

        return self._once(f"layer-{shape.rows}x{shape.width}.safetensors", make)

    def all_safetensors(self) -> Path:
        """One safetensors file of all 64 vectors."""

        def make(path: Path) -> None:
            names = all_names()
            save_file(dict(zip(names, self.vectors(names), strict=True)), path)

        return self._once("all.safetensors", make)

    def _once(self, name: str, make: Callable[[Path], object]) -> Path:
        path = self.scratch / name
        if not path.exists():
            partial = self.scratch / f"{name}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            make(partial)
            partial.rename(path)
        return path


def layer_names(layer: int = LAYER) -> list[str]:
    """Names of a layer's vectors: `x` and 16 targets."""
    return [f"x_{layer:02d}", *(f"mlp_out_{layer + n:02d}" for n in range(1, 17))]


def all_names() -> list[str]:
    """Names of all vectors."""
    return [f"{kind}_{layer:02d}" for kind in ("x", "mlp_out") for layer in range(32)]
