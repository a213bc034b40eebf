"""Features of trained transcoders: against a module run by hand, pooled, built and exported."""

import json
import shutil

import pytest
import torch
from datasets import load_dataset
from format_1_0 import make_store_1_0
from safetensors.torch import load_file
from tensor_bytes import first_byte
from torch import nn

from builder.build import build
from builder.export import export
from builder.verify import verify
from capture.model.transcoders import load_encoders, pool
from llava_amber_activations import ActivationsError

N_FEATURES = 48


class Transcoder(nn.Module):
    """As the original trainer has it."""

    def __init__(self, n_targets):
        super().__init__()
        self.enc = nn.Sequential(nn.LayerNorm(64), nn.Linear(64, N_FEATURES))
        self.dec = nn.ModuleList(nn.Linear(N_FEATURES, 64) for _ in range(n_targets))


@pytest.fixture(scope="module")
def transcoders():
    torch.manual_seed(0)
    modules = {layer: Transcoder(min(16, 31 - layer)) for layer in range(31)}
    for module in modules.values():
        nn.init.normal_(module.enc[0].weight)
        nn.init.normal_(module.enc[0].bias)
    return modules


@pytest.fixture(scope="module")
def checkpoints(transcoders, tmp_path_factory):
    """Every layer's checkpoint; the odd ones as a compiled module saves them."""
    folder = tmp_path_factory.mktemp("transcoders")
    for layer, module in transcoders.items():
        state = module.state_dict()
        if layer % 2:
            state = {f"_orig_mod.{name}": tensor for name, tensor in state.items()}
        torch.save({"state_dict": state, "epoch": 3}, folder / f"transcoder_L{layer}.pt")
    return folder


def expected_features(transcoders, store, how):
    """Each layer's features of each sample, from the store's own x by the modules themselves."""
    chunks = [load_file(path) for path in sorted((store / "chunks").iterdir())]
    sample = torch.cat([chunk["sample"] for chunk in chunks])
    found = {}
    for layer, module in transcoders.items():
        x = torch.cat([chunk[f"x_{layer:02d}"] for chunk in chunks])
        with torch.no_grad():
            features = torch.relu(module.enc(x))
        rows = [features[sample == number] for number in sample.unique()]
        pooled = {"max": lambda r: r.amax(0), "mean": lambda r: r.mean(0), "last": lambda r: r[-1]}
        found[layer] = torch.stack([pooled[how](each) for each in rows])
    return found


@pytest.mark.parametrize("how", ["max", "mean", "last"])
def test_features_end_to_end(make_store, transcoders, checkpoints, tmp_path, how):
    """capture → build → load_dataset → sample_0000.pt, each equal to the modules' own."""
    store = make_store(tmp_path / "store", positions="all", transcoders=checkpoints, pool=how)
    expected = expected_features(transcoders, store, how)
    build(store, tmp_path / "dataset")
    assert verify(tmp_path / "dataset").n_files > 60
    splits = load_dataset(str(tmp_path / "dataset"), "clt_features")
    assert list(splits) == [f"L{layer}" for layer in range(31)]
    for layer in (0, 7, 30):
        rows = splits[f"L{layer}"].with_format("torch")[:]
        assert rows["sample"].tolist() == list(range(8))
        assert torch.allclose(rows["features"], expected[layer], rtol=1e-4, atol=1e-5)
        assert (rows["features"] > 0).any() and (rows["features"] == 0).any()
    export(tmp_path / "dataset", tmp_path / "pt", layout="samples")
    value = torch.load(tmp_path / "pt" / "sample_0003.pt", weights_only=True)
    assert list(value["activations"]) == list(range(31))
    for layer, features in value["activations"].items():
        assert features.shape == (N_FEATURES,)
        assert torch.allclose(features, expected[layer][3], rtol=1e-4, atol=1e-5)


