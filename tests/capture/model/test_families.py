"""Other families are found by their structure: tiny random models from their own configs."""

from types import SimpleNamespace

import pytest
import torch
from small_configs import N_LAYERS, TEXT, VISION, WIDTH
from torch import nn
from transformers import (
    AutoTokenizer,
    Blip2Config,
    Blip2ForConditionalGeneration,
    CLIPVisionConfig,
    GptOssConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    MixtralConfig,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

from capture.model.body import without_head
from capture.model.norms import find_norms
from capture.model.structure.probe import probe
from capture.model.structure.prove import CannotRunError, prove_decoder
from capture.model.taps import Taps
from llava_amber_activations import ActivationsError


def llava_next():
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(**VISION),
        text_config=LlamaConfig(**TEXT),
        image_token_index=60,
    )
    return LlavaNextForConditionalGeneration(config)


def qwen2_vl():
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    config = Qwen2VLConfig(
        text_config={**TEXT, "rope_parameters": rope},
        vision_config={
            "depth": 2,
            "embed_dim": 16,
            "hidden_size": WIDTH,
            "num_heads": 2,
            "mlp_ratio": 2,
            "patch_size": 14,
        },
        image_token_id=60,
        video_token_id=61,
        vision_start_token_id=62,
        vision_end_token_id=63,
    )
    return Qwen2VLForConditionalGeneration(config)


def idefics3():
    config = Idefics3Config(
        text_config=LlamaConfig(**TEXT),
        vision_config=VISION,
        image_token_id=60,
        scale_factor=1,
        pad_token_id=0,
    )
    return Idefics3ForConditionalGeneration(config)


def llava_of(text_config):
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**VISION), text_config=text_config, image_token_index=60
    )
    return LlavaForConditionalGeneration(config)


def mixtral():
    """Experts, whose block returns one tensor."""
    return llava_of(MixtralConfig(**TEXT, num_local_experts=4, num_experts_per_tok=2))


def gpt_oss():
    """Experts, whose block returns its states and its router's scores."""
    return llava_of(
        GptOssConfig(**TEXT, num_local_experts=4, num_experts_per_tok=2, head_dim=8),
    )


@pytest.mark.parametrize("make", [llava_next, qwen2_vl, idefics3, mixtral, gpt_oss])
def test_decoder_and_sites(make):
    """The language model's layers, with sites whose values add up as the layer's do."""
    torch.manual_seed(0)
    model = make().eval()
    body = model.base_model
    ids = torch.tensor([[5, 6, 7, 8]])
    decoder = prove_decoder(body, {"input_ids": ids}).decoder
    assert len(decoder.layers) == N_LAYERS and decoder.hidden_size == WIDTH
    outputs = {}
    for number, layer in enumerate(decoder.layers):

        def keep(module, args, output, number=number):
            outputs[number] = output[0] if isinstance(output, tuple) else output

        layer.register_forward_hook(keep)
    with (
        torch.inference_mode(),
        Taps(decoder, "resid_mid", torch.float32) as taps,
        taps.aimed(torch.arange(4), torch.device("cpu")) as gathered,
    ):
        body(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    for layer in range(N_LAYERS):
        added = gathered[layer] + gathered[N_LAYERS + layer]
        assert torch.allclose(added, outputs[layer].reshape(4, WIDTH), atol=1e-5)


def test_a_model_that_needs_a_picture():
    """BLIP-2, whose language model is an OPT: its MLP is two modules of the layer's own."""
    opt = {"model_type": "opt", **TEXT, "ffn_dim": 64, "word_embed_proj_dim": WIDTH}
    tower = {"hidden_size": 16, "encoder_hidden_size": 16, "num_hidden_layers": 1}
    config = Blip2Config(
        text_config=opt,
        vision_config=VISION,
        qformer_config={**tower, "num_attention_heads": 2, "intermediate_size": 16},
        num_query_tokens=2,
        image_token_index=60,
    )
    torch.manual_seed(0)
    body = without_head(Blip2ForConditionalGeneration(config).eval())
    ids = torch.tensor([[60, 60, 5, 6, 7, 8]])
    with pytest.raises(CannotRunError, match="Blip2ForConditionalGeneration does not run on a sh"):
        prove_decoder(body, {"input_ids": ids})
    inputs = {"input_ids": ids, "pixel_values": torch.randn(1, 3, 28, 28)}
    found = prove_decoder(body, inputs)
    added = {"x": "input of final_layer_norm", "mlp_out": "output of fc2"}
    assert found.decoder.sites("resid_mid") == added
    assert find_norms(found.decoder, found.seen).kind == "layer_norm"


def test_a_processor_that_makes_no_inputs_of_pictures(tiny_llava):
    """The text alone is what the model is proven on."""
    body = LlavaForConditionalGeneration.from_pretrained(tiny_llava).model
    text_alone = SimpleNamespace(tokenizer=AutoTokenizer.from_pretrained(tiny_llava))
    found = probe(body, text_alone, 4, torch.device("cpu"))
    assert found.decoder.sites("mlp_in") == {"x": "input of mlp", "mlp_out": "output of mlp"}


class Doubling(nn.Module):
    """A norm that hands the stream on twice, side by side."""

    def forward(self, states):
        return torch.cat([states, states], dim=-1)


def test_layers_of_several_widths_are_refused():
    """The sum holds, and their MLP's input fits no buffer of the stream's width."""
    model = llava_of(LlamaConfig(**TEXT)).eval()
    layer = model.model.language_model.layers[1]
    layer.post_attention_layernorm = Doubling()
    layer.mlp = nn.Linear(2 * WIDTH, WIDTH)
    with pytest.raises(ActivationsError, match=r"decoder layer 1's .* width 64, .* says 32"):
        prove_decoder(model.base_model, {"input_ids": torch.tensor([[5, 6, 7, 8]])})
