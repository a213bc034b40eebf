"""Chunks: fixed ranges of samples, equal files for equal contents, and nothing half written."""

import dataclasses
import hashlib
import json
import resource
import subprocess
from contextlib import contextmanager
from itertools import groupby

import pytest
import torch
from format_1_0 import make_store_1_0
from hypothesis import given
from hypothesis import strategies as st
from manifests import seal
from safetensors import safe_open
from safetensors.torch import save_file

from llava_amber_activations import ActivationsError, Recipe
from llava_amber_activations.parsing.typed_json import read_object
from llava_amber_activations.store.chunk import Chunk, write_chunk
from llava_amber_activations.store.finish import finish_store
from llava_amber_activations.store.layout import (
    chunk_path,
    chunk_ranges,
    missing_chunks,
    read_recipe,
    write_recipe,
)
from llava_amber_activations.store.samples import SampleRecord, Tokens, read_samples

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
    assert names == ["capture.json", *chunks, "norms.safetensors", "samples.jsonl"]
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
    with safe_open(tmp_path / "chunk", framework="pt") as file:
        header = json.loads(file.metadata()["chunk"])
    assert header["sha256"] == {
        name: hashlib.sha256(tensor.numpy().tobytes()).hexdigest()
        for name, tensor in tensors.items()
    }
    assert header["format_version"] == "1.1" and header["self_sha256"] == seal(header)
    for name in tensors:
        found.check_tensor(name)


def test_tensors_that_a_chunk_does_not_have(tmp_path, chunk):
    """The places of rows may be missing and are -1 then; nothing else may."""
    write_chunk(tmp_path / "chunk", *chunk)
    found = Chunk(tmp_path / "chunk")
    for name in ("kind", "patch_row", "patch_col"):
        assert found.rows(name).tolist() == [-1] * 4
        assert found.rows(name, 1, 3).dtype == torch.int32 and len(found.rows(name, 1, 3)) == 2
    with pytest.raises(ActivationsError, match=r"chunk is damaged .it has no tensor x_02"):
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
    """One bit of one tensor, or one field of one record."""
    tensors, records = chunk
    write_chunk(tmp_path / "a", tensors, records)
    changed = {**tensors, "x_01": tensors["x_01"].clone()}
    changed["x_01"][3, 2].neg_()
    write_chunk(tmp_path / "b", changed, records)
    write_chunk(tmp_path / "c", tensors, [dataclasses.replace(records[0], id=7), records[1]])
    a, b, c = (Chunk(tmp_path / name).identity for name in "abc")
    assert a != b != c != a
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
    """A strided tensor is refused; nothing is left of the attempt."""
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


def test_any_flipped_bit_of_a_chunk(tmp_path, chunk):
    """Of its length, names, dtypes, shapes, records, checksums or values: all right, or refused."""
    path = tmp_path / "chunk"
    write_chunk(path, *chunk)
    content = path.read_bytes()

    def check():
        found = Chunk(path)
        found.check_rows(RECIPE)
        for name in sorted(found.names):
            found.check_tensor(name)

    check()
    for at in range(len(content)):
        for bit in (at % 8, (at + 3) % 8):
            damaged = bytearray(content)
            damaged[at] ^= 1 << bit
            path.write_bytes(damaged)
            try:
                check()
            except ActivationsError as error:
                assert "chunk is damaged" in str(error)
            else:
                # An escape such as \\u00fa in capitals, or a space that is another.
                assert content[at : at + 1] in b" abcdef" and Chunk(path).records == chunk[1]
                assert all(torch.equal(Chunk(path).rows(name), chunk[0][name]) for name in chunk[0])


