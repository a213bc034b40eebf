"""`.pt` files that claim more than they hold, or hold what no dataset can."""

import pickle
import subprocess
import sys
import zipfile
from collections import OrderedDict

import pytest
import torch

from builder.import_pt import import_pt
from builder.pt.layers_layout import read_targets, read_x
from builder.pt.samples_layout import read_sample
from llava_amber_activations import ActivationsError

LEGACY = {"_use_new_zipfile_serialization": False}
LEGACY_IF = {False: {}, True: LEGACY}


def refused(path, match, read=read_x):
    """Assert that a file is refused in one line that names it."""
    with pytest.raises(ActivationsError, match=match) as caught:
        read(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def repacked(path, program=None, **options):
    """Write a zip archive's records anew, with another program in the place of its own."""
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, content in records.items():
            is_program = name.endswith("/data.pkl")
            archive.writestr(name, program if is_program and program is not None else content)


def program_of(path):
    with zipfile.ZipFile(path) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        return archive.read(name)


@pytest.mark.parametrize("options", [{}, LEGACY])
@pytest.mark.parametrize("shape", [(1000, 1000, 4_000_000), (2, 3, 8)])
def test_expanded_tensor(tmp_path, shape, options):
    """1.6 kB that claim 16 TB: stride 0, and one value stored. A small one is refused likewise."""
    path = tmp_path / "file.pt"
    torch.save({"x": torch.zeros(1).expand(shape)}, path, **options)
    assert path.stat().st_size < 2000
    refused(path, "expanded tensor.*1 values are stored")
    torch.save({"targets": [torch.zeros(1).expand(shape)]}, path, **options)
    refused(path, "expanded tensor", read_targets)
    torch.save({"activations": {0: torch.zeros(1).expand(shape[1:])}}, path, **options)
    refused(path, "expanded tensor", read_sample)


def test_overlapping_tensor_that_claims_no_more_than_is_stored(tmp_path):
    """A view whose rows overlap is read as torch shows it."""
    path = tmp_path / "file.pt"
    view = torch.arange(100.0).as_strided((2, 3, 8), (4, 2, 1))
    torch.save({"x": view}, path)
    assert torch.equal(read_x(path), view.clone())


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
@pytest.mark.parametrize(
    ("size", "stride", "offset"),
    [
        ((2, 3, 8), (24, 8, 1), 1),
        ((2, 3, 8), (25, 8, 1), 0),
        ((2, 3, 8), (2**62, 8, 1), 0),
        ((2, 3, 8), (24, 8, 1), 2**62),
    ],
)
@pytest.mark.parametrize("old_format", [False, True])
def test_tensor_that_ends_behind_its_storage(tmp_path, size, stride, offset, old_format):
    """Sizes, strides and offset of a file are no promise that the values are there."""
    path = tmp_path / "file.pt"
    torch.save({"x": Claim(torch.zeros(48), offset, size, stride)}, path, **LEGACY_IF[old_format])
    refused(path, "of a storage of 48")


class Claim:
    """Pickled as a tensor that claims any part of a storage."""

    def __init__(self, tensor, offset, size, stride):
        self.arguments = (tensor.storage(), offset, size, stride, False, OrderedDict())

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, self.arguments


@pytest.mark.parametrize("n_values", [49, 2**31, 2**60])
@pytest.mark.parametrize("old_format", [False, True])
def test_storage_that_is_larger_than_the_file(tmp_path, n_values, old_format):
    """The number of a storage's values is changed: 48 (K 0) becomes another."""
    path = tmp_path / "file.pt"
    torch.save({"x": torch.zeros(2, 3, 8)}, path, **LEGACY_IF[old_format])
    number = pickle.dumps(n_values, protocol=2)[2:-1]
    if old_format:
        content = path.read_bytes()
        assert content.count(b"\x03\x00\x00\x00cpuq\x06K\x30") == 1
        path.write_bytes(content.replace(b"cpuq\x06K\x30", b"cpuq\x06" + number))
    else:
        program = program_of(path)
        assert program.count(b"cpuq\x06K\x30") == 1
        repacked(path, program.replace(b"cpuq\x06K\x30", b"cpuq\x06" + number))
    refused(path, "truncated or damaged")


def test_old_file_without_its_values(tmp_path):
    """torch.load gives memory that nobody has written for a storage that is not listed."""
    path = tmp_path / "file.pt"
    torch.save({"x": torch.ones(2, 3, 8)}, path, **LEGACY)
    content = path.read_bytes()
    key = content[: -48 * 4 - 8].rpartition(b"X")[0].rpartition(b"\x80\x02")[0]
    path.write_bytes(key + pickle.dumps([], protocol=2))
    refused(path, "other storages than it describes")


class Marked(torch.Tensor):
    """A subclass of a tensor."""


def quantised():
    return torch.quantize_per_tensor(torch.ones(2, 3, 8), 0.1, 0, torch.qint8)


def with_attribute():
    tensor = torch.ones(2, 3, 8)
    tensor.note = "mine"
    return tensor


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "match"),
    [
        (quantised, "sparse, quantised"),
        (lambda: torch.ones(2, 3, 8).to_sparse(), "sparse, quantised"),
        (lambda: torch.ones(6, 8).to_sparse_csr(), "sparse, quantised"),
        (lambda: torch.nested.nested_tensor([torch.ones(2, 8)] * 2), "nested"),
        (lambda: torch.ones(2, 3, 8, device="meta"), "without values"),
        (lambda: torch.ones(2, 3, 8).as_subclass(Marked), "could run code|subclass"),
        (with_attribute, "subclass"),
        (lambda: torch.ones(2, 3, 8, dtype=torch.complex64), "complex64"),
        (lambda: torch.ones(2, 3, 8, dtype=torch.complex64).conj(), "complex64"),
        (lambda: torch.ones(2, 3, 8, dtype=torch.float8_e4m3fn), "rare dtype"),
        (lambda: torch.ones(2, 3, 8, dtype=torch.int16), "int16"),
        (lambda: torch.ones(2, 3, 8, dtype=torch.bool), "bool"),
        (lambda: torch.ones(0, 3, 8), "empty"),
        (lambda: torch.ones(2, 0, 8), "empty"),
        (lambda: torch.ones(2, 3, 0), "empty"),
        (lambda: torch.tensor(1.0), "shape"),
        (lambda: None, "no tensor"),
        (lambda: 3.5, "no tensor"),
    ],
)
def test_what_is_no_dense_tensor(tmp_path, make, match):
    path = tmp_path / "file.pt"
    torch.save({"x": make()}, path)
    refused(path, match)


