"""`.pt` files written by pieces: record by record what torch.save writes, also beyond 4 GiB."""

import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from builder.pt import pt_writer
from builder.pt.pt_writer import PtTensor, open_pt
from llava_amber_activations import ActivationsError
from llava_amber_activations.parsing.safe_pt import check_pt, is_whole_pt, map_pt

# What torch draws for each file it saves, and does not need.
DRAWN = "archive/.data/serialization_id"
SHAPES = [(2, 3, 8), (4, 1, 8), (1, 5, 8)]
DTYPES = [torch.float16, torch.bfloat16, torch.float32]


def value_of(tensors):
    return {"y": tensors[0], "targets": tensors, "n_targets": len(tensors)}


def write(path, tensors, rows=2):
    """Write tensors side by side, some rows of each at a time."""
    planned = [PtTensor(tuple(each.shape), each.dtype) for each in tensors]
    with open_pt(path, value_of(planned)) as file:
        flat = [each.reshape(-1, each.shape[-1]) for each in tensors]
        for start in range(0, max(map(len, flat)), rows):
            for mine, values in zip(planned, flat, strict=True):
                file.write(mine, values[start : start + rows])


def records(path):
    with zipfile.ZipFile(path) as archive:
        return [(name, archive.read(name)) for name in archive.namelist() if name != DRAWN]


@pytest.fixture(params=range(3), ids=["float16", "bfloat16", "float32"])
def tensors(request):
    generator = torch.Generator().manual_seed(request.param)
    dtype = DTYPES[request.param]
    return [torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES]


def check_same(path, tensors):
    """Read by torch, mapped or not, and by what the importer reads with."""
    assert is_whole_pt(path) and check_pt(path)
    for found in (
        torch.load(path, weights_only=True),
        torch.load(path, weights_only=True, mmap=True),
        map_pt(path),
    ):
        assert list(found) == ["y", "targets", "n_targets"]
        assert found["n_targets"] == 3 and found["y"] is found["targets"][0]
        for mine, theirs in zip(found["targets"], tensors, strict=True):
            assert mine.dtype == theirs.dtype and mine.is_contiguous()
            assert torch.equal(mine, theirs)
            assert mine.untyped_storage().nbytes() == theirs.nbytes


@pytest.mark.parametrize("rows", [1, 2, 100])
def test_records_are_those_of_torch_save(tensors, tmp_path, rows):
    """The pickle too, byte for byte; and every storage where it can be mapped."""
    write(tmp_path / "ours.pt", tensors, rows)
    with (tmp_path / "torch.pt").open("wb") as file:
        torch.save(value_of(tensors), file)
    assert records(tmp_path / "ours.pt") == records(tmp_path / "torch.pt")
    check_same(tmp_path / "ours.pt", tensors)
    content = (tmp_path / "ours.pt").read_bytes()
    for each in tensors:
        assert content.index(each.view(torch.uint8).numpy().tobytes()) % 64 == 0
    write(tmp_path / "again.pt", tensors, 3)
    assert (tmp_path / "again.pt").read_bytes() == content


@pytest.mark.parametrize("least", [0, 100, 900])
def test_numbers_that_32_bits_cannot_hold(tensors, tmp_path, monkeypatch, least):
    """As if they were as large: those from `least` bytes on, sizes and places."""
    monkeypatch.setattr(pt_writer, "_TOO_LARGE", least)
    write(tmp_path / "ours.pt", tensors)
    content = (tmp_path / "ours.pt").read_bytes()
    assert content.count(b"PK\6\6") == content.count(b"PK\6\7") == 1
    assert content[-6:-2] == b"\xff" * 4
    check_same(tmp_path / "ours.pt", tensors)


def test_checksums_are_of_the_values(tensors, tmp_path):
    """Any flipped bit of a storage is found by them."""
    write(tmp_path / "ours.pt", tensors)
    path, content = tmp_path / "flipped.pt", (tmp_path / "ours.pt").read_bytes()
    storage = tensors[1].view(torch.uint8).numpy().tobytes()
    with zipfile.ZipFile(tmp_path / "ours.pt") as archive:
        assert zlib.crc32(storage) == archive.getinfo("archive/data/1").CRC
    begin = content.index(storage)
    for at in range(begin, begin + len(storage)):
        path.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
        with pytest.raises(ActivationsError, match=r"flipped\.pt is truncated or damaged"):
            check_pt(path)


def test_tensors_written_by_several_threads(tmp_path):
    """Each is written by one of them, all into one file."""
    tensors = [torch.randn(4, 500, 64) for _ in range(3)]
    planned = [PtTensor((4, 500, 64), torch.float32) for _ in tensors]

    def write_one(number):
        for rows in tensors[number].reshape(-1, 64).split(7):
            file.write(planned[number], rows)

    with open_pt(tmp_path / "ours.pt", value_of(planned)) as file, ThreadPoolExecutor(3) as pool:
        list(pool.map(write_one, range(3)))
    check_same(tmp_path / "ours.pt", tensors)


def test_a_file_that_is_not_finished_is_not_there(tmp_path):
    tensor = PtTensor((1, 2, 8), torch.float32)

    def break_off():
        with open_pt(tmp_path / "ours.pt", {"x": tensor}) as file:
            file.write(tensor, torch.zeros(1, 8))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        break_off()
    assert list(tmp_path.iterdir()) == []
    # Nor where values are missing.
    with pytest.raises(AssertionError), open_pt(tmp_path / "ours.pt", {"x": tensor}) as file:
        file.write(tensor, torch.zeros(1, 8))
    assert list(tmp_path.iterdir()) == []
