"""A layer of a small data set, opened in both ways."""

import pytest

from llava_amber_activations import open_layer


@pytest.fixture(params=["prepared", "open_layer"])
def layer(request, folder, prepared):
    return prepared if request.param == "prepared" else open_layer(folder, 4, 1)
