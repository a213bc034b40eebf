"""A store's tensors as safetensors alone reads them, a data set of it, and a chunk made by hand."""

import pytest
import torch
from safetensors import safe_open

from builder.build import build
from llava_amber_activations import load_activations
from llava_amber_activations.store.samples import SampleRecord


@pytest.fixture(scope="session")
def folder(all_store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("epochs") / "dataset"
    build(all_store, folder, n_targets=2, configs=["all_layers"], max_shard_size="2MB")
    return folder


@pytest.fixture(scope="session")
def prepared(folder, tmp_path_factory):
    return load_activations(folder, 4, 1, cache_dir=tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def read_store():
    """Function that joins every tensor of a store's chunks, in the order of their numbers."""

    def read(store):
        found = {}
        for path in sorted((store / "chunks").iterdir()):
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - safe_open is no mapping
                    found.setdefault(name, []).append(file.get_tensor(name))
        return {name: torch.cat(parts) for name, parts in found.items()}

    return read


@pytest.fixture(scope="session")
def last_tensors(read_store, last_store):
    """The tensors of `last_store`."""
    return read_store(last_store)


@pytest.fixture
def chunk():
    """Tensors and records of a chunk: two layers, three wide, samples of one and three rows."""
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.randn(4, 3, generator=generator)
        for name in ("x_00", "x_01", "mlp_out_00", "mlp_out_01")
    }
    tensors["sample"] = torch.tensor([0, 1, 1, 1], dtype=torch.int32)
    tensors["position"] = torch.tensor([7, 0, 1, 2], dtype=torch.int32)
    tensors["token_id"] = torch.tensor([5, 31999, 6, 8], dtype=torch.int32)
    records = [
        SampleRecord(0, 101, "AMBER_1.jpg", "Why?", "0" * 64, 1),
        SampleRecord(1, 102, "AMBER_2.jpg", "Où ?\u2028Là.", "1" * 64, 3, response="… so."),
    ]
    return tensors, records
