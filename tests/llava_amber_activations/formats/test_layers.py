"""Which layers are targets of which, and reading lists of layers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava_amber_activations import ActivationsError, LayerWindow
from llava_amber_activations.formats.layers import (
    layers_text,
    mlp_out_name,
    parse_layers,
    split_layer,
    split_name,
    x_name,
)


def test_the_flagship():
    """32 layers, 16 targets: 16 for L0 … L15, then fewer, one for L30."""
    window = LayerWindow(n_layers=32, n_targets=16)
    assert list(window.sources) == list(range(31))
    assert [len(window.targets(layer)) for layer in window.sources] == [
        *(16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16),
        *(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1),
    ]
    assert list(window.targets(0)) == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]
    assert list(window.targets(15))[-1] == 31
    assert list(window.targets(16)) == [17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31]
    assert list(window.targets(30)) == [31]
    with pytest.raises(ActivationsError, match=r"layer 31 has no targets.* are 0 to 30"):
        window.targets(31)


def test_targets_from_the_layer_itself():
    """Every layer is a source then: 16 targets for L0 … L16, one for L31."""
    window = LayerWindow(n_layers=32, n_targets=16, first_target=0)
    assert list(window.sources) == list(range(32))
    assert [len(window.targets(layer)) for layer in window.sources] == [
        *(16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16),
        *(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1),
    ]
    assert list(LayerWindow(32, 4, 0).targets(5)) == [5, 6, 7, 8]
    assert list(window.targets(31)) == [31]
    with pytest.raises(ActivationsError, match=r"layer 32 has no targets.* are 0 to 31"):
        window.targets(32)


@given(st.integers(1, 60), st.integers(1, 70), st.integers(0, 1))
def test_windows(n_layers, n_targets, first):
    """A layer's targets are those behind it that exist, in order; a source has at least one."""
    window = LayerWindow(n_layers, n_targets, first)
    for layer in range(n_layers):
        behind = [t for t in range(n_layers) if first <= t - layer < first + n_targets]
        assert (layer in window.sources) == bool(behind)
        if behind:
            assert list(window.targets(layer)) == behind
    for layer in (-1, n_layers - first, n_layers):
        with pytest.raises(ActivationsError, match="has no targets"):
            window.targets(layer)


@given(st.integers(2, 60), st.integers(1, 70))
def test_the_conventions_differ_by_the_layer_itself(n_layers, n_targets):
    """One more target, the layer's own, makes this project's window the paper's."""
    ours = LayerWindow(n_layers, n_targets)
    papers = LayerWindow(n_layers, n_targets + 1, first_target=0)
    for layer in ours.sources:
        assert [layer, *ours.targets(layer)] == list(papers.targets(layer))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((0, 1), "n_layers must be at least 1, got 0"),
        ((32, 0), "n_targets must be at least 1, got 0"),
        ((32, 16, 2), "first_target must be 0 or 1, got 2"),
        ((32, 16, -1), "first_target must be 0 or 1, got -1"),
    ],
)
def test_impossible_windows(arguments, said):
    with pytest.raises(ActivationsError, match=said):
        LayerWindow(*arguments)


def test_names():
    """Splits are named as they are spoken of, tensors so that they sort."""
    assert (split_name(5), x_name(5), mlp_out_name(31)) == ("L5", "x_05", "mlp_out_31")


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        ("5", (5,)),
        ("0-3", (0, 1, 2, 3)),
        ("4-4", (4,)),
        ("7,0-2,1", (0, 1, 2, 7)),
        (" 1 , 2 ", (1, 2)),
        ("0,5,10-12", (0, 5, 10, 11, 12)),
    ],
)
def test_lists_of_layers(text, layers):
    assert parse_layers(text, range(31)) == layers


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1))
def test_any_ranges(pairs):
    """Ranges in any order, overlapping or not: every layer of them once, ascending."""
    ranges = [(min(pair), max(pair)) for pair in pairs]
    text = ",".join(f"{first}-{last}" for first, last in ranges)
    wanted = tuple(n for n in range(31) if any(first <= n <= last for first, last in ranges))
    assert parse_layers(text, range(31)) == wanted


@given(st.sets(st.integers(0, 30), min_size=1))
def test_written_as_they_are_parsed(layers):
    """The text of any layers is parsed back into them."""
    assert parse_layers(layers_text(layers), range(31)) == tuple(sorted(layers))


def test_the_text_is_short():
    assert layers_text((0, 5, *range(10, 16))) == "0,5,10-15"


def test_sources_that_are_kept_with_all_of_their_targets():
    """The window ends with the model, not where the kept layers do."""
    kept = (0, 5, *range(10, 16), 30, 31)
    assert LayerWindow(32, 2).whole_sources(kept) == (10, 11, 12, 13, 30)
    assert LayerWindow(32, 16).whole_sources(kept) == (30,)
    assert LayerWindow(32, 1, first_target=0).whole_sources(kept) == kept
    assert LayerWindow(32, 16).whole_sources(range(32)) == tuple(range(31))


@pytest.mark.parametrize("text", ["", "a", "1-", "-1", "1,,2", "1.5", "1-2-3", "L5", "0x1", "5;6"])
def test_what_is_no_list_of_layers(text):
    with pytest.raises(ActivationsError, match="is not a list of layers: write 5, 0-30"):
        parse_layers(text, range(31))


def test_layers_that_run_backwards():
    """Which are not taken for none, nor for their opposite."""
    with pytest.raises(ActivationsError, match="the layers 3-1 run backwards: write 1-3"):
        parse_layers("0,3-1", range(31))


@pytest.mark.parametrize("text", ["0-31", "99", "30,31"])
def test_layers_that_are_not_there(text):
    with pytest.raises(ActivationsError, match="are not in this data: it has 0 to 30"):
        parse_layers(text, range(31))


def test_layers_of_which_only_some_are_there():
    """Layers between the first and the last that the data lacks are missing too."""
    assert parse_layers("5,9", (5, 9)) == (5, 9)
    with pytest.raises(ActivationsError, match=r"\[6, 7, 8\]"):
        parse_layers("5-9", (5, 9))
    with pytest.raises(ActivationsError, match=r"it has 5,9$"):
        parse_layers("7", (5, 9))


def test_a_slip_of_the_finger_is_answered_in_a_line():
    """A range far past the last layer does not print each layer that is missing."""
    with pytest.raises(ActivationsError) as refused:
        parse_layers("0-300000", range(31))
    assert len(str(refused.value)) < 500


def test_a_split_is_of_the_layer_that_names_it():
    """And the split of `all_layers` is of none."""
    assert [split_layer(split_name(layer)) for layer in (0, 5, 30, 120)] == [0, 5, 30, 120]
    assert split_layer("train") is None
