"""A dataset wide enough for its bytes to be counted, pushed to the Hub of the tests."""

import pytest
from loopback_hub import DEFAULT_TOKEN
from random_store import make_random_store, read_vectors

from builder.build import build
from builder.push import push


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
    """Store of 256 rows, as wide as those of LLaVA-1.5-7B: four row groups of a real size."""
    return make_random_store(tmp_path_factory.mktemp("wide") / "store", 256, 4096)


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