def test_sign_that_is_yet_to_be_turned(tmp_path, write_layers):
    """torch saves a negated view as its values and a mark; they are read as torch shows them."""
    path = tmp_path / "file.pt"
    values = torch.arange(48.0).view(2, 3, 8)
    torch.save({"x": torch._neg_view(values)}, path)
    assert torch.equal(read_x(path), -values) and not read_x(path).is_neg()
    write_layers(tmp_path / "plain", change=lambda tensor, *_: -tensor)
    write_layers(tmp_path / "marked", change=lambda tensor, *_: torch._neg_view(tensor))
    import_pt(tmp_path / "plain", tmp_path / "a")
    import_pt(tmp_path / "marked", tmp_path / "b")
    for shard in sorted((tmp_path / "a").rglob("*.parquet")):
        assert (
            shard.read_bytes() == (tmp_path / "b" / shard.relative_to(tmp_path / "a")).read_bytes()
        )


def tuples(depth, ending):
    return b"\x80\x02}K\x00" + b"\x85" * depth + ending + b"K\x01s."


@pytest.mark.parametrize(
    ("program", "match"),
    [
        # A dict of a million entries; a list of as many lists.
        (pickle.dumps(dict.fromkeys(range(1_000_000), 0), protocol=2), "more than 1 MiB"),
        (b"\x80\x02](" + b"]" * 1_100_000 + b"e.", "more than 1 MiB"),
        # Tuples in tuples as a key: hashing them would overflow the stack.
        (tuples(500_000, b""), "keys are neither texts nor numbers"),
        # Lists in lists, 300,000 deep.
        (b"\x80\x02" + b"]" * 300_000 + b"a" * 299_999 + b".", "no tensor x|not a sample"),
        # An OrderedDict, a set, bytes of whatever: each call would make a copy.
        (b"\x80\x02ccollections\nOrderedDict\n((K\x01K\x02tt\x85R.", "could run code"),
        (b"\x80\x02c__builtin__\nset\n(]tR.", "could run code"),
        (b"\x80\x02c__builtin__\nbytearray\n\x8a\x08" + b"\xff" * 7 + b"\x00\x85R.", "run code"),
        (b"\x80\x02cos\nsystem\nX\x01\x00\x00\x00x\x85R.", "could run code"),
        (pickle.dumps({"x": 1}, protocol=4), "pickle protocol 4"),
        (b"\x80\x02}X\xff\xff\xff\xff", "truncated or damaged"),
        (b"\x80\x02K\x01K\x02\x86Q.", "names a storage"),
        (b"\x80\x02a.", "truncated or damaged"),
        (b"\x80\x02h\x07.", "truncated or damaged"),
        (b"\x80\x02t.", "truncated or damaged"),
        (b"", "truncated or damaged"),
    ],
)
def test_hostile_pickle(tmp_path, program, match):
    """Refused from a zip archive and from an old file, within seconds and little memory."""
    path = tmp_path / "file.pt"
    torch.save({"x": torch.zeros(2, 3, 8)}, path)
    repacked(path, program)
    refused(path, match)
    refused(path, match.partition("|")[2] or match, read_sample)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "no .pt file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "no .pt file"),
        (b"\0" * 999, "no .pt file"),
        (b"PK", "truncated or damaged"),
        (b"PK\x05\x06" + b"\0" * 18, "not one that torch.save wrote"),
        (pickle.dumps([1, 2], protocol=2), "truncated or damaged"),
        (pickle.dumps(1, protocol=2) * 5, "not one that torch.save wrote"),
    ],
)
def test_what_is_no_pt_file(tmp_path, content, match):
    path = tmp_path / "file.pt"
    path.write_bytes(content)
    refused(path, match)


