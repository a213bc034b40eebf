"""A dataset wide enough for its bytes to be counted, pushed to the Hub of the tests."""

import numpy as np
import pytest
import torch
from loopback_hub import DEFAULT_TOKEN
from safetensors.numpy import load_file

from builder.build import build
from builder.push import push
from llava_amber_activations.recipe import Recipe
from llava_amber_activations.store import (
    SampleRecord,
    chunk_path,
    finish_store,
    write_chunk,
    write_recipe,
)

N_LAYERS = 32


def make_random_store(store, n_rows, width):
    """Write a finished float16 store of distinct values in two chunks, without a model."""
    recipe = Recipe(
        n_layers=N_LAYERS,
        hidden_size=width,
        n_targets=16,
        store_dtype="float16",
        n_samples=n_rows,
        chunk_samples=n_rows // 2,
        model="random/llava",
        x_site="resid_mid",
        positions="last",
        prompt="USER: <image>\n{query} ASSISTANT:",
        benchmark="query_generative.json",
    )
    write_recipe(store, recipe)
    generator = torch.Generator().manual_seed(0)
    for chunk, samples in enumerate((range(n_rows // 2), range(n_rows // 2, n_rows))):
        rows = len(samples)
        tensors = {
            f"{kind}_{layer:02d}": torch.randn(rows, width, generator=generator).half()
            for kind in ("x", "mlp_out")
            for layer in range(N_LAYERS)
        }
        tensors["sample"] = torch.tensor(samples, dtype=torch.int32)
        tensors["position"] = torch.full((rows,), 42, dtype=torch.int32)
        tensors["token_id"] = torch.full((rows,), 29901, dtype=torch.int32)
        records = [
            SampleRecord(number, 1 + number, f"AMBER_{1 + number}.jpg", "Describe.", "0" * 64, 1)
            for number in samples
        ]
        write_chunk(chunk_path(store, chunk), tensors, records)
    finish_store(store, recipe)
    return store


def read_vectors(store):
    """Read every tensor of a store from its chunks, without this project's packages."""
    chunks = [load_file(path) for path in sorted((store / "chunks").iterdir())]
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


@pytest.fixture(scope="session")
def narrow_store(tmp_path_factory):
    """Store of 200 rows, 64 wide."""
    return make_random_store(tmp_path_factory.mktemp("narrow") / "store", 200, 64)


@pytest.fixture(scope="session")
def narrow_vectors(narrow_store):
    """Every tensor of `narrow_store`."""
    return read_vectors(narrow_store)


@pytest.fixture(scope="session")
def narrow_dataset(narrow_store, tmp_path_factory):
    """Dataset folder of `narrow_store`, every config, several shards."""
    folder = tmp_path_factory.mktemp("narrow") / "dataset"
    build(narrow_store, folder, max_shard_size="600kB")
    return folder


@pytest.fixture(scope="session")
def pushed(narrow_dataset):
    """Id of a public repo that holds `narrow_dataset`."""
    push(narrow_dataset, "lab/amber-activations", token=DEFAULT_TOKEN)
    return "lab/amber-activations"


@pytest.fixture(scope="session")
def wide_store(tmp_path_factory):
    """Store of 256 rows, 2048 wide: half as wide as LLaVA-1.5-7B, row groups of a real size."""
    return make_random_store(tmp_path_factory.mktemp("wide") / "store", 256, 2048)


@pytest.fixture(scope="session")
def wide_dataset(wide_store, tmp_path_factory):
    """Dataset folder of `wide_store`: layers with two targets, and all_layers."""
    folder = tmp_path_factory.mktemp("wide") / "dataset"
    build(wide_store, folder, n_targets=2)
    return folder


@pytest.fixture(scope="session")
def pushed_wide(wide_dataset):
    """Id of a public repo that holds `wide_dataset`."""
    push(wide_dataset, "lab/wide-activations", token=DEFAULT_TOKEN)
    return "lab/wide-activations"
