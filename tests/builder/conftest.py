"""A small store written without a model, and `.pt` folders as trainers' own scripts write them."""

import pytest
import torch

from builder.build import build
from llava_amber_activations.files.checksums import sha256_of
from llava_amber_activations.formats.recipe import Recipe
from llava_amber_activations.store.chunk import write_chunk
from llava_amber_activations.store.finish import finish_store
from llava_amber_activations.store.layout import chunk_path, write_recipe
from llava_amber_activations.store.samples import SampleRecord

N_LAYERS, WIDTH = 4, 8
# Rows of each sample: sample 2 was skipped.
LENGTHS = (3, 1, 0, 3, 2)


@pytest.fixture(scope="session")
def make_small_store():
    """Function that writes a finished store: 4 layers, 8 wide, 5 samples, 9 rows, 3 chunks."""

    def make(store, dtype="float32", scale=1.0, n_layers=N_LAYERS, layers=None, image_dir=None):
        def digest(image):
            return sha256_of(image_dir / image) if image_dir else "0" * 64

        recipe = Recipe(
            n_layers=n_layers,
            layers=layers,
            hidden_size=WIDTH,
            n_targets=2,
            store_dtype=dtype,
            n_samples=len(LENGTHS),
            chunk_samples=2,
            model="small/llava",
            x_site="mlp_in",
            positions="all",
        )
        write_recipe(store, recipe)
        generator = torch.Generator().manual_seed(0)
        for chunk, samples in enumerate(([0, 1], [2, 3], [4])):
            rows = [sample for sample in samples for _ in range(LENGTHS[sample])]
            tensors = {
                f"{kind}_{layer:02d}": torch.randn(len(rows), WIDTH, generator=generator)
                .mul(scale)
                .to(getattr(torch, dtype))
                for kind in ("x", "mlp_out")
                for layer in layers or range(n_layers)
            }
            positions = [place for sample in samples for place in range(LENGTHS[sample])]
            tensors["sample"] = torch.tensor(rows, dtype=torch.int32)
            tensors["position"] = torch.tensor(positions, dtype=torch.int32)
            tensors["token_id"] = torch.arange(len(rows), dtype=torch.int32)
            records = [
                SampleRecord(
                    sample=sample,
                    id=101 + sample,
                    image=f"AMBER_{1 + sample}.jpg",
                    query="Describe this image.",
                    image_sha256=digest(f"AMBER_{1 + sample}.jpg"),
                    n_rows=LENGTHS[sample],
                    error=None if LENGTHS[sample] else "the picture cannot be read",
                )
                for sample in samples
            ]
            write_chunk(chunk_path(store, chunk), tensors, records)
        finish_store(store, recipe)
        return store

    return make


@pytest.fixture(scope="session")
def small_store(make_small_store, tmp_path_factory):
    """Small float32 store."""
    return make_small_store(tmp_path_factory.mktemp("small") / "store")


@pytest.fixture(scope="session")
def small_dataset(small_store, tmp_path_factory):
    """Dataset folder of `small_store`: L0 and L1 have two targets, L2 one."""
    folder = tmp_path_factory.mktemp("small") / "dataset"
    build(small_store, folder)
    return folder


def _vector(kind, layer, batch, shape, dtype):
    seed = 10_000 * (kind == "mlp_out") + 100 * layer + batch
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.fixture(scope="session")
def write_layers():
    """Function that writes the `layers` layout of a model of four layers, two targets a layer.

    `change(tensor, layer, target, batch)` may put another tensor in place of any: target 0 is x,
    and k is mlp_out of layer + k. Returns every file's value by its path in the folder.
    """

    def write(
        folder,
        *,
        layers=(0, 1, 2),
        shapes=((2, 3, 8), (3, 1, 8)),
        dtype=torch.float32,
        change=lambda tensor, layer, target, batch: tensor,
        **save_options,
    ):
        values = {}
        for layer in layers:
            (folder / f"L{layer}").mkdir(parents=True)
            for batch, shape in enumerate(shapes):
                x = change(_vector("x", layer, batch, shape, dtype), layer, 0, batch)
                targets = [
                    change(_vector("mlp_out", k, batch, shape, dtype), layer, k - layer, batch)
                    for k in range(layer + 1, min(layer + 3, 4))
                ]
                values[f"L{layer}/batch_{batch}_x.pt"] = {"x": x}
                values[f"L{layer}/batch_{batch}_y.pt"] = {
                    "y": targets[0],
                    "targets": targets,
                    "n_targets": len(targets),
                }
        for path, value in values.items():
            torch.save(value, folder / path, **save_options)
        return values

    return write


@pytest.fixture(scope="session")
def write_samples_layout():
    """Function that writes three files of the `samples` layout, [T, H] or, where T is 1, [H]."""

    def write(folder, *, layers=(0, 1, 2), lengths=(1, 1, 1), dtype=torch.float32):
        folder.mkdir(parents=True)
        values = {}
        for sample, length in enumerate(lengths):
            shape = (8,) if length == 1 else (length, 8)
            values[f"sample_{sample:04d}.pt"] = {
                "activations": {
                    layer: _vector("x", layer, sample, shape, dtype) for layer in layers
                }
            }
        for path, value in values.items():
            torch.save(value, folder / path)
        return values

    return write
