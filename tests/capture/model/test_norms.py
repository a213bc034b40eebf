"""Which norm feeds the MLPs: found and proven on whole models, and no norm where none is known."""

import json
import shutil

import pytest
import torch
from small_configs import TEXT, VISION, WIDTH
from torch import nn
from transformers import (
    CLIPVisionConfig,
    GemmaConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Starcoder2Config,
)

from capture.model.load import prepare_model
from capture.model.norms import NormWitness, agree, find_norms
from capture.model.structure.prove import prove_decoder
from capture.recapture import recapture
from llava_amber_activations import ActivationsError
from llava_amber_activations.formats.recipe import Recipe
from llava_amber_activations.store.layout import read_recipe
from llava_amber_activations.store.norms_file import read_store_norms, write_norms
from llava_amber_activations.store.sums import write_sums
from llava_amber_activations.vectors.norms import Norms, apply_norm

IDS = torch.tensor([[5, 6, 7, 8, 9, 10]])
DTYPES = ("float32", "float16", "bfloat16")


def llava_of(text_config):
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**VISION), text_config=text_config, image_token_index=60
    )
    return LlavaForConditionalGeneration(config)


def llama():
    return llava_of(LlamaConfig(**TEXT, rms_norm_eps=1e-5))


def gemma():
    return llava_of(GemmaConfig(**TEXT, head_dim=8, rms_norm_eps=3e-6))


def starcoder2():
    return llava_of(Starcoder2Config(**TEXT, norm_epsilon=2e-5))


