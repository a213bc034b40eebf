"""Features files: read back, under checksums, and of the samples that their chunk has rows of."""

import json

import pytest
import torch
from manifests import seal
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from llava_amber_activations import ActivationsError
from llava_amber_activations.store.chunk import write_chunk
from llava_amber_activations.store.features import FeaturesFile, write_features

SAMPLE = torch.tensor([0, 2, 3], dtype=torch.int32)


@pytest.fixture
def written(tmp_path):
    """A file of two layers' features, its path and what its chunk would say of it."""
    generator = torch.Generator().manual_seed(0)
    features = {layer: torch.rand(3, 2, generator=generator) for layer in (5, 30)}
    return tmp_path / "f", features, write_features(tmp_path / "f", features, SAMPLE)


def check_all(path, sha256, samples=(0, 2, 3), dtype="float32"):
    file = FeaturesFile(path)
    file.check(samples, dtype, sha256)
    for layer in file.layers:
        file.check_layer(layer)


def test_features(written):
    """A file of features gives each layer's rows back, and which samples they are of."""
    path, features, sha256 = written
    found = FeaturesFile(path)
    assert found.layers == [5, 30] and torch.equal(found.sample, SAMPLE)
    assert torch.equal(found.rows(5), features[5])
    assert torch.equal(found.rows(30, 1, 3), features[30][1:])
    check_all(path, sha256)
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["features"])
    assert header["self_sha256"] == sha256 == seal(header)


def test_any_flipped_bit(written):
    """Of the file's length, names, dtypes, checksums or values; only spaces say nothing."""
    path, _, sha256 = written
    content = path.read_bytes()
    for at in range(len(content)):
        if content[at : at + 1] == b" ":
            continue
        damaged = bytearray(content)
        damaged[at] ^= 1 << at % 8
        path.write_bytes(damaged)
        with pytest.raises(ActivationsError, match="f is damaged"):
            check_all(path, sha256)
    path.write_bytes(content)
    check_all(path, sha256)


def test_files_that_do_not_fit_their_chunk(written, tmp_path):
    path, features, sha256 = written
    other = write_features(tmp_path / "other", {**features, 5: features[5] + 1}, SAMPLE)
    with pytest.raises(ActivationsError, match=r"f is damaged .it is not the one that its chunk"):
        check_all(path, other)
    with pytest.raises(ActivationsError, match=r"f is damaged .it has features of other samples"):
        check_all(path, sha256, samples=(0, 2))
    with pytest.raises(ActivationsError, match=r"damaged .features_05 is F32 \[3, 2\], not F16"):
        check_all(path, sha256, dtype="float16")
    write_features(tmp_path / "uneven", {5: features[5], 30: torch.rand(3, 4)}, SAMPLE)
    with pytest.raises(ActivationsError, match=r"uneven is damaged .its layers have \[2, 4\]"):
        check_all(tmp_path / "uneven", None)


def test_a_file_of_format_1_0(written, tmp_path):
    """It has no checksums; whose features it holds is checked all the same."""
    save_file(load_file(written[0]), tmp_path / "old")
    check_all(tmp_path / "old", None)
    with pytest.raises(ActivationsError, match=r"old is damaged .it has features of other samples"):
        check_all(tmp_path / "old", None, samples=(0, 2, 4))


def test_files_that_are_no_features(written, tmp_path, chunk):
    """Missing, cut, text, and another kind of safetensors file."""
    (tmp_path / "cut").write_bytes(written[0].read_bytes()[:-1])
    (tmp_path / "text").write_text("not features")
    write_chunk(tmp_path / "chunk", *chunk)
    for name in ("absent", "cut", "text", "chunk"):
        with pytest.raises(ActivationsError, match=f"{name} is (missing|damaged)"):
            FeaturesFile(tmp_path / name)