def test_features_of_kept_layers(make_store, transcoders, checkpoints, tmp_path):
    """Those of the kept layers, of their own x; where no kept layer has one, that is said."""
    kept = {"positions": "all", "transcoders": checkpoints, "layers": (7, 30, 31)}
    store = make_store(tmp_path / "store", **kept)
    expected = expected_features({n: transcoders[n] for n in (7, 30)}, store, "max")
    for number, samples in enumerate(([0, 1, 2], [3, 4, 5], [6, 7])):
        features = load_file(store / "features" / f"features-{number:05d}.safetensors")
        assert set(features) == {"features_07", "features_30", "sample"}
        for layer, rows in expected.items():
            found = features[f"features_{layer:02d}"]
            assert torch.allclose(found, rows[samples], rtol=1e-4, atol=1e-5)
    with pytest.raises(
        ActivationsError, match=r"of the layers 0-30, and none of those .* [(]31[)]"
    ):
        make_store(tmp_path / "none", **{**kept, "layers": (31,)})


def test_a_cpu_with_a_number(checkpoints):
    """As each process of a launch without a GPU has one: the second rank could load nothing."""
    plain = load_encoders(checkpoints, 32, 64, torch.device("cpu"))
    numbered = load_encoders(checkpoints, 32, 64, torch.device("cpu", 1))
    assert list(numbered) == list(plain) == list(range(31))
    for layer, encoder in plain.items():
        assert numbered[layer].weight.tolist() == encoder.weight.tolist()


def test_skipped_samples_have_no_features(make_store, checkpoints, image_dir, tmp_path):
    images = tmp_path / "images"
    shutil.copytree(image_dir, images)
    for number in (2, 4, 5, 6):  # all of the second chunk
        (images / f"AMBER_{number}.jpg").write_bytes(b"broken")
    store = make_store(
        tmp_path / "store", image_dir=images, on_error="skip", transcoders=checkpoints
    )
    build(store, tmp_path / "dataset")
    split = load_dataset(str(tmp_path / "dataset"), "clt_features", split="L4")
    assert split["sample"][:] == [0, 2, 6, 7]


@pytest.fixture(scope="module")
def features_store(make_store, checkpoints):
    """A finished store with features of three chunks."""
    return make_store(transcoders=checkpoints)


def test_features_are_under_checksums(features_store, tmp_path):
    """A flipped bit, a file that is gone or another chunk's: neither verify nor build passes it."""
    store = shutil.copytree(features_store, tmp_path / "store")
    assert verify(store).n_files == 3 + 3 + 3
    path = store / "features" / "features-00001.safetensors"
    content = path.read_bytes()

    def refused(match):
        for refuse in (verify, lambda store: build(store, tmp_path / "dataset")):
            with pytest.raises(ActivationsError, match=match):
                refuse(store)
        assert not (tmp_path / "dataset").exists()

    at = first_byte(path, "features_30")
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    refused(r"features-00001\.safetensors is damaged .features_30 is not as it was written")
    path.write_bytes((store / "features" / "features-00000.safetensors").read_bytes())
    refused(r"features-00001\.safetensors is damaged .it is not the one that its chunk")
    path.unlink()
    refused(r"features-00001\.safetensors is missing: delete it and the chunk of its number")
    path.write_bytes(content)
    verify(store)


def test_features_of_format_1_0(features_store, tmp_path):
    """They have no checksums, which verify says; but they are there, and of the right samples."""
    store = make_store_1_0(shutil.copytree(features_store, tmp_path / "store"))
    assert "features have no checksums in format 1.0" in verify(store).checks
    build(store, tmp_path / "dataset")
    path = store / "features" / "features-00001.safetensors"
    path.write_bytes((store / "features" / "features-00000.safetensors").read_bytes())
    with pytest.raises(ActivationsError, match="features of other samples"):
        build(store, tmp_path / "other")
    path.unlink()
    with pytest.raises(ActivationsError, match=r"features-00001\.safetensors is missing"):
        verify(store)


def test_the_recipe_names_the_checkpoints(make_store, checkpoints, tmp_path):
    """Other checkpoints, or another pooling, into the same store are refused."""
    store = make_store(tmp_path / "store", transcoders=checkpoints)
    assert len(json.loads((store / "capture.json").read_text())["transcoders_sha256"]) == 64
    other = tmp_path / "other"
    shutil.copytree(checkpoints, other)
    (other / "transcoder_L3.pt").unlink()
    for options in ({"transcoders": other}, {"transcoders": checkpoints, "pool": "mean"}, {}):
        with pytest.raises(ActivationsError, match=r"another recipe: (transcoders_sha256|pool)"):
            make_store(store, **options)


class Hostile:
    def __reduce__(self):
        import os

        return os.mkdir, ("executed",)


