"""Sizes in bytes, as people write and read them."""

import pytest

from llava_amber_activations import ActivationsError
from llava_amber_activations.console.sizes import parse_size, readable_size


@pytest.mark.parametrize(
    ("text", "size"),
    [("500MB", 500_000_000), ("1GiB", 1 << 30), ("1.5 kB", 1500), ("12", 12), ("2G", 2 * 10**9)],
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MB", "-1MB", "0", "many", "1.2.3MB", "1XB"])
def test_what_is_no_size(text):
    with pytest.raises(ActivationsError, match="is not a size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (131_200_000, "131.2 MB"), (2_500_000_000_000, "2.5 TB")],
)
def test_a_readable_size(size, text):
    assert readable_size(size) == text
