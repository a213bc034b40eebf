"""`Statistics.normaliser`: mean 0 and size 1 of a layer's `x` and targets, and back."""

import numpy as np
import pytest
import torch
from random_store import make_random_store, read_vectors

from builder.build import build
from llava_amber_activations import (
    Activations,
    ActivationsError,
    activation_batches,
    load_activations,
    load_statistics,
)

ROWS, WIDTH = 96, 16


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Every dimension of another mean and size; two rows are a thousand times as large."""

    def change(tensors):
        spread = torch.linspace(0.5, 4, WIDTH)
        samples = tensors["sample"]
        for name, vectors in tensors.items():
            if name.startswith(("x_", "mlp_out_")):
                vectors.copy_(vectors * spread + spread.flip(0))
                vectors[:, 2] = 0.25
                vectors[(samples == 0) | (samples == 70)] *= 500

    return make_random_store(tmp_path_factory.mktemp("n") / "store", ROWS, WIDTH, change=change)


@pytest.fixture(scope="module")
def folder(store):
    build(store, store.parent / "dataset", n_targets=4)
    return store.parent / "dataset"


def batch_of(store, layer, targets):
    """All rows of a layer and its targets, by safetensors alone; and which rows are no outliers."""
    vectors = read_vectors(store)
    stacked = np.stack([vectors[f"mlp_out_{target:02d}"] for target in targets], axis=1)
    kept = ~np.isin(vectors["sample"], [0, 70])
    x = torch.from_numpy(vectors[f"x_{layer:02d}"])
    return {"x": x, "targets": torch.from_numpy(stacked), "sample": torch.arange(ROWS)}, kept


@pytest.mark.parametrize("per_dimension", [False, True])
@pytest.mark.parametrize("robust", [False, True])
def test_mean_0_and_size_1(store, folder, robust, per_dimension):
    """Each target by its own numbers; with one scale, the mean of ‖v‖² is H."""
    batch, kept = batch_of(store, 5, [6, 7, 8, 9])
    normaliser = load_statistics(folder).normaliser(5, robust=robust, per_dimension=per_dimension)
    found = normaliser({name: tensor.double() for name, tensor in batch.items()})
    assert found.keys() == batch.keys()
    rows = kept if robust else np.full(ROWS, True)
    for vectors in (found["x"][rows], *found["targets"][rows].unbind(1)):
        assert vectors.mean(0).abs().max() < 1e-5
        assert vectors.square().sum(1).mean().item() == pytest.approx(
            WIDTH - per_dimension * (not vectors[:, 2].any()), rel=1e-5
        )
        if per_dimension:
            std = vectors.std(0, correction=0)
            # Without outliers, the third never varies.
            assert torch.allclose(std, std.new_tensor([1, 1, 1 - robust, *[1] * 13]), atol=1e-5)
    for name in ("x", "targets"):
        back = getattr(normaliser, name).inverse(found[name])
        assert torch.allclose(back, batch[name].double(), rtol=1e-6, atol=1e-6)


def test_by_the_published_formula(store, folder):
    """(x - mean) / sqrt(mean variance), from numpy over the rows that are kept."""
    batch, kept = batch_of(store, 5, [5, 6])
    normaliser = load_statistics(folder).normaliser(5, 2, first_target=0)
    for found, vectors in (
        (normaliser.x(batch["x"].double()), batch["x"]),
        (normaliser.targets(batch["targets"].double())[:, 1], batch["targets"][:, 1]),
    ):
        rows = vectors.numpy().astype(np.float64)
        expected = (rows - rows[kept].mean(0)) / np.sqrt(rows[kept].var(0).mean())
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtypes_stay(store, folder, dtype):
    """Computed in float32, and rounded once."""
    batch, _ = batch_of(store, 5, [6])
    normaliser = load_statistics(folder).normaliser(5, 1)
    x = batch["x"].to(dtype)
    assert normaliser.x(x).dtype == dtype
    assert torch.equal(normaliser.x(x), normaliser.x(x.float()).to(dtype))
    assert normaliser.x.inverse(normaliser.x(x)).dtype == dtype


def test_batches_of_a_data_set(folder):
    """From either way of reading; the object's statistics are the same."""
    rows = load_activations(folder, 5, 4, cache_dir=folder.parent / "cache")
    batch = next(iter(activation_batches(rows, 8)))
    normaliser = Activations(folder).statistics.normaliser(5)
    found = normaliser(batch)
    assert found["x"].shape == (8, WIDTH) and found["targets"].shape == (8, 4, WIDTH)
    assert torch.equal(found["x"], normaliser.to("cpu").x(batch["x"]))


def test_a_layer_without_targets(folder):
    with pytest.raises(ActivationsError, match="layer 31 has no targets"):
        load_statistics(folder).normaliser(31)
    assert load_statistics(folder).normaliser(31, first_target=0).targets.mean.shape == (1, WIDTH)


def test_vectors_of_another_shape(store, folder):
    batch, _ = batch_of(store, 5, [6, 7])
    with pytest.raises(ActivationsError, match=r"\[96, 2, 16\] do not end in \[4, 16\]"):
        load_statistics(folder).normaliser(5)(batch)
