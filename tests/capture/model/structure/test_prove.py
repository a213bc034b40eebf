"""What adds up in a layer, and what is refused, on layers that are written here."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from capture.model.structure.prove import CannotRunError, prove_decoder
from capture.model.taps import Taps
from llava_amber_activations import ActivationsError

WIDTH, N_LAYERS, T = 16, 3, 6
IDS = torch.arange(T)[None]


class Norm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(1 + torch.rand(WIDTH))

    def forward(self, x):
        return self.weight * x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()


class Mlp(nn.Module):
    def __init__(self, width=4 * WIDTH):
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, width), nn.Linear(width, WIDTH)

    def forward(self, x):
        return self.down(self.up(x).relu())


class Attention(nn.Module):
    """What precedes a position, on average; its states are first in a tuple."""

    def __init__(self):
        super().__init__()
        self.values = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        n = torch.arange(1, x.shape[1] + 1)[None, :, None]
        return self.values(x).cumsum(1) / n, None


class Layer(nn.Module):
    """As Llama's, in other words than any family's."""

    def __init__(self):
        super().__init__()
        self.before, self.mixes = Norm(), Attention()
        self.between, self.thinks = Norm(), Mlp()
        self.after = Norm()
        self.build()

    def build(self):
        """What a layer of another kind has more."""

    def attended(self, x):
        return x + self.mixes(self.before(x))[0]

    def forward(self, x):
        mid = self.attended(x)
        return mid + self.thinks(self.between(mid))


class NormAfter(Layer):
    def forward(self, x):
        mid = self.attended(x)
        return mid + self.after(self.thinks(mid))


class Scaled(Layer):
    """A learned number's tangent multiplies the term."""

    def build(self):
        self.opens = nn.Parameter(torch.tensor([0.7]))

    def forward(self, x):
        mid = self.attended(x)
        return mid + self.opens.tanh() * self.thinks(self.between(mid))


class ScaledSum(Layer):
    def build(self):
        self.shrinks = 0.5

    def forward(self, x):
        return self.shrinks * super().forward(x)


class Gate(nn.Module):
    def __init__(self):
        super().__init__()
        self.open = nn.Parameter(torch.randn(WIDTH))

    def forward(self, stream, term):
        return (-self.open).sigmoid() * stream + self.open.sigmoid() * term


class Gated(Layer):
    def build(self):
        self.gate = Gate()

    def forward(self, x):
        mid = self.attended(x)
        return self.gate(mid, self.after(self.thinks(self.between(mid))))


class Parallel(Layer):
    def forward(self, x):
        normed = self.before(x)
        return x + self.mixes(normed)[0] + self.thinks(normed)


class PostNorm(Layer):
    """As BERT's: the sum is normed."""

    def forward(self, x):
        mid = self.between(self.attended(x))
        return self.after(mid + self.thinks(mid))


class SecondBlock(Layer):
    """A smaller block, itself made of each position alone, stands after the MLP's."""

    def build(self):
        self.small = Mlp(4)

    def forward(self, x):
        out = super().forward(x)
        return out + self.after(self.small(out))


class TwoBranches(Layer):
    """Two MLPs with norms of their own read the stream side by side."""

    def build(self):
        self.other_norm, self.other = Norm(), Mlp()

    def forward(self, x):
        mid = self.attended(x)
        both = self.thinks(self.between(mid)) + self.other(self.other_norm(mid))
        return mid + self.after(both)


class TwoStreams(Layer):
    """The stream stands beside a second one, [2, batch, T, H], which a later module updates."""

    def build(self):
        self.updates = Norm()

    def forward(self, x):
        out = super().forward(x[0])
        return torch.stack([self.updates(out), x[1] + out])


class NoMlp(Layer):
    """Layers of a hybrid that have an attention alone."""

    def forward(self, x):
        return self.attended(x)


class Unfed(Layer):
    """The MLP gets another thing than the norm's output."""

    def forward(self, x):
        mid = self.attended(x)
        return mid + self.thinks(2 * self.between(mid))


class Clipped(Layer):
    def forward(self, x):
        return super().forward(x).clamp(-1, 1)


class Mixed(Layer):
    """Two streams, mixed anew: no module reads one to which the MLP's output is added."""

    def forward(self, x):
        mid = self.attended(x.mean(0))
        return torch.stack([x[0] * 0.3 + x[1], x[1]]) + self.thinks(self.between(mid))


