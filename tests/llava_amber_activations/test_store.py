"""Recipes, chunks and files: what is written is whole, equal and readable by safetensors alone."""

import dataclasses
import json
import os
import stat

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from llava_amber_activations import ActivationsError, Recipe
from llava_amber_activations.files import written_whole
from llava_amber_activations.store import Chunk, SampleRecord, chunk_ranges, write_chunk

RECIPE = Recipe(n_layers=2, hidden_size=3, n_targets=1, store_dtype="float32", n_samples=2)


def chunk_of(value=1.0):
    tensors = {
        name: torch.full((2, 3), value) for name in ("x_00", "x_01", "mlp_out_00", "mlp_out_01")
    }
    for name in ("sample", "position", "token_id"):
        tensors[name] = torch.arange(2, dtype=torch.int32)
    records = [SampleRecord(n, 10 + n, f"{n}.jpg", "?", "0" * 64, 1) for n in range(2)]
    return tensors, records


def test_recipe_round_trip_and_differences():
    text = json.dumps(RECIPE.to_json())
    assert Recipe.from_json(json.loads(text), "here") == RECIPE
    other = dataclasses.replace(RECIPE, x_site="mlp_in", n_targets=4)
    assert RECIPE.differences(other) == ["n_targets (1, not 4)", "x_site (None, not 'mlp_in')"]
    assert RECIPE.differences(RECIPE) == []


def test_versions_of_the_format():
    """A newer minor is read, what it adds left aside; a newer major names the release."""
    value = RECIPE.to_json()
    assert Recipe.from_json({**value, "format_version": "1.7", "added": 1}, "f").n_layers == 2
    with pytest.raises(ActivationsError, match=r"f is of format 2\.0.*1\.x: install .* 2\.0"):
        Recipe.from_json({**value, "format_version": "2.0"}, "f")
    with pytest.raises(ActivationsError, match="names no format version"):
        Recipe.from_json({"n_layers": 2}, "f")


@given(st.integers(1, 500), st.integers(1, 100))
def test_chunks_are_fixed_ranges(n_samples, chunk_samples):
    ranges = chunk_ranges(n_samples, chunk_samples)
    assert [sample for part in ranges for sample in part] == list(range(n_samples))
    assert all(part.start % chunk_samples == 0 for part in ranges)


def test_equal_chunks_are_equal_files(tmp_path):
    tensors, records = chunk_of()
    write_chunk(tmp_path / "a", tensors, records)
    write_chunk(tmp_path / "b", dict(reversed(tensors.items())), records)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    with safe_open(tmp_path / "a", framework="pt") as file:
        assert set(file.keys()) == set(tensors)
        assert file.get_tensor("x_01").tolist() == tensors["x_01"].tolist()
    write_chunk(tmp_path / "c", chunk_of(2.0)[0], records)
    assert Chunk(tmp_path / "a").sha256 != Chunk(tmp_path / "c").sha256
    assert Chunk(tmp_path / "a").records == records
    assert Chunk(tmp_path / "a").rows("x_00", 1, 2).tolist() == [[1.0, 1.0, 1.0]]


def test_files_that_are_no_chunks(tmp_path):
    (tmp_path / "text").write_text("not a chunk at all")
    with pytest.raises(ActivationsError, match="text is damaged"):
        Chunk(tmp_path / "text")
    with pytest.raises(ActivationsError, match="absent is missing"):
        Chunk(tmp_path / "absent")


def test_a_failed_write_leaves_the_earlier_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("earlier")
    with pytest.raises(ZeroDivisionError), written_whole(path) as partial:
        partial.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "earlier" and list(tmp_path.iterdir()) == [path]


def test_others_may_read_what_the_umask_lets_them(tmp_path):
    write_chunk(tmp_path / "chunk", *chunk_of())
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE((tmp_path / "chunk").stat().st_mode) == 0o666 & ~mask
