"""`statistics.safetensors` that is damaged, missing or of another data set: one sentence each."""

import hashlib
import json
import shutil

import pytest
import torch
from manifests import changed_manifest
from safetensors.torch import load_file, save_file

from builder.verify import verify
from llava_amber_activations import KINDS, ActivationsError, load_statistics

NAME = "statistics.safetensors"


@pytest.fixture
def folder(last_dataset, tmp_path):
    """A copy of a dataset folder to damage: 32 layers, 64 wide."""
    shutil.copytree(last_dataset, tmp_path / "dataset")
    return tmp_path / "dataset"


def test_missing(folder):
    (folder / NAME).unlink()
    with pytest.raises(ActivationsError, match=rf"{NAME} is missing: build or download"):
        load_statistics(folder)


@pytest.mark.parametrize("name", [NAME, "manifest.json"])
def test_a_folder_in_its_place(folder, name):
    (folder / name).unlink()
    (folder / name).mkdir()
    with pytest.raises(ActivationsError, match=rf"{name} is a folder"):
        load_statistics(folder)


@pytest.mark.parametrize("size", [0, 7, 100, 2000])
def test_cut_short(folder, size):
    path = folder / NAME
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ActivationsError, match=rf"{NAME} of .*dataset is damaged"):
        load_statistics(folder)


def narrow(tensors):
    return {**tensors, "x_std": tensors["x_std"][:, :-1].contiguous()}


def of_fewer_layers(tensors):
    return {name: tensor[:-1].contiguous() for name, tensor in tensors.items()}


def of_integers(tensors):
    return {**tensors, "x_mean_norm": tensors["x_mean_norm"].to(torch.int32)}


def lacking_a_robust_one(tensors):
    return {name: tensor for name, tensor in tensors.items() if name != "robust_x_count"}


def counts_of_floats(tensors):
    return {**tensors, "mlp_out_count": tensors["mlp_out_count"].float()}


def lacking_one(tensors):
    return {name: tensor for name, tensor in tensors.items() if name != "mlp_out_std"}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (narrow, r"x_std is torch.float32 \[32, 63\], not float32 \[32, 64\]"),
        (of_fewer_layers, r"is torch.float32 \[31, 64\], not float32 \[32, 64\]"),
        (of_integers, r"x_mean_norm is torch.int32 \[32\], not float32 \[32\]"),
        (lacking_one, "it has no mlp_out_std"),
        (lacking_a_robust_one, "it has no robust_x_count"),
        (counts_of_floats, r"mlp_out_count is torch.float32 \[32\], not int64 \[32\]"),
    ],
)
def test_of_another_kind_with_right_checksums(folder, change, match):
    save_file(change(load_file(folder / NAME)), folder / NAME)
    content = (folder / NAME).read_bytes()
    with changed_manifest(folder) as manifest:
        entry = manifest["files"][NAME]
        entry["sha256"], entry["bytes"] = hashlib.sha256(content).hexdigest(), len(content)
    for read in (load_statistics, verify):
        with pytest.raises(ActivationsError, match=match):
            read(folder)


def test_damage_that_safetensors_quotes(folder):
    """It repeats what it found in the place of a number, all hundred thousand characters of it."""
    header = (
        b'{"x_mean": {"dtype": "' + b"x" * 100_000 + b'", "shape": [1], "data_offsets": [0, 4]}}'
    )
    (folder / NAME).write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(ActivationsError, match=NAME) as caught:
        load_statistics(folder)
    assert len(str(caught.value)) < 1000


@pytest.fixture
def older(folder):
    """A folder whose file holds what format 1.0 wrote, and no more."""
    tensors = {
        name: tensor
        for name, tensor in load_file(folder / NAME).items()
        if name.removeprefix("x_").removeprefix("mlp_out_") in ("mean", "std", "mean_norm")
    }
    assert len(tensors) == 6
    save_file(tensors, folder / NAME)
    content = (folder / NAME).read_bytes()
    with changed_manifest(folder) as manifest:
        entry = manifest["files"][NAME]
        entry["sha256"], entry["bytes"] = hashlib.sha256(content).hexdigest(), len(content)
    return folder