class Model(nn.Module):
    """Layers in a stack, behind an embedding."""

    def __init__(self, layers, n_streams=0, **config):
        super().__init__()
        numbers = {"num_hidden_layers": N_LAYERS, "hidden_size": WIDTH, **config}
        self.config = SimpleNamespace(**numbers, get_text_config=lambda: SimpleNamespace(**numbers))
        self.embeds, self.layers = nn.Embedding(T, WIDTH), nn.ModuleList(layers)
        # Of as many layers, and as wide: a picture's.
        self.tower = nn.ModuleList(Layer() for _ in layers)
        self.n_streams = n_streams

    def forward(self, input_ids, attention_mask, use_cache):
        x = self.embeds(input_ids)
        if self.n_streams:
            x = torch.stack([x] * self.n_streams)
        for layer in self.layers:
            x = layer(x)
        return x


def model_of(*kinds, **more):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        kinds = kinds * N_LAYERS if len(kinds) == 1 else kinds
        return Model([kind() for kind in kinds], **more).eval()


def gathered(model, decoder):
    """`resid_mid` and `mlp_out` of each layer, as the taps gather them: [T, H] each."""
    with (
        torch.inference_mode(),
        Taps(decoder, "resid_mid", torch.float32) as taps,
        taps.aimed(torch.arange(T), torch.device("cpu")) as rows,
    ):
        model(IDS, None, use_cache=False)
    return rows[:N_LAYERS], rows[N_LAYERS:]


