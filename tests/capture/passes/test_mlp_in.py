"""`mlp_in` that is computed from a capture of `resid_mid`, against an independent pass's own."""

import json
import shutil

import pytest
import torch
from single_pass import Reference
from transformers import LlavaForConditionalGeneration

from builder.build import build
from llava_amber_activations import activation_batches, load_activations, open_layer

N_SAMPLES, N_LAYERS = 3, 32


@pytest.fixture(scope="module")
def drawn_llava(tiny_llava, tmp_path_factory):
    """The tiny LLaVA with norms that scale every dimension otherwise, in every layer."""
    folder = tmp_path_factory.mktemp("drawn") / "model"
    shutil.copytree(tiny_llava, folder)
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for layer in model.model.language_model.layers:
            weight = layer.post_attention_layernorm.weight
            weight.mul_(1 + torch.rand(weight.shape, generator=generator))
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def captured(make_store, drawn_llava, image_dir, query_file, tmp_path_factory):
    """Function that makes a data set, and its rows' sites by an independent pass: [rows, H]."""
    entries = json.loads(query_file.read_text())[:N_SAMPLES]

    def capture(dtype, store_dtype=None):
        folder = tmp_path_factory.mktemp(dtype)
        store = make_store(
            folder / "store",
            model=str(drawn_llava),
            dtype=dtype,
            store_dtype=store_dtype,
            positions="all",
            # Without padding, as the independent pass runs: equal bits can be asked for.
            batch_size=1,
            max_samples=N_SAMPLES,
        )
        build(store, folder / "dataset", configs=("all_layers",))
        reference = Reference(drawn_llava, getattr(torch, dtype))
        passes = [reference.run(image_dir / e["image"], e["query"]) for e in entries]

        def site(name, layer):
            return torch.cat([getattr(single, name)[layer] for single in passes])

        return folder / "dataset", site

    return capture


def read(dataset, layer, x_site=None):
    """Every `x` of a layer, in order."""
    stream = open_layer(dataset, layer, 1, first_target=0, x_site=x_site)
    return torch.cat([batch["x"].clone() for batch in activation_batches(stream, batch_size=64)])


def units(found, expected):
    """How many floats of their dtype lie between two tensors' values: int64, of each."""
    kind = torch.int32 if found.dtype == torch.float32 else torch.int16

    def order(tensor):
        bits = tensor.contiguous().view(kind).to(torch.int64)
        return torch.where(bits < 0, torch.iinfo(kind).min - bits, bits)

    return (order(found) - order(expected)).abs()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_every_layer_equals_the_independent_pass(captured, dtype):
    """Equal bits in float32, a unit in the last place at most in 16 bits."""
    dataset, site = captured(dtype)
    apart = []
    for layer in range(N_LAYERS):
        kept = site("resid_mid", layer)
        assert torch.equal(read(dataset, layer).to(kept.dtype), kept)
        expected = site("mlp_in", layer)
        found = read(dataset, layer, "mlp_in")
        assert torch.equal(found.to(expected.dtype).to(found.dtype), found)
        apart.append(units(found.to(expected.dtype), expected))
    apart = torch.cat(apart)
    print(f"{dtype}: {(apart == 0).double().mean():.6f} equal bits, {apart.max()} units at most")
    assert apart.max() <= (0 if dtype == "float32" else 1)


def test_a_stream_that_was_rounded_when_it_was_stored(captured):
    """The norm of the rounded stream: two units of the stored dtype at most, few of more than 1."""
    dataset, site = captured("float32", "float16")
    apart = []
    for layer in range(N_LAYERS):
        found = read(dataset, layer, "mlp_in")
        assert found.dtype == torch.float16
        apart.append(units(found, site("mlp_in", layer).half()))
    apart = torch.cat(apart)
    print(f"{(apart == 0).double().mean():.6f} equal bits, {apart.max()} units at most")
    assert apart.max() <= 2 and (apart > 1).double().mean() < 0.01


def test_prepared_and_streamed(captured, tmp_path):
    """The same values by `datasets`, beside the data's own site in one cache."""
    dataset, site = captured("float16")
    options = {"layer": 5, "n_targets": 2, "cache_dir": tmp_path / "cache"}
    own, again, computed, streamed = (
        load_activations(dataset, **options),
        load_activations(dataset, **options, x_site="resid_mid"),
        load_activations(dataset, **options, x_site="mlp_in"),
        load_activations(dataset, **options, x_site="mlp_in", streaming=True),
    )
    assert own.cache_files == again.cache_files != computed.cache_files
    for opened, name in (
        (own, "resid_mid"),
        (computed, "mlp_in"),
        (streamed, "mlp_in"),
        # What `datasets` itself reads, row by row.
        (streamed.filter(lambda row: True), "mlp_in"),
    ):
        (batch,) = activation_batches(opened, batch_size=4096)
        assert units(batch["x"], site(name, 5)).max() <= (0 if name == "resid_mid" else 1)
        assert torch.equal(batch["targets"][:, 0], site("mlp_out", 6))
