"""A safetensors file that is written from pieces: the bytes that safetensors itself writes."""

import hashlib
import json
import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from llava_amber_activations.store import tensor_writing
from llava_amber_activations.store.tensor_writing import write_safetensors

DTYPES = (
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool),
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
)


@st.composite
def files(draw):
    """Draw tensors in pieces, and metadata."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    tensors = {}
    for name in draw(st.lists(st.text('abx_019é"\\\n', min_size=1), unique=True, max_size=5)):
        dtype = draw(st.sampled_from(DTYPES))
        width = draw(st.sampled_from([(), (3,), (700,)]))
        lengths = draw(st.lists(st.integers(0, 9), min_size=1, max_size=4))
        tensors[name] = [
            torch.randint(-9, 9, (length, *width), generator=generator).to(dtype)
            for length in lengths
        ]
    return tensors, draw(st.text('k"\\\n é\x7f\x01', max_size=9))


@given(files())
def test_the_bytes_are_those_of_safetensors(tmp_path_factory, drawn):
    """Header, order, filling and data, however the rows are cut."""
    tensors, said = drawn
    folder = tmp_path_factory.mktemp("file")
    whole = {name: torch.cat(parts) for name, parts in tensors.items()}
    save_file(whole, folder / "theirs", metadata={"key": said})
    digests = {}

    def metadata_of(sha256):
        digests.update(sha256)
        return {"key": said}

    write_safetensors(folder / "ours", tensors, metadata_of)
    assert (folder / "ours").read_bytes() == (folder / "theirs").read_bytes()
    assert digests == {
        name: hashlib.sha256(tensor.view(torch.uint8).numpy().tobytes()).hexdigest()
        for name, tensor in whole.items()
    }


class Seen:
    """Notes the rows that it is shown."""

    def __init__(self):
        self.rows = {}
        self.at_end = None

    def look(self, name, start, rows):
        self.rows.setdefault(name, []).append((start, rows.clone()))

    def conclude(self):
        self.at_end = {name: len(blocks) for name, blocks in self.rows.items()}


def test_every_row_is_looked_at_once(tmp_path, monkeypatch):
    """In blocks, small pieces together and large ones cut; the digest is told afterwards."""
    monkeypatch.setattr(tensor_writing, "_BLOCK_BYTES", 1000)
    pieces = [torch.randn(length, 10) for length in (1, 3, 200, 0, 2, 20, 30, 1)]
    seen = Seen()
    write_safetensors(
        tmp_path / "file", {"x": pieces}, lambda sha256: {"key": json.dumps(sha256)}, seen
    )
    starts = [start for start, _ in seen.rows["x"]]
    blocks = [rows for _, rows in seen.rows["x"]]
    assert max(rows.nbytes for rows in blocks) <= 1200 and len(blocks) > 8
    assert starts == [sum(map(len, blocks[:number])) for number in range(len(blocks))]
    assert torch.equal(torch.cat(blocks), torch.cat(pieces))
    assert torch.equal(load_file(tmp_path / "file")["x"], torch.cat(pieces))
    assert seen.at_end == {"x": len(blocks)}


def test_what_is_found_is_raised_before_the_header_is_there(tmp_path):
    """A file whose header is missing is none: nobody can take it for one."""

    class Refusing(Seen):
        def conclude(self):
            raise ValueError("not finite")

    with pytest.raises(ValueError, match="not finite"):
        write_safetensors(tmp_path / "file", {"x": torch.ones(4, 2)}, lambda _: {}, Refusing())
    assert not (tmp_path / "file").read_bytes()[:8].strip(b"\0")


def test_a_thread_that_fails_stops_the_others(tmp_path, monkeypatch):
    """The first error is the one that is raised, and no other thread writes on."""
    monkeypatch.setattr(tensor_writing, "_BLOCK_BYTES", 1000)
    written = []
    plain = os.pwrite

    def failing(descriptor, block, offset):
        written.append(offset)
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        return plain(descriptor, block, offset)

    monkeypatch.setattr(tensor_writing.os, "pwrite", failing)
    tensors = {f"x_{number}": torch.randn(1000, 10) for number in range(8)}
    with pytest.raises(OSError, match="No space"):
        write_safetensors(tmp_path / "file", tensors, lambda _: {})
    assert len(written) < 3 + tensor_writing.MOST_THREADS