KINDS = {
    # What mlp_out is, which module's input the stream is, and what the layer makes of the two.
    Layer: ("output of thinks", "between", lambda layer, mid, out: mid + out),
    NormAfter: ("output of after", "thinks", lambda layer, mid, out: mid + out),
    Scaled: ("tanh(opens) × output of thinks", "between", lambda layer, mid, out: mid + out),
    ScaledSum: (
        "output of thinks (the sum is then multiplied by 0.5)",
        "between",
        lambda layer, mid, out: 0.5 * (mid + out),
    ),
    Gated: (
        "gate's factors × output of after (the stream is multiplied by gate's other factors)",
        "between",
        lambda layer, mid, out: (-layer.gate.open).sigmoid() * mid + out,
    ),
    Parallel: (
        "output of thinks (added beside the output of mixes)",
        "before",
        lambda layer, mid, out: mid + layer.mixes(layer.before(mid[None]))[0][0] + out,
    ),
    PostNorm: (
        "output of thinks (the sum then goes through after)",
        "thinks",
        lambda layer, mid, out: layer.after(mid + out),
    ),
    SecondBlock: (
        "output of thinks (the output of after is then added)",
        "between",
        lambda layer, mid, out: mid + out + layer.after(layer.small(mid + out)),
    ),
    TwoBranches: ("output of after", "between", lambda layer, mid, out: mid + out),
}


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_what_adds_up(kind):
    """What the taps gather makes, by the layer's own formula, what the layer returns."""
    added, reads, formula = KINDS[kind]
    model = model_of(kind)
    decoder = prove_decoder(model, {"input_ids": IDS}).decoder
    assert decoder.layers == tuple(model.layers)
    assert decoder.sites("resid_mid") == {"x": f"input of {reads}", "mlp_out": added}
    returned = []
    for layer in model.layers:
        layer.register_forward_hook(lambda module, args, output: returned.append(output[0]))
    for layer, mid, out in zip(model.layers, *gathered(model, decoder), strict=True):
        assert torch.allclose(formula(layer, mid, out), returned.pop(0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", [Layer, Scaled, ScaledSum, Gated, Parallel, PostNorm])
def test_in_half_precision(kind, dtype):
    """A sum holds up to its own rounding."""
    decoder = prove_decoder(model_of(kind).to(dtype), {"input_ids": IDS}).decoder
    assert decoder.sites("resid_mid")["mlp_out"] == KINDS[kind][0]


def test_layers_of_several_kinds():
    model = model_of(Layer, NormAfter, Layer)
    assert prove_decoder(model, {"input_ids": IDS}).decoder.sites("resid_mid") == {
        "x": "0,2: input of between; 1: input of thinks",
        "mlp_out": "0,2: output of thinks; 1: output of after",
    }


def test_sites_that_a_layer_does_not_have():
    branches = prove_decoder(model_of(TwoBranches), {"input_ids": IDS}).decoder
    with pytest.raises(ActivationsError, match=r"layer 0 .* several branches.* is its mlp_in"):
        branches.sites("mlp_in")
    model = model_of(TwoStreams, n_streams=2)
    streams = prove_decoder(model, {"input_ids": IDS}).decoder
    assert "what updates gets, which updates" in streams.sites("resid_mid")["mlp_out"]
    with pytest.raises(ActivationsError, match=r"several streams.* is its resid_pre"):
        Taps(streams, "resid_pre", torch.float32).__enter__()


@pytest.mark.parametrize(
    ("kind", "more", "said"),
    [
        (
            NoMlp,
            {},
            "decoder layer 1 adds the output of mixes to the stream, which mixes positions",
        ),
        (Unfed, {}, "decoder layer 1 does not add .* what between returns is given to no MLP"),
        (Clipped, {}, "decoder layer 1 does not add its MLP's output to the stream that its MLP"),
    ],
)
def test_what_is_refused(kind, more, said):
    with pytest.raises(ActivationsError, match=said):
        prove_decoder(model_of(Layer, kind, Layer, **more), {"input_ids": IDS})


def test_streams_that_are_mixed_anew():
    with pytest.raises(
        ActivationsError, match=r"layer 0 returns .* \[2, 1, 6, 16\], which are sev"
    ):
        prove_decoder(model_of(Mixed, n_streams=2), {"input_ids": IDS})


def test_stacks_that_are_not_one():
    model = model_of(Layer, num_hidden_layers=2)
    with pytest.raises(
        ActivationsError, match="Model has 0 stacks of 2 decoder layers of width 16"
    ):
        prove_decoder(model, {"input_ids": IDS})
    model = model_of(Layer)
    model.layers[1] = nn.Identity()
    with pytest.raises(ActivationsError, match="decoder layer 1 is not reached"):
        prove_decoder(model, {"input_ids": IDS})
    model = model_of(Layer)
    model.layers[2].register_forward_hook(lambda module, args, output: model.tower[0](output))
    with pytest.raises(ActivationsError, match="Model has 2 stacks of 3 decoder layers"):
        prove_decoder(model, {"input_ids": IDS})
    model = model_of(Layer)
    model.layers[1] = model.layers[0]
    with pytest.raises(ActivationsError, match="decoder layer 0 runs 2 times"):
        prove_decoder(model, {"input_ids": IDS})


def test_configs_that_say_too_little():
    with pytest.raises(ActivationsError, match="does not say how many layers"):
        prove_decoder(model_of(Layer, hidden_size=None), {"input_ids": IDS})
    model = model_of(Layer)
    model.config.is_encoder_decoder = True
    with pytest.raises(ActivationsError, match="Model is an encoder-decoder"):
        prove_decoder(model, {"input_ids": IDS})


def test_a_model_that_does_not_run():
    with pytest.raises(CannotRunError, match=r"does not run on a short text \(IndexError: "):
        prove_decoder(model_of(Layer), {"input_ids": IDS + T})


class Remembering(Attention):
    """An attention whose keys stand in a cache that it was given, and is given again."""

    def forward(self, x, cache):
        cache.setdefault(id(self), x)
        return super().forward(cache[id(self)])


class Cached(Layer):
    """The attention's output is normed, and added as an MLP's might be."""

    def build(self):
        self.mixes = Remembering()

    def attended(self, x):
        return x + self.after(self.mixes(self.before(x), {})[0])


def test_what_remembers_is_no_mlp():
    """It answers as before, whatever the other positions' input is."""
    decoder = prove_decoder(model_of(Cached), {"input_ids": IDS}).decoder
    assert decoder.sites("resid_mid") == {"x": "input of between", "mlp_out": "output of thinks"}
    assert {block.adds.path for block in decoder.blocks} == {"thinks"}
    with pytest.raises(ActivationsError, match="decoder layer 0 adds the output of"):
        prove_decoder(model_of(CachedAlone), {"input_ids": IDS})


class CachedAlone(Cached):
    def forward(self, x):
        return self.attended(x)
