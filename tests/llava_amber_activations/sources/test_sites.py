"""At which sites `x` can be read, and what is said where it cannot."""

import hashlib
import json
import shutil

import numpy as np
import pytest
import torch
from format_1_0 import make_manifest_1_0, make_store_1_0
from manifests import changed_manifest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from builder.build import build
from builder.export import export
from builder.import_pt import import_pt
from builder.info import describe, info
from builder.verify import verify
from llava_amber_activations import (
    Activations,
    ActivationsError,
    activation_batches,
    hook_batches,
    load_activations,
    open_layer,
)

NAME = "norms.safetensors"


@pytest.fixture
def folder(last_dataset, tmp_path):
    """A copy of a dataset folder to change: 32 layers, 64 wide, its norms all ones."""
    shutil.copytree(last_dataset, tmp_path / "dataset")
    return tmp_path / "dataset"


def readers():
    """Each way to ask for a site, by its name."""
    return {
        "open_layer": lambda source, **site: open_layer(source, 5, **site),
        "load_activations": lambda source, **site: load_activations(
            source, 5, streaming=True, **site
        ),
        "batches": lambda source, **site: Activations(source).batches(5, **site),
        "hook_batches": lambda source, **site: hook_batches(source, [5], **site),
    }


def without_norms(folder):
    """Make of a folder what was written before there were norms."""
    with changed_manifest(folder) as manifest:
        del manifest["files"][NAME]
    (folder / NAME).unlink()
    return folder


@pytest.mark.parametrize("reader", readers())
def test_a_site_that_cannot_be_had(folder, reader):
    read = readers()[reader]
    with pytest.raises(ActivationsError, match="at resid_mid, from which resid_pre cannot be"):
        read(folder, x_site="resid_pre")
    with pytest.raises(ActivationsError, match=r"x_site must be one of .* got 'ln2'"):
        read(folder, x_site="ln2")
    without_norms(folder)
    read(folder, x_site="resid_mid")
    with pytest.raises(ActivationsError, match=r"holds x at resid_mid, and no norms\.safetensors"):
        read(folder, x_site="mlp_in")


def test_a_capture_of_another_site_has_no_norms(make_store, tmp_path):
    """Nor is its own site computed."""
    store = make_store(tmp_path / "store", x_site="mlp_in")
    assert not (store / NAME).exists()
    assert describe(store).to_json()["x_sites"] == ["mlp_in"]
    build(store, tmp_path / "dataset", configs=("all_layers",))
    assert open_layer(tmp_path / "dataset", 5, x_site="mlp_in").wanted.norm is None
    with pytest.raises(ActivationsError, match="holds x at mlp_in, from which resid_mid cannot"):
        open_layer(tmp_path / "dataset", 5, x_site="resid_mid")


def test_the_store_s_norms_travel_with_the_data(last_store, last_dataset, folder):
    """The same bytes, checked by every checksum, and said."""
    assert (last_dataset / NAME).read_bytes() == (last_store / NAME).read_bytes()
    for path in (last_store, last_dataset):
        assert dict(info(path))["x can be read at"] == f"resid_mid, mlp_in (computed by {NAME})"
        assert describe(path).to_json()["x_sites"] == ["resid_mid", "mlp_in"]
    assert "x can be read at" not in dict(info(without_norms(folder)))
    assert describe(folder).to_json()["x_sites"] == ["resid_mid"]
    verify(folder)


def test_states_name_the_site(last_dataset):
    """A state of one site is refused by batches of the other; an older one has none."""
    own, computed = (
        activation_batches(open_layer(last_dataset, 5, x_site=site), 4)
        for site in ("resid_mid", "mlp_in")
    )
    assert "x_site" not in own.state_dict() and computed.state_dict()["x_site"] == "mlp_in"
    for batches, state in ((own, computed.state_dict()), (computed, own.state_dict())):
        with pytest.raises(ActivationsError, match="batches with another x_site"):
            batches.load_state_dict(state)