def test_zip_archives_of_something_else(tmp_path):
    """A text, a model as a program, a bomb, records that lie over one another."""
    path = tmp_path / "file.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "mine")
    refused(path, "not one that torch.save wrote")
    torch.save({"x": torch.zeros(50_000_000)}, path)
    repacked(path, compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1_000_000
    refused(path, "compressed zip archive")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("file/data.pkl", program_of_small(tmp_path))
        archive.writestr("file/data/0", bytes(100_000))
        for number in range(1, 100):
            record = zipfile.ZipInfo(f"file/data/{number}")
            first = archive.filelist[1]
            record.header_offset, record.CRC = first.header_offset, first.CRC
            record.file_size = record.compress_size = first.file_size
            archive.filelist.append(record)
    refused(path, "zip archive of more bytes than it has|truncated or damaged")


def program_of_small(tmp_path):
    torch.save({"x": torch.zeros(2, 3, 8)}, tmp_path / "small.pt")
    return program_of(tmp_path / "small.pt")


_MEASURED = """
import resource, sys
from pathlib import Path
from builder.import_pt import import_pt
from llava_amber_activations import ActivationsError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    import_pt(Path(sys.argv[1]), Path(sys.argv[2]))
except ActivationsError as error:
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_memory_of_a_hostile_folder(tmp_path, write_layers):
    """Kilobytes that claim a terabyte are refused in well under 2 GiB."""
    write_layers(tmp_path / "pt")
    huge = torch.zeros(1).expand(64, 4096, 4_000_000)
    torch.save({"x": huge}, tmp_path / "pt" / "L1" / "batch_0_x.pt")
    arguments = [sys.executable, "-c", _MEASURED, tmp_path / "pt", tmp_path / "dataset"]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=True)
    assert int(done.stdout) < 500
