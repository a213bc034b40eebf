"""`mlp_in` of a repo, computed by the norms that were pushed with it."""

import json

import pytest
import torch
from datasets import load_dataset
from huggingface_hub import HfApi
from loopback_hub import DEFAULT_TOKEN
from safetensors import safe_open

from builder.info import describe
from builder.push import push
from llava_amber_activations import (
    Activations,
    ActivationsError,
    activation_batches,
    hook_batches,
    load_activations,
    open_layer,
)

NAME = "norms.safetensors"
LAYER = 5


@pytest.fixture(scope="module")
def pushed_norms(all_dataset):
    push(all_dataset, "lab/with-norms", token=DEFAULT_TOKEN)
    return "lab/with-norms"


@pytest.fixture(scope="module")
def expected(all_dataset):
    """The layer's `mlp_in` of every row, [rows, H], by what other libraries read of the folder."""
    split = load_dataset(str(all_dataset), f"L{LAYER}", split=f"L{LAYER}", streaming=True)
    x = torch.tensor([row["x"] for row in split])
    with safe_open(all_dataset / NAME, framework="pt") as file:
        eps = json.loads(file.metadata()["norms"])["eps"][LAYER]
        weight = file.get_tensor("weight")[LAYER]
    return weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps))


def test_straight_from_the_hub(hub, pushed_norms, all_dataset, expected, tmp_path):
    """Streaming, downloaded, and several layers at once; the file is sent once."""
    assert hub.read(pushed_norms, NAME) == (all_dataset / NAME).read_bytes()
    assert describe(pushed_norms).to_json()["x_sites"] == ["resid_mid", "mlp_in"]
    hub.reset_counts()
    acts = Activations(pushed_norms)
    options = {"n_targets": 2, "x_site": "mlp_in"}
    ways = [
        acts.batches(LAYER, **options),
        activation_batches(open_layer(pushed_norms, LAYER, **options)),
        activation_batches(load_activations(pushed_norms, LAYER, streaming=True, **options)),
        activation_batches(load_activations(pushed_norms, LAYER, cache_dir=tmp_path, **options)),
    ]
    assert hub.file_counts()[NAME].gets == 1
    for batches in ways:
        (batch,) = batches
        assert torch.equal(batch["x"], expected)
    kept = {"prepared": True, "cache_dir": tmp_path}
    for how in ({}, kept):
        (batch,) = hook_batches(pushed_norms, [LAYER], x_site="mlp_in", **how)
        assert torch.equal(batch[f"blocks.{LAYER}.mlp.hook_in"], expected)


def test_its_own_site_needs_no_norms(hub, pushed_norms):
    hub.reset_counts()
    next(iter(Activations(pushed_norms).batches(LAYER, 1)))
    assert NAME not in hub.file_counts()


def test_norms_that_are_gone_from_the_repo(hub, all_dataset):
    push(all_dataset, "lab/without-norms", token=DEFAULT_TOKEN)
    HfApi(token=DEFAULT_TOKEN).delete_file(NAME, "lab/without-norms", repo_type="dataset")
    with pytest.raises(ActivationsError, match=rf"{NAME} of lab/without-norms is missing"):
        open_layer("lab/without-norms", LAYER, x_site="mlp_in")
    assert len(next(iter(Activations("lab/without-norms").batches(LAYER, 1)))["x"])