def test_hooks_of_both_sites(last_dataset):
    """From one column, each its own tensor."""
    (batch,) = hook_batches(last_dataset, [5, 31], x_site=("resid_mid", "mlp_in"))
    for layer in (5, 31):
        own, computed = (
            next(iter(activation_batches(open_layer(last_dataset, layer, **site, first_target=0))))
            for site in ({}, {"x_site": "mlp_in"})
        )
        assert torch.equal(batch[f"blocks.{layer}.hook_resid_mid"], own["x"])
        assert torch.equal(batch[f"blocks.{layer}.mlp.hook_in"], computed["x"])
        assert not torch.equal(own["x"], computed["x"])


@pytest.mark.parametrize("configs", [("all_layers",), ("default",)])
def test_export_and_import(last_store, configs, tmp_path, cli):
    """`--x-site` in both layouts; the note names it, and so does what is imported again."""
    build(last_store, tmp_path / "dataset", configs=configs)
    options = ("--layers", "3-5", "--x-site", "mlp_in")
    for layout in ("layers", "samples"):
        result = cli("export", "dataset", layout, "--format", layout, *options)
        assert result.returncode == 0, result.stderr
        note = json.loads((tmp_path / layout / "export.json").read_text())
        assert note["recipe"]["x_site"] == "mlp_in"
    stream = open_layer(tmp_path / "dataset", 4, x_site="mlp_in")
    (batch,) = activation_batches(stream)
    x = torch.load(tmp_path / "layers" / "L4" / "batch_0_x.pt", weights_only=True)["x"]
    assert torch.equal(x[:, 0], batch["x"])
    sample = torch.load(tmp_path / "samples" / "sample_0007.pt", weights_only=True)["activations"]
    assert torch.equal(sample[4], batch["x"][7])
    with pytest.raises(ActivationsError, match="an export of x at mlp_in, not resid_mid"):
        export(tmp_path / "dataset", tmp_path / "layers", layout="layers", layers="3-5")
    assert import_pt(tmp_path / "layers", tmp_path / "again").recipe.x_site == "mlp_in"
    result = cli("export", "dataset", "out", "--format", "layers", "--x-site", "resid_pre")
    assert result.returncode == 1 and "resid_pre cannot be computed" in result.stderr


def rewritten(folder, change):
    """Change the norms' tensors or header, and their checksum in the manifest with them."""
    path = folder / NAME
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["norms"])
    tensors, header = change(tensors, header)
    save_file(tensors, path, metadata={"norms": json.dumps(header)})
    content = path.read_bytes()
    with changed_manifest(folder) as manifest:
        entry = manifest["files"][NAME]
        entry["sha256"], entry["bytes"] = hashlib.sha256(content).hexdigest(), len(content)


def resealed(tensors, header):
    """The header of tensors, its checksums made anew by the words of the format alone."""
    sha256 = {
        name: hashlib.sha256(np.ascontiguousarray(tensor.numpy())).hexdigest()
        for name, tensor in tensors.items()
    }
    others = {**{k: v for k, v in header.items() if k != "self_sha256"}, "sha256": sha256}
    text = json.dumps(others, sort_keys=True, separators=(",", ":"))
    return tensors, {**others, "self_sha256": hashlib.sha256(text.encode()).hexdigest()}


