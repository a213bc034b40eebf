"""verify --recapture: the same model agrees, another one or another picture is found out."""

import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from capture.model.tiny_model import make_tiny_llava
from capture.recapture import recapture
from llava_amber_activations import ActivationsError
from llava_amber_activations.store.chunk import Chunk, write_chunk
from llava_amber_activations.store.layout import chunk_path, read_recipe, vector_names, write_recipe
from llava_amber_activations.store.sums import write_sums

CPU = torch.device("cpu")


ANSWERED = {"positions": "generated", "max_new_tokens": 3, "logprobs": True}


@pytest.mark.parametrize("options", [{}, {"positions": "all", "x_site": "mlp_in"}, ANSWERED])
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


def without_weights(store, copy):
    """Copy a store whose recipe does not know the weights, as that of a model of the Hub."""
    shutil.copytree(store, copy)
    change_recipe(copy, weights_sha256=None)
    return copy


def change_recipe(store, **changes):
    """Change a finished store's recipe, its checksum with it."""
    write_recipe(store, replace(read_recipe(store), **changes))
    write_sums(store)


def test_another_model_is_found_out(last_store, image_dir, tmp_path):
    """By its weights before it is loaded, by the values where the recipe has no checksum."""
    other = make_tiny_llava(tmp_path / "other", seed=1)
    options = {"image_dir": image_dir, "n_samples": 1, "seed": 0, "device": CPU}
    with pytest.raises(ActivationsError, match=r"other cannot recapture .* weights_sha256"):
        recapture(last_store, model=str(other), **options)
    store = without_weights(last_store, tmp_path / "store")
    with pytest.raises(ActivationsError, match="differs from the stored one"):
        recapture(store, model=str(other), **options)
    narrow = make_tiny_llava(tmp_path / "narrow", hidden_size=32)
    with pytest.raises(ActivationsError, match=r"hidden_size \(64, not 32\)"):
        recapture(store, model=str(narrow), **options)


def test_another_picture_is_found_out(last_store, tiny_llava, image_dir, tmp_path):
    images = tmp_path / "images"
    shutil.copytree(image_dir, images)
    for path in images.iterdir():
        shutil.copy(image_dir / "AMBER_8.jpg", path)
    with pytest.raises(ActivationsError, match="is not the one that was captured"):
        recapture(
            last_store, model=str(tiny_llava), image_dir=images, n_samples=7, seed=0, device=CPU
        )


def rewrite_vector(store, name, change):
    """Change one vector of the first sample in a store, its checksum with it."""
    path = chunk_path(store, 0)
    records = Chunk(path).records
    tensors = load_file(path)
    change(tensors[name][0])
    write_chunk(path, tensors, records)


def test_a_stored_nan_is_found_out(last_store, tiny_llava, image_dir, tmp_path):
    """One value of one vector, of which no comparison is true."""
    store = tmp_path / "store"
    shutil.copytree(last_store, store)
    rewrite_vector(store, "mlp_out_09", lambda vector: vector[3:4].fill_(float("nan")))
    with pytest.raises(ActivationsError, match=r"mlp_out_09 of sample 0 differs.*by inf"):
        recapture(
            store, model=str(tiny_llava), image_dir=image_dir, n_samples=8, seed=0, device=CPU
        )


def test_a_small_error_of_every_vector_is_found_out(last_store, tiny_llava, image_dir, tmp_path):
    """Each within what a single vector may differ by, all of them together not."""
    store = tmp_path / "store"
    shutil.copytree(last_store, store)
    for name in vector_names(range(32)):
        rewrite_vector(store, name, lambda vector: vector.mul_(1.005))
    with pytest.raises(ActivationsError, match=r"vectors of sample 0 differ.*on average"):
        recapture(
            store, model=str(tiny_llava), image_dir=image_dir, n_samples=8, seed=0, device=CPU
        )


def test_another_probability_is_found_out(make_store, tiny_llava, image_dir, tmp_path):
    """One of one token, and one that is not known."""
    store = make_store(tmp_path / "store", **ANSWERED, max_samples=2)
    options = {"model": str(tiny_llava), "image_dir": image_dir, "n_samples": 2, "seed": 0}
    for value in (-9.0, float("nan")):
        copy = tmp_path / f"store {value}"
        shutil.copytree(store, copy)
        rewrite_vector(copy, "logprob", lambda logprob, value=value: logprob.fill_(value))
        with pytest.raises(ActivationsError, match="logprob of sample 0 is not the stored one"):
            recapture(copy, device=CPU, **options)


def test_another_batch_size_is_no_other_recipe(make_store, tiny_llava, image_dir, tmp_path):
    """What decides the last bits alone is compared within the tolerance."""
    store = make_store(tmp_path / "store", batch_size=None)
    change_recipe(store, device="another", reuse_prefix=True, compile=True)
    found = recapture(
        store, model=str(tiny_llava), image_dir=image_dir, n_samples=2, seed=0, device=CPU
    )
    assert found.largest_error < 1e-5
