"""verify --recapture: the same model agrees, another one or another picture is found out."""

import shutil

import pytest
import torch

from capture.recapture import recapture
from capture.tiny_model import make_tiny_llava
from llava_amber_activations import ActivationsError

CPU = torch.device("cpu")


@pytest.mark.parametrize("options", [{}, {"positions": "all", "x_site": "mlp_in"}])
def test_the_same_model_agrees(make_store, tiny_llava, image_dir, tmp_path, options):
    store = make_store(tmp_path / "store", **options)
    found = recapture(
        store, model=str(tiny_llava), image_dir=image_dir, n_samples=3, seed=1, device=CPU
    )
    assert len(found.samples) == 3 and found.largest_error < 1e-5


def test_on_the_command_line(cli, last_store, tiny_llava, image_dir, all_dataset):
    options = ("--recapture", 2, "--model", tiny_llava, "--image-dir", image_dir)
    result = cli("verify", last_store, *options)
    assert result.returncode == 0, result.stderr
    assert "captured again; the largest relative error is" in result.stdout
    result = cli("verify", last_store, "--recapture", 2)
    assert result.returncode == 2
    result = cli("verify", all_dataset, *options)
    assert result.returncode == 1 and "is not a capture store" in result.stderr


def test_another_model_is_found_out(last_store, image_dir, tmp_path):
    other = make_tiny_llava(tmp_path / "other", seed=1)
    with pytest.raises(ActivationsError, match="differs from the stored one"):
        recapture(
            last_store, model=str(other), image_dir=image_dir, n_samples=1, seed=0, device=CPU
        )
    narrow = make_tiny_llava(tmp_path / "narrow", hidden_size=32)
    with pytest.raises(ActivationsError, match=r"hidden_size \(64, not 32\)"):
        recapture(
            last_store, model=str(narrow), image_dir=image_dir, n_samples=1, seed=0, device=CPU
        )


def test_another_picture_is_found_out(last_store, tiny_llava, image_dir, tmp_path):
    images = tmp_path / "images"
    shutil.copytree(image_dir, images)
    for path in images.iterdir():
        shutil.copy(image_dir / "AMBER_8.jpg", path)
    with pytest.raises(ActivationsError, match="is not the one that was captured"):
        recapture(
            last_store, model=str(tiny_llava), image_dir=images, n_samples=7, seed=0, device=CPU
        )