def counted_by(folder, kinds):
    """Rewrite the file as one that counts other kinds: each has as many rows as its place + 1."""
    tensors = load_file(folder / NAME)
    for name in [name for name in tensors if name.endswith("_by_kind")]:
        shape = tensors[name].shape[0], len(kinds)
        values = torch.arange(1, 1 + len(kinds)).expand(shape)
        tensors[name] = values.contiguous().to(tensors[name].dtype)
        if "norm" in name:
            tensors[name][:, 0] = torch.nan
        else:
            tensors[name][:, 0] = 0
    said = {"format_version": "1.1", "kinds": kinds}
    save_file(tensors, folder / NAME, metadata={"statistics": json.dumps(said)})
    content = (folder / NAME).read_bytes()
    with changed_manifest(folder) as manifest:
        entry = manifest["files"][NAME]
        entry["sha256"], entry["bytes"] = hashlib.sha256(content).hexdigest(), len(content)


def test_of_fewer_kinds(folder):
    """A file that told three apart: of the others there were no rows."""
    counted_by(folder, ["text", "image", "generated", "unknown"])
    found = load_statistics(folder)
    for statistics in (found, found.robust):
        assert statistics.x_count_by_kind[5].tolist() == [0, 2, 3, 0, 0, 4]
        norms = statistics.mlp_out_mean_norm_by_kind[5]
        assert norms.isnan().tolist() == [True, False, False, True, True, False]
        assert norms[[1, 2, 5]].tolist() == [2, 3, 4]


def test_of_more_kinds(folder):
    """A file of a later release: the kinds that are not known here count as unknown, together."""
    counted_by(folder, [*KINDS, "tool", "unknown"])
    found = load_statistics(folder)
    assert found.x_count_by_kind[5].tolist() == [0, 2, 3, 4, 5, 6 + 7]
    assert found.x_mean_norm_by_kind[5, 1:].tolist() == pytest.approx(
        [2, 3, 4, 5, (6 * 6 + 7 * 7) / 13]
    )


@pytest.mark.parametrize("kinds", [None, [], ["text"], "unknown", {"unknown": 1}])
def test_of_kinds_that_are_none(folder, kinds):
    counted_by(folder, ["text", "image", "generated", "unknown"])
    tensors = load_file(folder / NAME)
    save_file(tensors, folder / NAME, metadata={"statistics": json.dumps({"kinds": kinds})})
    with pytest.raises(ActivationsError, match="is damaged"):
        load_statistics(folder)


def test_of_an_earlier_release(older, last_dataset):
    """It is read as before, and counts its rows; what it did not tell apart is one sentence."""
    verify(older)
    found, newer = load_statistics(older), load_statistics(last_dataset)
    for name in ("x_mean", "x_std", "x_mean_norm", "mlp_out_mean", "mlp_out_std"):
        assert torch.equal(getattr(found, name), getattr(newer, name))
    assert found.x_count.tolist() == found.mlp_out_count.tolist() == [8] * 32
    assert found.x_count_by_kind[5].tolist() == [0, 0, 0, 0, 0, 8]
    assert found.x_mean_norm_by_kind[5].isnan().tolist() == [True] * 5 + [False]
    for ask in (lambda: found.robust, lambda: found.normaliser(5)):
        with pytest.raises(ActivationsError, match=r"dataset are over all rows.*robust=False"):
            ask()
    ours, theirs = found.normaliser(5, robust=False), newer.normaliser(5, robust=False)
    assert torch.equal(ours.x.mean, theirs.x.mean) and torch.equal(ours.x.scale, theirs.x.scale)


def test_a_layer_that_is_not_held(folder):
    """As after an import, which lacks the last layer's x."""
    tensors = load_file(folder / NAME)
    for name in ("mlp_out_mean", "robust_mlp_out_mean"):
        tensors[name][7] = torch.nan
    save_file(tensors, folder / NAME)
    with pytest.raises(ActivationsError, match="holds no mlp_out of layer 7, and so no statistics"):
        load_statistics(folder).normaliser(5, 2)
    assert load_statistics(folder).normaliser(5, 1).targets.mean.shape == (1, 64)
