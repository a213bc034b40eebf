"""`.pt` folders that cannot be imported: one sentence that names the file, and nothing written."""

import random
import zipfile

import pytest
import torch

from builder.import_pt import import_pt
from builder.pt.layers_layout import read_x
from builder.pt.samples_layout import read_sample
from llava_amber_activations import ActivationsError


def refused(folder, dataset, match):
    """Assert that an import fails as a user's mistake and leaves nothing that was not there."""
    before = sorted(dataset.parent.rglob("*"))
    with pytest.raises(ActivationsError, match=match):
        import_pt(folder, dataset)
    assert sorted(dataset.parent.rglob("*")) == before


@pytest.mark.parametrize("old_format", [False, True])
def test_file_cut_anywhere(write_layers, tmp_path, old_format):
    """Wherever a copy broke off, in both of torch's file formats."""
    options = {"_use_new_zipfile_serialization": False} if old_format else {}
    write_layers(tmp_path / "pt", layers=(2,), **options)
    path = tmp_path / "pt" / "L2" / "batch_1_x.pt"
    content = path.read_bytes()
    for size in range(0, len(content) - 1, 11):
        path.write_bytes(content[:size])
        refused(tmp_path / "pt", tmp_path / "dataset", r"batch_1_x\.pt")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("old_format", [False, True])
@pytest.mark.parametrize("layout", ["layers", "samples"])
def test_damaged_byte_anywhere(tmp_path, layout, old_format):
    """A changed byte is read as another value or refused: no other exception ever comes out."""
    path = tmp_path / "file.pt"
    tensor = torch.arange(48.0).view(2, 3, 8)
    value, read = {"x": tensor}, read_x
    if layout == "samples":
        value, read = {"activations": {0: tensor[0], 1: tensor[1]}}, read_sample
    torch.save(value, path, _use_new_zipfile_serialization=not old_format)
    content = path.read_bytes()
    generator = random.Random(0)
    outcomes = {"read": 0, "refused": 0}
    for at in range(min(len(content), 700)):
        damaged = bytearray(content)
        damaged[at] ^= generator.randrange(1, 256)
        path.write_bytes(damaged)
        try:
            read(path)
            outcomes["read"] += 1
        except ActivationsError as error:
            assert "file.pt" in str(error)
            outcomes["refused"] += 1
    assert outcomes["refused"] > 50


