"""Chunks: fixed ranges of samples, equal files for equal contents, and nothing half written."""

import dataclasses
import hashlib
import json
import resource
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from llava_amber_activations import ActivationsError, Recipe
from llava_amber_activations.store import (
    Chunk,
    FeaturesFile,
    SampleRecord,
    chunk_path,
    chunk_ranges,
    missing_chunks,
    read_samples,
    write_chunk,
    write_features,
    write_recipe,
    write_samples,
)

RECIPE = Recipe(2, 3, 1, store_dtype="float32", n_samples=2, chunk_samples=2)


@contextmanager
def room_for(n_bytes):
    """Let no file of this process grow past `n_bytes`, as a disk that fills up would not."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@given(st.integers(0, 500), st.integers(1, 100))
def test_chunks_are_fixed_ranges(n_samples, chunk_samples):
    """Every sample once and in order; sample s is in chunk s // chunk_samples."""
    ranges = chunk_ranges(n_samples, chunk_samples)
    assert [sample for part in ranges for sample in part] == list(range(n_samples))
    for number, part in enumerate(ranges):
        assert {sample // chunk_samples for sample in part} == {number}


def test_chunks_of_amber():
    assert chunk_ranges(1004, 64)[-1] == range(960, 1004) and len(chunk_ranges(1004, 64)) == 16
    assert chunk_ranges(8, 3) == [range(0, 3), range(3, 6), range(6, 8)]


def test_names_of_chunks(last_store):
    """The contract's names, in a store that was captured; no other file is left there."""
    names = sorted(path.relative_to(last_store).as_posix() for path in last_store.rglob("*.*"))
    chunks = [f"chunks/chunk-0000{number}.safetensors" for number in range(3)]
    assert names == ["capture.json", *chunks, "samples.jsonl"]
    assert chunk_path(last_store, 2) == last_store / chunks[2]


def test_a_chunk_round_trip(tmp_path, chunk):
    """Every tensor bit by bit, by safetensors alone and by Chunk, whole and in part."""
    tensors, records = chunk
    write_chunk(tmp_path / "chunk", tensors, records)
    with safe_open(tmp_path / "chunk", framework="pt") as file:
        assert set(file.keys()) == set(tensors)
        assert all(torch.equal(file.get_tensor(name), tensors[name]) for name in tensors)
    found = Chunk(tmp_path / "chunk")
    assert (found.n_rows, found.names, found.records) == (4, set(tensors), records)
    for name, tensor in tensors.items():
        assert found.rows(name).dtype == tensor.dtype
        assert torch.equal(found.rows(name), tensor)
        assert torch.equal(found.rows(name, 1, 3), tensor[1:3])
    joined = b"".join(tensors[name].numpy().tobytes() for name in sorted(tensors))
    assert found.sha256 == hashlib.sha256(joined).hexdigest()


def test_tensors_that_a_chunk_does_not_have(tmp_path, chunk):
    """The places of rows may be missing and are -1 then; nothing else may."""
    write_chunk(tmp_path / "chunk", *chunk)
    found = Chunk(tmp_path / "chunk")
    for name in ("kind", "patch_row", "patch_col"):
        assert found.rows(name).tolist() == [-1] * 4
        assert found.rows(name, 1, 3).dtype == torch.int32 and len(found.rows(name, 1, 3)) == 2
    with pytest.raises(ActivationsError, match="chunk has no tensor x_02"):
        found.rows("x_02")


@given(st.permutations(range(7)))
def test_equal_contents_are_equal_bytes(tmp_path_factory, order):
    """In whatever order the tensors are given."""
    folder = tmp_path_factory.mktemp("equal")
    tensors = {f"x_{n:02d}": torch.full((2, 3), float(n)) for n in range(7)}
    records = [SampleRecord(0, 1, "1.jpg", "?", None, 2)]
    write_chunk(folder / "a", tensors, records)
    shuffled = list(tensors.items())
    write_chunk(folder / "b", dict(shuffled[n] for n in order), records)
    assert (folder / "a").read_bytes() == (folder / "b").read_bytes()


def test_other_contents_are_other_bytes(tmp_path, chunk):
    """One bit of one tensor, or one field of one record; the checksum is of the tensors."""
    tensors, records = chunk
    write_chunk(tmp_path / "a", tensors, records)
    changed = {**tensors, "x_01": tensors["x_01"].clone()}
    changed["x_01"][3, 2].neg_()
    write_chunk(tmp_path / "b", changed, records)
    write_chunk(tmp_path / "c", tensors, [dataclasses.replace(records[0], id=7), records[1]])
    a, b, c = (Chunk(tmp_path / name) for name in "abc")
    assert a.sha256 == c.sha256 != b.sha256
    assert len({(tmp_path / name).read_bytes() for name in "abc"}) == 3


@pytest.mark.parametrize("earlier", [False, True])
def test_a_disk_that_fills_up(tmp_path, chunk, earlier):
    """Nothing is left, an earlier file stays, and the error is one that the command line says."""
    path = tmp_path / "chunk"
    tensors, records = chunk
    if earlier:
        write_chunk(path, tensors, records)
    before = path.read_bytes() if earlier else None
    large = {**tensors, "x_00": torch.ones(4, 100_000)}
    with pytest.raises(Exception, match=r"too large|No space") as refused, room_for(100_000):
        write_chunk(path, large, records)
    assert list(tmp_path.iterdir()) == ([path] if earlier else [])
    if earlier:
        assert path.read_bytes() == before
    assert isinstance(refused.value, ActivationsError | OSError)


def test_tensors_that_cannot_be_written(tmp_path, chunk):
    """safetensors takes no strided tensor; nothing is left of the attempt."""
    tensors, records = chunk
    with pytest.raises(ValueError, match="non contiguous"):
        write_chunk(tmp_path / "chunk", {**tensors, "x_00": torch.ones(3, 4).t()}, records)
    assert list(tmp_path.iterdir()) == []


def test_truncated_chunks(tmp_path, chunk):
    """Cut anywhere, or with a byte too many, it is damaged; the remedy is said."""
    write_chunk(tmp_path / "whole", *chunk)
    whole = (tmp_path / "whole").read_bytes()
    path = tmp_path / "cut"
    for content in [*(whole[:n] for n in range(0, len(whole), 13)), whole[:-1], whole + b"\0"]:
        path.write_bytes(content)
        with pytest.raises(
            ActivationsError, match=r"cut is damaged.*: delete it, and run the same"
        ):
            Chunk(path)


def test_a_missing_chunk(tmp_path):
    with pytest.raises(ActivationsError, match="absent is missing: run the same capture command"):
        Chunk(tmp_path / "absent")


@pytest.mark.parametrize(
    "header",
    [None, "", "[]", "{}", '{"sha256": "0"}', '{"sha256": "0", "samples": [{"sample": 0}]}'],
)
def test_files_that_are_no_chunks(tmp_path, chunk, header):
    """Text, a folder, and safetensors files whose header is another's."""
    (tmp_path / "text").write_text("not a chunk at all")
    (tmp_path / "folder").mkdir()
    metadata = None if header is None else {"chunk": header}
    save_file(chunk[0], tmp_path / "other", metadata=metadata)
    for name in ("text", "folder", "other"):
        with pytest.raises(ActivationsError, match=f"{name} (is damaged|is not JSON|holds a JSON)"):
            Chunk(tmp_path / name)


def test_samples_of_a_store(tmp_path, chunk):
    """samples.jsonl is a JSON object a line, in the query file's order, and is read back."""
    tensors, records = chunk
    write_recipe(tmp_path, RECIPE)
    with pytest.raises(ActivationsError, match=r"not finished \(1 chunks are missing\)"):
        read_samples(tmp_path)
    assert missing_chunks(tmp_path, RECIPE) == [0]
    write_chunk(chunk_path(tmp_path, 0), tensors, records)
    assert missing_chunks(tmp_path, RECIPE) == []
    assert write_samples(tmp_path, RECIPE) == records == read_samples(tmp_path)
    lines = (tmp_path / "samples.jsonl").read_bytes().decode().split("\n")
    assert lines.pop() == ""
    first, second = map(json.loads, lines)
    assert first == {
        **{"sample": 0, "id": 101, "image": "AMBER_1.jpg", "query": "Why?"},
        **{"image_sha256": "0" * 64, "n_rows": 1},
    }
    assert second["query"] == "Où ?\u2028Là." and second["response"] == "… so."


def test_a_damaged_list_of_samples(tmp_path):
    """The line is named."""
    record = SampleRecord(0, 1, "1.jpg", "?", None, 1).to_line()
    for line in ("{", "[]", '{"sample": 1}'):
        (tmp_path / "samples.jsonl").write_text(f"{record}\n{line}\n")
        with pytest.raises(ActivationsError, match=r"samples\.jsonl line 2"):
            read_samples(tmp_path)


def test_samples_of_a_newer_minor_version(tmp_path, chunk):
    """A field that a newer minor version of the format adds to a sample is left aside."""
    tensors, records = chunk
    newer = [{**dataclasses.asdict(record), "added": 1} for record in records]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in newer))
    assert read_samples(tmp_path) == records
    metadata = {"chunk": json.dumps({"sha256": "0", "samples": newer})}
    save_file(tensors, tmp_path / "chunk", metadata=metadata)
    assert Chunk(tmp_path / "chunk").records == records


def test_features(tmp_path):
    """A file of features gives each layer's rows back, and which samples they are of."""
    features = {5: torch.rand(3, 2), 30: torch.rand(3, 2)}
    sample = torch.tensor([0, 2, 3], dtype=torch.int32)
    write_features(tmp_path / "features", features, sample)
    found = FeaturesFile(tmp_path / "features")
    assert found.layers == [5, 30] and torch.equal(found.sample, sample)
    assert torch.equal(found.rows(5), features[5])
    assert torch.equal(found.rows(30, 1, 3), features[30][1:])


def test_files_that_are_no_features(tmp_path, chunk):
    """Missing, cut, text, and another kind of safetensors file."""
    write_features(tmp_path / "f", {0: torch.rand(3, 2)}, torch.arange(3, dtype=torch.int32))
    (tmp_path / "cut").write_bytes((tmp_path / "f").read_bytes()[:-1])
    (tmp_path / "text").write_text("not features")
    write_chunk(tmp_path / "chunk", *chunk)
    for name in ("absent", "cut", "text", "chunk"):
        with pytest.raises(ActivationsError, match=f"{name} is missing or damaged"):
            FeaturesFile(tmp_path / name)