def test_a_header_of_another_dtype(tmp_path, chunk):
    """As many bytes, the same checksums, and other values: the recipe's dtype tells them apart."""
    tensors, records = chunk
    half = {n: t.half() if t.is_floating_point() else t for n, t in tensors.items()}
    write_chunk(tmp_path / "chunk", half, records)
    recipe = dataclasses.replace(RECIPE, store_dtype="float16")
    Chunk(tmp_path / "chunk").check_rows(recipe)
    content = (tmp_path / "chunk").read_bytes()
    size = int.from_bytes(content[:8], "little")
    # A space in the place of the letter that goes keeps every length.
    header = content[8 : 8 + size].replace(b'"dtype":"F16"', b'"dtype":"I16"', 1)
    (tmp_path / "chunk").write_bytes(content[:8] + header + content[8 + size :])
    with pytest.raises(ActivationsError, match=r"chunk is damaged .* is I16 \[4, 3\], not F16"):
        Chunk(tmp_path / "chunk").check_rows(recipe)


def test_rows_that_are_not_the_records(tmp_path, chunk):
    """Under right checksums: other samples than the header's, a kind that is none."""
    tensors, records = chunk
    other = torch.tensor([0, 1, 1, 2], dtype=torch.int32)
    write_chunk(tmp_path / "a", {**tensors, "sample": other}, records)
    with pytest.raises(ActivationsError, match=r"a is damaged .it has rows of other samples"):
        Chunk(tmp_path / "a").check_rows(RECIPE)
    kind = torch.tensor([0, 1, 5, -1], dtype=torch.int32)
    write_chunk(tmp_path / "b", {**tensors, "kind": kind}, records)
    with pytest.raises(ActivationsError, match=r"b is damaged .it has rows of an unknown kind"):
        Chunk(tmp_path / "b").check_rows(RECIPE)


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
    assert finish_store(tmp_path, RECIPE) == records == read_samples(tmp_path)
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
    write_recipe(tmp_path, dataclasses.replace(RECIPE, format_version="1.0"))
    record = SampleRecord(0, 1, "1.jpg", "?", None, 1).to_line()
    for line in ("{", "[]", '{"sample": 1}'):
        (tmp_path / "samples.jsonl").write_text(f"{record}\n{line}\n")
        with pytest.raises(ActivationsError, match=r"samples\.jsonl line 2"):
            read_samples(tmp_path)


@given(st.lists(st.sampled_from(["<image>", "", "a", "é", "\u2028"]), max_size=30))
def test_tokens_of_a_sample(texts):
    """Any texts are the same after JSON, equal ones next to each other written once."""
    tokens = Tokens.of(texts)
    record = SampleRecord(0, 1, "1.jpg", "?", None, 1, tokens=tokens, response_start=len(texts))
    value = json.loads(record.to_line())
    found = read_object(SampleRecord, value, "F", "a sample")
    assert found == record and hash(found) == hash(record)
    assert (tuple(found.tokens), len(found.tokens)) == (tuple(texts), len(texts))
    assert texts == list(found.tokens[:]) and found.tokens[1:3] == tuple(texts[1:3])
    expected = [(text, len(list(same))) for text, same in groupby(texts)]
    assert value["tokens"] == [text if n == 1 else [text, n] for text, n in expected]


def test_a_picture_s_tokens_are_one_run(tmp_path, chunk):
    """In a chunk too; and runs that another program did not join are the same tokens."""
    tokens = Tokens.of(["<s>", *["<image>"] * 576, "A"])
    record = dataclasses.replace(chunk[1][0], tokens=tokens, prompt="<image>A")
    write_chunk(tmp_path / "chunk", chunk[0], [record, *chunk[1][1:]])
    assert Chunk(tmp_path / "chunk").records[0] == record
    with safe_open(tmp_path / "chunk", "pt") as file:
        (written, _) = json.loads(file.metadata()["chunk"])["samples"]
    assert written["tokens"] == ["<s>", ["<image>", 576], "A"]
    apart = ["<s>", *[["<image>", 2]] * 287, "<image>", "<image>", "A"]
    assert Tokens.of_json(apart) == tokens


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        ("ab", "'tokens' is no list of texts"),
        ([1], "'tokens' is no list of texts"),
        ([["a", 2, 3]], "'tokens' is no list of texts"),
        ([["a", 0]], "'tokens' is no list of texts"),
        ([["a", True]], "'tokens' is no list of texts"),
        ([["a", 1 << 23], ["b", 1 << 23], "c"], "'tokens' has 16777217 tokens, more than 16777216"),
        (["a"], "response_start must be from 0 to 1, got 2"),
    ],
)
def test_tokens_that_are_none(tokens, said):
    value = json.loads(SampleRecord(0, 1, "1.jpg", "?", None, 1).to_line())
    with pytest.raises(ActivationsError, match=f"^F is not a sample: {said}"):
        value |= {"tokens": tokens, "response_start": 2}
        read_object(SampleRecord, value, "F", "a sample")