CHANGES = {
    "another weight": lambda t, h: ({"weight": t["weight"] + 1}, h),
    "another header": lambda t, h: (t, {**h, "kind": "rms_offset"}),
    "narrow": lambda t, h: resealed({"weight": t["weight"][:, :-1].contiguous()}, h),
    "of fewer layers": lambda t, h: resealed({"weight": t["weight"][1:]}, {**h, "eps": [1.0] * 31}),
    "of another dtype": lambda t, h: resealed(
        {"weight": t["weight"].half()}, {**h, "dtype": "float16"}
    ),
    "of fewer eps": lambda t, h: resealed(t, {**h, "eps": [1e-6]}),
    "of an unknown kind": lambda t, h: resealed(t, {**h, "kind": "batch"}),
    "of a newer format": lambda t, h: resealed(t, {**h, "format_version": "2.0"}),
    "without a weight": lambda t, h: resealed({"bias": t["weight"]}, h),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_damaged_norms_whose_checksum_in_the_manifest_is_right(folder, change):
    rewritten(folder, change)
    for read in (lambda source: open_layer(source, 5, x_site="mlp_in"), verify):
        with pytest.raises(ActivationsError, match=rf"{NAME} of .*dataset is damaged"):
            read(folder)
    # The data's own site needs no norms.
    open_layer(folder, 5)


@pytest.mark.parametrize("size", [0, 7, 100, 2000])
def test_norms_cut_short_or_missing(folder, size):
    path = folder / NAME
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ActivationsError, match=rf"{NAME} of .*dataset is damaged"):
        open_layer(folder, 5, x_site="mlp_in")
    with pytest.raises(ActivationsError, match=rf"{NAME} is not as it was written"):
        verify(folder)
    path.unlink()
    for read in (lambda source: open_layer(source, 5, x_site="mlp_in"), verify):
        with pytest.raises(ActivationsError, match=rf"{NAME} is missing: build or download"):
            read(folder)


@pytest.mark.parametrize("place", [0, 40, -1], ids=["length", "header", "data"])
def test_a_flipped_bit(folder, place):
    """Whichever byte it is in, verify names the file, and readers of mlp_in refuse it."""
    content = bytearray((folder / NAME).read_bytes())
    content[place] ^= 1
    (folder / NAME).write_bytes(content)
    with pytest.raises(ActivationsError, match=rf"{NAME} is not as it was written"):
        verify(folder)
    with pytest.raises(ActivationsError, match=rf"{NAME} of .*dataset is damaged"):
        open_layer(folder, 5, x_site="mlp_in")


def test_data_of_before_there_were_norms(last_store, folder, tmp_path):
    """A store and a folder of format 1.0: read as before, and in one sentence why not otherwise."""
    expected = next(iter(activation_batches(open_layer(folder, 5))))["x"]
    make_manifest_1_0(folder)
    store = make_store_1_0(shutil.copytree(last_store, tmp_path / "store"))
    build(store, tmp_path / "built")
    for old in (folder, tmp_path / "built"):
        assert not (old / NAME).exists()
        verify(old)
        for site in (None, "resid_mid"):
            (batch,) = activation_batches(open_layer(old, 5, x_site=site))
            assert torch.equal(batch["x"], expected)
        for read in readers().values():
            with pytest.raises(ActivationsError, match=r"captured before there was such") as said:
                read(old, x_site="mlp_in")
            assert "x_site=mlp_in needs a capture of it" in str(said.value)
            assert "\n" not in str(said.value)
    export(folder, tmp_path / "pt", layout="layers", layers="5")
    assert torch.equal(
        torch.load(tmp_path / "pt/L5/batch_0_x.pt", weights_only=True)["x"][:, 0], expected
    )


def test_the_option_is_explained(cli):
    """By its values, as the recipe writes them."""
    said = " ".join(cli("export", "--help", COLUMNS="200").stdout.split())
    assert "--x-site" in said and "<resid_mid|resid_pre|mlp_in>" in said
    assert "computed by the model's norms" in said


def test_damaged_norms_of_a_store(last_store, tmp_path):
    """By SHA256SUMS, before anything is built."""
    store = shutil.copytree(last_store, tmp_path / "store")
    content = bytearray((store / NAME).read_bytes())
    content[-1] ^= 1
    (store / NAME).write_bytes(content)
    for read in (verify, lambda path: build(path, tmp_path / "dataset")):
        with pytest.raises(ActivationsError, match=rf"{NAME} is not as it was written"):
            read(store)
