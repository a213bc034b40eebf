"""Which layers are targets of which, and reading lists of layers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava_amber_activations import ActivationsError, LayerWindow
from llava_amber_activations.layers import parse_layers


def test_the_flagship():
    """32 layers, 16 targets: 16 for L0 … L15, then fewer, one for L30."""
    window = LayerWindow(n_layers=32, n_targets=16)
    assert window.sources == range(31)
    counts = [len(window.targets(layer)) for layer in window.sources]
    assert counts == [16] * 16 + list(range(15, 0, -1))
    assert list(window.targets(15)) == list(range(16, 32))
    assert list(window.targets(30)) == [31]


def test_targets_from_the_layer_itself():
    window = LayerWindow(n_layers=32, n_targets=4, first_target=0)
    assert window.sources == range(32)
    assert list(window.targets(5)) == [5, 6, 7, 8]
    assert list(window.targets(31)) == [31]


@given(st.integers(1, 60), st.integers(1, 70), st.integers(0, 1))
def test_windows(n_layers, n_targets, first):
    window = LayerWindow(n_layers, n_targets, first)
    for layer in window.sources:
        targets = list(window.targets(layer))
        assert targets == [
            t for t in range(layer + first, layer + first + n_targets) if t < n_layers
        ]
        assert targets
    for layer in (-1, n_layers - first, n_layers):
        with pytest.raises(ActivationsError, match="has no targets"):
            window.targets(layer)


@pytest.mark.parametrize(
    "arguments",
    [(0, 1), (32, 0), (32, 16, 2), (32, -1)],
    ids=["layers", "none", "first", "negative"],
)
def test_impossible_windows(arguments):
    with pytest.raises(ActivationsError, match="must be"):
        LayerWindow(*arguments)


@pytest.mark.parametrize(
    ("text", "layers"),
    [("5", (5,)), ("0-3", (0, 1, 2, 3)), ("7,0-2,1", (0, 1, 2, 7)), (" 1 , 2 ", (1, 2))],
)
def test_lists_of_layers(text, layers):
    assert parse_layers(text, range(31)) == layers


@pytest.mark.parametrize("text", ["", "a", "1-", "-1", "3-1", "1,,2", "0-31", "99", "1.5"])
def test_what_is_no_list_of_layers(text):
    with pytest.raises(ActivationsError):
        parse_layers(text, range(31))