def test_samples_of_a_newer_minor_version(tmp_path, chunk):
    """A field that a newer minor version of the format adds to a sample is left aside."""
    tensors, records = chunk
    write_recipe(tmp_path, dataclasses.replace(RECIPE, format_version="1.0"))
    newer = [{**dataclasses.asdict(record), "added": 1} for record in records]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in newer))
    assert read_samples(tmp_path) == records
    metadata = {"chunk": json.dumps({"sha256": "0" * 64, "samples": newer})}
    save_file(tensors, tmp_path / "chunk", metadata=metadata)
    assert Chunk(tmp_path / "chunk").records == records


@pytest.fixture
def finished(tmp_path, chunk):
    """A finished store of one chunk whose second sample has a response."""
    write_recipe(tmp_path / "store", RECIPE)
    write_chunk(chunk_path(tmp_path / "store", 0), *chunk)
    finish_store(tmp_path / "store", RECIPE)
    return tmp_path / "store"


def test_checksums_of_a_store(finished):
    """Every small file, in the form of sha256sum, which passes and fails by it."""
    names = ["capture.json", "samples.jsonl", "responses.json"]
    assert (finished / "SHA256SUMS").read_text() == "".join(
        f"{hashlib.sha256((finished / name).read_bytes()).hexdigest()}  {name}\n" for name in names
    )
    command = ["sha256sum", "--check", "--quiet", "SHA256SUMS"]
    assert subprocess.run(command, cwd=finished, check=False).returncode == 0
    (finished / "responses.json").write_text("[]")
    assert subprocess.run(command, cwd=finished, check=False, stderr=-1).returncode == 1


@pytest.mark.parametrize("name", ["capture.json", "samples.jsonl", "responses.json", "SHA256SUMS"])
def test_any_flipped_bit_of_a_small_file(finished, name):
    """No reader of a finished store takes it; the sentence names the file."""
    path = finished / name
    content = path.read_bytes()
    for at in range(len(content)):
        damaged = bytearray(content)
        damaged[at] ^= 1 << at % 8
        path.write_bytes(damaged)
        with pytest.raises(ActivationsError, match=r"capture\.json|samples\.jsonl|SUMS|responses"):
            read_samples(finished)
    path.unlink()
    with pytest.raises(ActivationsError):
        read_samples(finished)
    path.write_bytes(content)
    read_samples(finished)


def test_lines_that_are_gone_from_the_checksums(finished):
    path = finished / "SHA256SUMS"
    lines = path.read_text().splitlines(keepends=True)
    for kept in ([], lines[:1], lines[1:], lines[:2], [*lines, lines[0]], lines[::-1]):
        path.write_text("".join(kept))
        with pytest.raises(ActivationsError, match="SHA256SUMS is damaged, or not of the files"):
            read_samples(finished)


def test_a_store_without_its_last_file(finished):
    """Unfinished, and finished by what wrote it: the same bytes."""
    content = (finished / "SHA256SUMS").read_bytes()
    (finished / "SHA256SUMS").unlink()
    with pytest.raises(ActivationsError, match=r"not finished \(0 chunks are missing\)"):
        read_samples(finished)
    finish_store(finished, RECIPE)
    assert (finished / "SHA256SUMS").read_bytes() == content


def test_a_store_of_format_1_0(finished):
    """It has no checksums of small files, and one of each chunk's tensors together."""
    records = read_samples(finished)
    make_store_1_0(finished)
    assert read_samples(finished) == records
    found = Chunk(chunk_path(finished, 0))
    found.check_rows(read_recipe(finished))
    found.check_tensor("x_00")
    content = found.path.read_bytes()
    found.path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ActivationsError, match=r"damaged .it is not as it was written"):
        Chunk(found.path).check_tensor("x_00")
