"""A layer of a small data set, opened in both ways."""

import pytest

from builder.build import build
from llava_amber_activations import load_activations, open_layer


@pytest.fixture(scope="session")
def folder(all_store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("epochs") / "dataset"
    build(all_store, folder, n_targets=2, configs=["all_layers"], max_shard_size="2MB")
    return folder


@pytest.fixture(scope="session")
def prepared(folder, tmp_path_factory):
    return load_activations(folder, 4, 1, cache_dir=tmp_path_factory.mktemp("cache"))


@pytest.fixture(params=["prepared", "open_layer"])
def layer(request, folder, prepared):
    return prepared if request.param == "prepared" else open_layer(folder, 4, 1)