def drawn(make, dtype):
    """A model whose norms' weights and biases are drawn, and its decoder."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        body = make().eval().to(getattr(torch, dtype)).base_model
        with torch.no_grad():
            for layer in body.language_model.layers:
                for parameter in layer.post_attention_layernorm.parameters():
                    parameter.copy_(torch.randn(WIDTH))
    return body


def proven(body):
    return prove_decoder(body, {"input_ids": IDS})


def norms_of(body):
    found = proven(body)
    return find_norms(found.decoder, found.seen)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("make", "kind", "eps"),
    [(llama, "rms", 1e-5), (gemma, "rms_offset", 3e-6), (starcoder2, "layer_norm", 2e-5)],
)
def test_what_it_gives_is_what_the_mlp_received(make, kind, eps, dtype, tmp_path):
    """By plain hooks, bit by bit, also of what was written and read again."""
    body = drawn(make, dtype)
    decoder, norms = proven(body).decoder, norms_of(body)
    assert (norms.kind, norms.dtype, norms.eps) == (kind, dtype, (eps,) * len(decoder.layers))
    assert (norms.bias is not None) == (kind == "layer_norm")
    write_norms(tmp_path, norms)
    recipe = Recipe(len(norms.eps), WIDTH, 1, store_dtype=dtype, n_samples=1, dtype=dtype)
    norms = read_store_norms(tmp_path, recipe)
    given, received = {}, {}
    for number, layer in enumerate(decoder.layers):
        layer.post_attention_layernorm.register_forward_pre_hook(
            lambda module, args, number=number: given.update({number: args[0][0]})
        )
        layer.mlp.register_forward_pre_hook(
            lambda module, args, number=number: received.update({number: args[0][0]})
        )
    with torch.inference_mode(), NormWitness(decoder, norms) as witness:
        body(input_ids=IDS, attention_mask=torch.ones_like(IDS), use_cache=False)
    assert witness.agrees is True and len(given) == len(received) == len(decoder.layers)
    for number, x in given.items():
        assert torch.equal(apply_norm(x, norms.layer(number)), received[number])


class Clamped(nn.Module):
    """A norm of no kind that is known, with the tensors of one that is."""

    def __init__(self, norm):
        super().__init__()
        self.weight, self.variance_epsilon = norm.weight, norm.variance_epsilon
        self.most = 1e9

    def forward(self, x):
        normed = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return (self.weight * normed).clamp(-self.most, self.most)


def clamped(most, layer=1):
    body = drawn(llama, "float32")
    layer = body.language_model.layers[layer]
    layer.post_attention_layernorm = Clamped(layer.post_attention_layernorm)
    layer.post_attention_layernorm.most = most
    return body


def test_a_norm_of_no_known_kind_in_one_layer():
    assert norms_of(clamped(most=0.5)) is None
    assert norms_of(clamped(most=1e9)).kind == "rms"


@pytest.mark.parametrize("name", ["weight", "variance_epsilon"])
def test_a_norm_that_does_not_say_what_it_holds(name):
    found = proven(clamped(most=1e9))
    assert find_norms(found.decoder, found.seen) is not None
    setattr(found.decoder.layers[1].post_attention_layernorm, name, None)
    assert find_norms(found.decoder, found.seen) is None


def test_real_rows_tell_what_the_first_text_did_not():
    """The witness sees the first pass inside its block alone."""
    body = clamped(most=1e9)
    decoder, norms = proven(body).decoder, norms_of(body)
    decoder.layers[1].post_attention_layernorm.most = 0.5
    with NormWitness(decoder, norms) as witness:
        assert witness.agrees is None
        with torch.inference_mode():
            body(input_ids=IDS, attention_mask=torch.ones_like(IDS), use_cache=False)
            decoder.layers[1].post_attention_layernorm.most = 1e9
            body(input_ids=IDS, attention_mask=torch.ones_like(IDS), use_cache=False)
    assert witness.agrees is False
    with NormWitness(decoder, None) as witness, torch.inference_mode():
        body(input_ids=IDS, attention_mask=torch.ones_like(IDS), use_cache=False)
    assert witness.agrees is None


@pytest.mark.parametrize(
    ("dtype", "units", "more"), [("float32", 8, 128), ("float16", 2, 3), ("bfloat16", 2, 3)]
)
def test_how_near_is_near(dtype, units, more):
    kind = torch.int32 if dtype == "float32" else torch.int16
    expected = torch.randn(4, 64, generator=torch.Generator().manual_seed(0)).add(3)
    expected = expected.abs().add(1).to(getattr(torch, dtype))
    near, far = (
        (expected.view(kind) + distance).view(expected.dtype) for distance in (units, more)
    )
    assert agree(near, expected) and not agree(far, expected)
    assert not agree(expected.double(), expected)
    assert not agree(torch.full_like(expected, torch.nan), expected)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_row_that_is_summed_in_another_order(dtype):
    """As on another machine: the same norm, though r may round to its neighbour."""
    draw = torch.Generator().manual_seed(2)
    x = torch.randn(4096, 256, generator=draw).to(getattr(torch, dtype))
    weight = (torch.rand(1, 256, generator=draw) + 0.5).to(x.dtype)
    norms = Norms("rms", (1e-5,), dtype, weight)
    wide = x.double()
    r = wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    found = apply_norm(x, norms.layer(0))
    # The sum in float64, and the last bit of float32 lost.
    expected = weight * (r * (1 + 2**-23)).float().to(x.dtype)
    assert agree(found, expected) and not torch.equal(found, expected)


def test_a_model_without_known_norms_is_captured_as_before(
    make_store, tmp_path, monkeypatch, capsys
):
    """No file, a sentence, and every chunk says nothing of norms."""

    def without(model, processor, device):
        loaded = prepare_model(model, processor, device)
        object.__setattr__(loaded, "norms", None)
        return loaded

    monkeypatch.setattr("capture.model.load.prepare_model", without)
    store = make_store(tmp_path / "store")
    assert not (store / "norms.safetensors").exists()
    assert "mlp_in cannot be computed from it" in capsys.readouterr().err


def test_a_chunk_in_which_they_do_not_agree(make_store, tmp_path, monkeypatch):
    """One of three is enough for there to be no norms, and a stale file goes."""
    store = make_store(tmp_path / "store")
    (store / "chunks" / "chunk-00001.safetensors").unlink()
    monkeypatch.setattr(NormWitness, "agrees", False)
    assert not (make_store(store) / "norms.safetensors").exists()


def changed_norms(store, change):
    """Change the norms of a finished store, its checksums with them."""
    norms = read_store_norms(store, read_recipe(store))
    write_norms(store, change(norms))
    write_sums(store)


def test_recapture_compares_the_norms(last_store, tiny_llava, image_dir, tmp_path):
    store = shutil.copytree(last_store, tmp_path / "store")
    options = {"model": str(tiny_llava), "image_dir": image_dir, "n_samples": 1, "seed": 0}
    recapture(store, **options, device=torch.device("cpu"))

    def other(norms):
        norms.weight[7, 3] += 1
        return norms

    changed_norms(store, other)
    with pytest.raises(ActivationsError, match=r"norms\.safetensors of .* is not of .* layer 7"):
        recapture(store, **options, device=torch.device("cpu"))


def test_recapture_where_the_norms_are_not_recognised(
    last_store, tiny_llava, image_dir, monkeypatch
):
    """It does not say that the model is another."""
    monkeypatch.setattr("capture.model.load.find_norms", lambda *_: None)
    with pytest.raises(ActivationsError, match=r"cannot be checked: here, what the norms of"):
        recapture(
            last_store,
            model=str(tiny_llava),
            image_dir=image_dir,
            n_samples=1,
            seed=0,
            device=torch.device("cpu"),
        )


def test_every_chunk_says_that_they_agree(last_store):
    from safetensors import safe_open

    for path in (last_store / "chunks").iterdir():
        with safe_open(path, "pt") as file:
            assert json.loads(file.metadata()["chunk"])["norms_agree"] is True
