"""Several layers at once with `mlp_in` computed from `resid_mid`, against the formula itself."""

import hashlib
import pickle
from dataclasses import replace

import pytest
import torch
from manifests import changed_manifest
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from builder.build import build
from llava_amber_activations import ActivationsError, hook_batches
from llava_amber_activations.batches import on_device
from llava_amber_activations.sources.sites import read_norms
from llava_amber_activations.sources.source import open_source
from llava_amber_activations.store.norms_file import write_norms

LAYERS = [31, 0, 5]
HOOKS = {"mlp_in": "mlp.hook_in", "resid_mid": "hook_resid_mid", "mlp_out": "hook_mlp_out"}


@pytest.fixture(scope="module")
def stored(all_store, read_store):
    """The store's own tensors."""
    return read_store(all_store)


@pytest.fixture(scope="module")
def drawn(all_store, tmp_path_factory):
    """A data set whose norms scale every dimension of every layer otherwise."""
    folder = tmp_path_factory.mktemp("drawn") / "dataset"
    build(all_store, folder, configs=["all_layers"], max_shard_size="1MB")
    norms = read_norms(open_source(folder))
    weight = torch.rand(norms.weight.shape, generator=torch.Generator().manual_seed(7)) + 0.5
    write_norms(folder, replace(norms, weight=weight))
    content = (folder / "norms.safetensors").read_bytes()
    with changed_manifest(folder) as manifest:
        entry = manifest["files"]["norms.safetensors"]
        entry["sha256"], entry["bytes"] = hashlib.sha256(content).hexdigest(), len(content)
    return folder


@pytest.fixture(params=[False, True], ids=["shards", "prepared"])
def kept(request, tmp_path):
    return {"prepared": True, "cache_dir": tmp_path} if request.param else {}


def expected_of(stored, folder, site, layer):
    """A site's vectors of all rows: [rows, H]."""
    if site == "mlp_out":
        return stored[f"mlp_out_{layer:02d}"]
    x = stored[f"x_{layer:02d}"]
    if site == "resid_mid":
        return x
    weight = load_file(folder / "norms.safetensors")["weight"][layer]
    # As LlamaRMSNorm of transformers has it; the tiny model's eps is 1e-6.
    return weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    "sites", ["mlp_in", ["mlp_in", "resid_mid"], ["resid_mid", "mlp_in"]], ids=str
)
def test_every_site_in_any_order(drawn, stored, kept, sites, workers):
    """Every row once, mixed; each vector is the row's own; in the order that was asked for."""
    wanted = [sites] if isinstance(sites, str) else sites
    places = zip(stored["sample"].tolist(), stored["position"].tolist(), strict=True)
    row_of = {place: number for number, place in enumerate(places)}
    options = {"batch_size": 20, "shuffle": True, "rows": True, **kept}
    batches = hook_batches(drawn, LAYERS, x_site=sites, **options)
    seen = []
    for batch in DataLoader(batches, batch_size=None, num_workers=workers):
        at = zip(batch["sample"].tolist(), batch["position"].tolist(), strict=True)
        rows = [row_of[place] for place in at]
        seen += rows
        assert [name for name in batch if name.startswith("blocks.")] == [
            *(f"blocks.{layer}.{HOOKS[site]}" for site in wanted for layer in LAYERS),
            *(f"blocks.{layer}.{HOOKS['mlp_out']}" for layer in LAYERS),
        ]
        for site in (*wanted, "mlp_out"):
            for layer in LAYERS:
                found = batch[f"blocks.{layer}.{HOOKS[site]}"]
                assert torch.equal(found, expected_of(stored, drawn, site, layer)[rows])
    assert sorted(seen) == list(range(len(row_of)))


def test_another_dtype(drawn, stored, kept):
    """Computed of the rows as they are kept, and then converted."""
    (pair,) = hook_batches(drawn, [4], x_site="mlp_in", dtype="bfloat16", names="layers", **kept)
    assert torch.equal(pair.x[4], expected_of(stored, drawn, "mlp_in", 4).bfloat16())
    assert torch.equal(pair.mlp_out[4], stored["mlp_out_04"].bfloat16())


@pytest.mark.parametrize("saved", [None, "mlp_in", ["resid_mid", "mlp_in"]], ids=str)
@pytest.mark.parametrize("loaded", [None, "mlp_in", ["resid_mid", "mlp_in"]], ids=str)
def test_a_saved_state_is_of_its_sites(drawn, kept, saved, loaded):
    """Refused by batches of others, in a sentence that names them; their own go on with it."""
    options = {"batch_size": 24, "shuffle": True, **kept}
    one, other = (hook_batches(drawn, [4], x_site=site, **options) for site in (saved, loaded))
    iterator = iter(one)
    next(iterator)
    state = pickle.loads(pickle.dumps(one.state_dict()))
    if saved != loaded:
        with pytest.raises(ActivationsError, match=r"batches with another .*x_site \(") as refused:
            other.load_state_dict(state)
        assert "\n" not in str(refused.value)
        return
    other.load_state_dict(state)
    for found, expected in zip(other, iterator, strict=True):
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_what_is_computed_is_pinned_with_the_rest(drawn, kept, monkeypatch):
    """Whatever is given was pinned, and nothing is made of it afterwards."""
    pinned = []

    def pin(tensor):
        pinned.append(tensor.clone())
        return pinned[-1]

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    monkeypatch.setattr(on_device.torch.accelerator, "is_available", lambda: True)
    sites = ["resid_mid", "mlp_in"]
    (batch,) = hook_batches(drawn, [4], x_site=sites, pin_memory=True, dtype="float16", **kept)
    assert len(batch) == 3
    for tensor in batch.values():
        assert any(tensor is each for each in pinned) and tensor.dtype == torch.float16