def test_bad_checkpoints(make_store, checkpoints, tmp_path):
    folder = tmp_path / "bad"
    folder.mkdir()

    def refused(match):
        with pytest.raises(ActivationsError, match=match):
            make_store(tmp_path / "store", transcoders=folder)
        assert not (tmp_path / "store").exists()

    refused("holds no transcoder_L")
    path = folder / "transcoder_L0.pt"
    torch.save({"state_dict": Hostile()}, path)
    refused(r"transcoder_L0\.pt holds more than tensors")
    path.write_bytes((checkpoints / path.name).read_bytes()[:-50])
    refused(r"transcoder_L0\.pt is truncated")
    torch.save({"state_dict": {"enc.0.weight": torch.ones(64)}}, path)
    refused(r"transcoder_L0\.pt lacks enc\.0\.bias")
    wrong = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 8))
    torch.save({f"enc.{name}": tensor for name, tensor in wrong.state_dict().items()}, path)
    refused(r"enc\.0\.weight .* has the shape \[32\], not \[64\]")
    path.unlink()
    shutil.copy(checkpoints / "transcoder_L0.pt", folder / "transcoder_L40.pt")
    refused("transcoder of layer 40, and the model 32 layers")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"enc.1.weight": torch.zeros(1).expand(10**8, 64)}, "expanded tensor"),
        ({"enc.1.weight": torch.ones(48, 64).to_sparse()}, "sparse"),
        ({"enc.1.weight": torch.tensor(1.0)}, r"enc\.1\.weight .* has the shape \[\]"),
        ({"enc.1.weight": torch.ones(48, 64, dtype=torch.int32)}, "int32"),
        ({"enc.1.weight": torch.ones(0, 64)}, "empty"),
        ({"enc.1.weight": None, 3: torch.ones(2)}, r"lacks enc\.1\.weight"),
    ],
)
def test_hostile_checkpoints(tmp_path, checkpoints, change, match):
    """A checkpoint is read as every .pt file of unknown origin is."""
    folder = tmp_path / "transcoders"
    folder.mkdir()
    path = folder / "transcoder_L0.pt"
    state = torch.load(checkpoints / path.name, weights_only=True)["state_dict"]
    torch.save({"state_dict": {**state, **change}}, path)
    with pytest.raises(ActivationsError, match=match) as caught:
        load_encoders(folder, 32, 64, torch.device("cpu"))
    assert "transcoder_L0.pt" in str(caught.value)


def test_flipped_byte_of_a_checkpoint(tmp_path, checkpoints):
    """In a weight: the archive's checksum differs."""
    folder = tmp_path / "transcoders"
    folder.mkdir()
    path = folder / "transcoder_L0.pt"
    content = bytearray((checkpoints / path.name).read_bytes())
    state = torch.load(checkpoints / path.name, weights_only=True)["state_dict"]
    content[content.index(state["enc.1.weight"].numpy().tobytes()) + 7] ^= 1
    path.write_bytes(content)
    with pytest.raises(ActivationsError, match=r"transcoder_L0\.pt is truncated or damaged"):
        load_encoders(folder, 32, 64, torch.device("cpu"))


def test_names_of_checkpoints(tmp_path, checkpoints):
    """L05 is layer 5; with L5 beside it, which is meant cannot be known."""
    folder = tmp_path / "transcoders"
    folder.mkdir()
    shutil.copy(checkpoints / "transcoder_L5.pt", folder / "transcoder_L05.pt")
    assert list(load_encoders(folder, 32, 64, torch.device("cpu"))) == [5]
    shutil.copy(checkpoints / "transcoder_L5.pt", folder)
    with pytest.raises(ActivationsError, match=r"transcoder_L05\.pt and transcoder_L5\.pt, two"):
        load_encoders(folder, 32, 64, torch.device("cpu"))


def test_pooling_of_elements_without_rows():
    features = torch.tensor([[1.0, -2.0], [3.0, -4.0], [5.0, 6.0]])
    element = torch.tensor([0, 0, 2])
    assert pool(features, element, 3, "max").tolist() == [[3, -2], [0, 0], [5, 6]]
    assert pool(features, element, 3, "mean").tolist() == [[2, -3], [0, 0], [5, 6]]
    assert pool(features, element, 3, "last").tolist() == [[3, -4], [0, 0], [5, 6]]