@pytest.mark.parametrize(
    "content", [b"", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", b"\0" * 999]
)
def test_what_is_no_pt_file(write_layers, tmp_path, content):
    """An empty file, the pointer that git leaves in place of a large file, zeros."""
    write_layers(tmp_path / "pt")
    (tmp_path / "pt" / "L1" / "batch_0_y.pt").write_bytes(content)
    refused(tmp_path / "pt", tmp_path / "dataset", r"L1/batch_0_y\.pt")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(("target", "name"), [(0, "x"), (1, "y")])
def test_value_that_is_not_finite(write_layers, tmp_path, bad, target, name):
    """`verify` would refuse the dataset, so import does not make it."""

    def change(tensor, layer, number, batch):
        if (layer, number, batch) == (1, target, 1):
            tensor[2, 0, 5] = bad
        return tensor

    write_layers(tmp_path / "pt", change=change)
    # The first batch holds two samples: the third of this one is sample 4 of the folder.
    match = rf"L1/batch_1_{name}\.pt has values that are not finite, in sample 4 of the folder"
    refused(tmp_path / "pt", tmp_path / "dataset", match)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_sample_value_that_is_not_finite(write_samples_layout, tmp_path, bad):
    values = write_samples_layout(tmp_path / "pt")
    value = values["sample_0001.pt"]
    value["activations"][2][3] = bad
    torch.save(value, tmp_path / "pt" / "sample_0001.pt")
    match = r"activations\[2\] of .*sample_0001\.pt has values that are not finite, in sample 1"
    refused(tmp_path / "pt", tmp_path / "dataset", match)


def test_sparse_tensors(write_layers, tmp_path):
    write_layers(tmp_path / "pt", change=lambda tensor, *_: tensor.to_sparse())
    refused(tmp_path / "pt", tmp_path / "dataset", r"L0/batch_0_x\.pt")


@pytest.mark.parametrize("shape", [(2, 3, 0), (2, 0, 8), (0, 3, 8)])
def test_no_rows_or_no_width(write_layers, tmp_path, shape):
    """Nothing to make a dataset of: not an empty folder that nothing can open."""
    write_layers(tmp_path / "pt", shapes=(shape,))
    refused(tmp_path / "pt", tmp_path / "dataset", "/pt")


def test_tensors_with_gradients_are_tensors(write_layers, tmp_path):
    """A script that forgot to detach wrote the same values."""
    write_layers(tmp_path / "plain")
    write_layers(tmp_path / "grad", change=lambda tensor, *_: torch.nn.Parameter(tensor))
    import_pt(tmp_path / "plain", tmp_path / "a")
    import_pt(tmp_path / "grad", tmp_path / "b")
    for path in sorted((tmp_path / "a").rglob("*.parquet")):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()


def test_layers_of_other_samples(write_layers, tmp_path):
    """Layers whose batches hold other numbers of samples, of positions, or another width."""
    for number, shape in enumerate([(4, 3, 8), (2, 4, 8), (2, 3, 9)]):
        folder = tmp_path / f"pt-{number}"
        write_layers(folder, layers=(0, 1))
        write_layers(tmp_path / f"other-{number}", layers=(2,), shapes=(shape, (3, 1, shape[2])))
        (tmp_path / f"other-{number}" / "L2").rename(folder / "L2")
        refused(folder, tmp_path / "dataset", "L2 has (shapes|width) .* and L0 has")


def test_layers_that_contradict_each_other(write_layers, tmp_path):
    """mlp_out_02 as L0 has it is not as L1 has it: no dataset can hold both as one vector."""

    def change(tensor, layer, target, batch):
        return tensor + 1 if (layer, target, batch) == (0, 2, 1) else tensor

    write_layers(tmp_path / "pt", change=change)
    refused(tmp_path / "pt", tmp_path / "dataset", "L0.*L1|L1.*L0")


def test_targets_that_lack_a_layer(write_layers, tmp_path):
    """L0 with one target where L1 has two: which layer is missing cannot be known."""
    values = write_layers(tmp_path / "pt")
    for batch in range(2):
        path = f"L0/batch_{batch}_y.pt"
        torch.save({"y": values[path]["y"], "targets": [values[path]["y"]]}, tmp_path / "pt" / path)
    refused(tmp_path / "pt", tmp_path / "dataset", "L0 has 1 targets")


@pytest.mark.parametrize(
    ("activations", "match"),
    [
        ({0: torch.zeros(8), 1: torch.zeros(8)}, "sample_0001.pt does not fit"),
        ({0: torch.zeros(8), 1: torch.zeros(8), 2: torch.zeros(9)}, "sample_0001.pt does not fit"),
        ({0: torch.zeros(8), 1: torch.zeros(2, 8), 2: torch.zeros(8)}, "does not fit"),
        ({0: torch.zeros(2, 2, 8), 1: torch.zeros(8), 2: torch.zeros(8)}, r"\[2, 2, 8\]"),
        ({"a": torch.zeros(8)}, "names the layer 'a'"),
        ({0: torch.zeros(8).double()}, r"torch\.float64"),
        ({0: [0.0] * 8}, "no tensor"),
        ({}, "not a sample file"),
    ],
)
def test_sample_files_that_do_not_fit(write_samples_layout, tmp_path, activations, match):
    write_samples_layout(tmp_path / "pt")
    torch.save({"activations": activations}, tmp_path / "pt" / "sample_0001.pt")
    refused(tmp_path / "pt", tmp_path / "dataset", match)


def test_storage_with_more_bytes_than_its_tensors_need(write_samples_layout, tmp_path):
    """Whole by the checksums of its zip: bytes put in before the values would shift all of them."""
    write_samples_layout(tmp_path / "pt")
    path = tmp_path / "pt" / "sample_0001.pt"
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    storage = next(name for name in records if name.endswith("data/1"))
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in records.items():
            archive.writestr(name, b"\0" * 4 * (name == storage) + content)
    refused(tmp_path / "pt", tmp_path / "dataset", r"sample_0001\.pt .*storage 1 .* has 36")
