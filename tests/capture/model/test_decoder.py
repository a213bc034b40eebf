"""Finding the layers, and refusing models whose layers are not what a tap expects."""

import pytest
import torch
from transformers import AutoProcessor, LlamaConfig, LlamaForCausalLM, LlavaForConditionalGeneration

from capture.model.load import load_model, prepare_model
from capture.model.structure.prove import prove_decoder
from llava_amber_activations import ActivationsError

CPU = torch.device("cpu")


@pytest.fixture
def model(tiny_llava):
    return LlavaForConditionalGeneration.from_pretrained(tiny_llava)


@pytest.fixture
def processor(tiny_llava):
    return AutoProcessor.from_pretrained(tiny_llava)


def test_layers_are_the_language_models(model):
    """32 layers of width 64, not the vision tower's three of width 32."""
    decoder = prove_decoder(model.model, {"input_ids": torch.tensor([[5, 6, 7]])}).decoder
    assert decoder.layers == tuple(model.model.language_model.layers)
    assert decoder.hidden_size == 64


def test_the_head_is_not_computed(tiny_llava, make_store, tmp_path, monkeypatch):
    """A whole capture runs although the head would fail."""

    def fail(self, *args, **kwargs):
        raise AssertionError("the language-model head was computed")

    monkeypatch.setattr(LlavaForConditionalGeneration, "forward", fail)
    store = make_store(tmp_path / "store")
    assert (store / "samples.jsonl").is_file()


def test_a_layer_that_scales_its_mlp_is_refused(model, processor):
    """mlp_out would not be what is added to the stream."""
    layer = model.model.language_model.layers[9]
    layer.register_forward_hook(lambda module, args, output: output * 1.01)
    with pytest.raises(ActivationsError, match="decoder layer 9 does not add its MLP's output"):
        prepare_model(model, processor, CPU)


def test_a_norm_that_does_not_feed_the_mlp_is_refused(model, processor):
    mlp = model.model.language_model.layers[4].mlp
    mlp.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    with pytest.raises(ActivationsError, match="decoder layer 4"):
        prepare_model(model, processor, CPU)


def test_another_number_of_layers_than_the_config_says(model, processor):
    model.config.text_config.num_hidden_layers = 31
    with pytest.raises(ActivationsError, match="0 stacks of 31 decoder layers"):
        prepare_model(model, processor, CPU)


def test_a_model_without_pictures_is_refused(processor):
    config = LlamaConfig(hidden_size=64, intermediate_size=64, num_hidden_layers=2, vocab_size=300)
    with pytest.raises(ActivationsError, match="names no image token"):
        prepare_model(LlamaForCausalLM(config), processor, CPU)


def test_a_processor_without_a_template_is_refused(model, processor):
    processor.chat_template = None
    with pytest.raises(ActivationsError, match="no chat template"):
        prepare_model(model, processor, CPU)


def test_prompt_is_the_templates(tiny_llava, last_store):
    """As llava-hf/llava-1.5-7b-hf renders one user turn."""
    import json

    recipe = json.loads((last_store / "capture.json").read_text())
    assert recipe["prompt"] == "USER: <image>\n{query} ASSISTANT:"
    assert recipe["model"] == str(tiny_llava) and recipe["x_site"] == "resid_mid"
    assert load_model(str(tiny_llava), dtype="float32", device=CPU).image_token_id == 4
