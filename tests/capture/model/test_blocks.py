"""What is captured of each family, against plain hooks on modules that are named here by hand.

Each model is a tiny random one of its own config. The named modules are what the family's code in
transformers says: what the MLP block reads, what adds its output to the stream, and by what it is
scaled.
"""

from dataclasses import dataclass

import pytest
import torch
import transformers
from small_configs import N_LAYERS, TEXT, VISION, WIDTH

from capture.model.body import without_head
from capture.model.norms import find_norms
from capture.model.structure.prove import prove_decoder
from capture.model.taps import Taps

IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 11]])
IDS_OF = {"image_token_id": 60, "video_token_id": 61}
VISION_IDS = {**IDS_OF, "vision_start_token_id": 62, "vision_end_token_id": 63}
MROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
QWEN_TOWER = {"depth": 2, "hidden_size": 16, "num_heads": 2, "out_hidden_size": WIDTH}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}


@dataclass(frozen=True)
class Family:
    """A family's class and config, and its layers' modules by name.

    `norms` is the kind of norm that is found; `added` what is said of `mlp_out`, where that is more
    than whose output it is.
    """

    name: str
    config: dict
    layers: str = "language_model.layers"
    reads: str = "post_attention_layernorm"
    mlp: str | None = "mlp"
    adds: str = "mlp"
    scale: float = 1.0
    norms: str | None = "rms"
    added: str | None = None


def text(model_type, **more):
    return {"model_type": model_type, **TEXT, **more}


def clip(**more):
    return {"model_type": "clip_vision_model", **VISION, **more}


def siglip(**more):
    return {"model_type": "siglip_vision_model", **VISION, **more}


TWO_SIDED = {
    "reads": "pre_feedforward_layernorm",
    "adds": "post_feedforward_layernorm",
}
BESIDE = {
    "reads": "input_layernorm",
    "norms": "layer_norm",
    "added": "output of mlp (added beside the output of self_attn)",
}
GEMMA4 = {**TEXT, "head_dim": 8, "global_head_dim": 8, "vocab_size_per_layer_input": 64}
GEMMA4_TOWER = {**VISION, "head_dim": 8, "num_key_value_heads": 2, "pooling_kernel_size": 1}

FAMILIES = [
    Family(
        "llava",
        {"text_config": text("llama"), "vision_config": clip(), "image_token_index": 60},
    ),
    Family(
        "llava_next",
        {"text_config": text("mistral"), "vision_config": clip(), "image_token_index": 60},
    ),
    Family(
        "llava_onevision",
        {"text_config": text("qwen2"), "vision_config": siglip(), "image_token_index": 60},
    ),
    Family(
        "gemma3",
        {
            "text_config": text("gemma3_text", head_dim=8),
            "vision_config": siglip(),
            "image_token_index": 60,
            "mm_tokens_per_image": 4,
        },
        **TWO_SIDED,
        norms="rms_offset",
    ),
    Family(
        "paligemma",
        {
            "text_config": text("gemma", head_dim=8),
            "vision_config": {**siglip(), "projection_dim": WIDTH},
            "image_token_index": 60,
        },
        norms="rms_offset",
    ),
    Family(
        "qwen2_vl",
        {
            "text_config": {**TEXT, "rope_parameters": MROPE},
            "vision_config": {"depth": 2, "embed_dim": 16, "hidden_size": WIDTH, "num_heads": 2},
            **VISION_IDS,
        },
    ),
    Family(
        "qwen2_5_vl",
        {
            "text_config": {**TEXT, "rope_parameters": MROPE},
            "vision_config": QWEN_TOWER,
            **VISION_IDS,
        },
    ),
    Family(
        "qwen3_vl",
        {
            "text_config": {**TEXT, "head_dim": 8, "rope_parameters": MROPE},
            "vision_config": {**QWEN_TOWER, "deepstack_visual_indexes": [0, 1]},
            **VISION_IDS,
        },
    ),
    Family(
        "qwen3_vl_moe",
        {
            "text_config": {
                **TEXT,
                **EXPERTS,
                "head_dim": 8,
                "rope_parameters": MROPE,
                "mlp_only_layers": [0],
            },
            "vision_config": {**QWEN_TOWER, "deepstack_visual_indexes": [0, 1]},
            **VISION_IDS,
        },
    ),
    Family(
        "smolvlm",
        {
            "text_config": text("llama"),
            "vision_config": VISION,
            "image_token_id": 60,
            "pad_token_id": 0,
        },
        layers="text_model.layers",
    ),
    Family(
        "idefics3",
        {
            "text_config": text("llama"),
            "vision_config": VISION,
            "image_token_id": 60,
            "pad_token_id": 0,
        },
        layers="text_model.layers",
    ),
    Family(
        "internvl",
        {
            "text_config": text("qwen2"),
            "vision_config": {**VISION, "image_size": [28, 28], "patch_size": [14, 14]},
            "image_token_id": 60,
        },
    ),
    Family(
        "mistral3",
        {
            "text_config": text("mistral"),
            "vision_config": {"model_type": "pixtral", **VISION, "head_dim": 8},
            "image_token_index": 60,
        },
    ),
    Family(
        "glm4v",
        {
            "text_config": {**TEXT, "rope_parameters": {**MROPE, "partial_rotary_factor": 1.0}},
            "vision_config": {**VISION, "out_hidden_size": WIDTH, "depth": 1, "num_heads": 2},
            **VISION_IDS,
        },
        adds="post_mlp_layernorm",
    ),
    Family(
        "llama4",
        {
            "text_config": {
                **TEXT,
                "intermediate_size_mlp": 64,
                "head_dim": 8,
                "num_local_experts": 4,
                "interleave_moe_layer_step": 2,
            },
            "vision_config": {**VISION, "vision_output_dim": 16, "projector_input_dim": 16},
        },
        layers="language_model.model.layers",
        mlp="feed_forward",
        adds="feed_forward",
    ),
    Family(
        "aya_vision",
        {
            "text_config": text("cohere2"),
            "vision_config": siglip(),
            "image_token_index": 60,
        },
        **BESIDE,
    ),
    Family(
        "llava",
        {
            "text_config": text("granite", residual_multiplier=0.22),
            "vision_config": clip(),
            "image_token_index": 60,
        },
        scale=0.22,
        added="0.22 × output of mlp",
    ),
    Family(
        "llava",
        {"text_config": text("olmo2"), "vision_config": clip(), "image_token_index": 60},
        reads="mlp",
        adds="post_feedforward_layernorm",
        norms=None,
    ),
    Family(
        "gemma4",
        {
            "text_config": {**GEMMA4, "hidden_size_per_layer_input": 8},
            "vision_config": GEMMA4_TOWER,
            "audio_config": None,
            "image_token_id": 60,
        },
        **TWO_SIDED,
        added="output of post_feedforward_layernorm (the output of post_per_layer_input_norm is "
        "then added, and the sum multiplied by layer_scalar)",
    ),
    Family(
        "gemma4",
        {
            "text_config": {
                **GEMMA4,
                "hidden_size_per_layer_input": 0,
                "enable_moe_block": True,
                "num_experts": 4,
                "top_k_experts": 2,
                "moe_intermediate_size": 16,
            },
            "vision_config": GEMMA4_TOWER,
            "audio_config": None,
            "image_token_id": 60,
        },
        **TWO_SIDED,
        mlp=None,
        norms=None,
        added="output of post_feedforward_layernorm (the sum is then multiplied by layer_scalar)",
    ),
]


def body_of(family):
    """A random model, whose norms and scalars are drawn: they begin as ones."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        classes = transformers.models.auto.modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
        config = transformers.CONFIG_MAPPING[family.name](**family.config)
        body = without_head(getattr(transformers, classes[family.name])(config).eval())
        tensors = dict(layers_of(body, family).named_parameters())
        tensors |= dict(layers_of(body, family).named_buffers())
        with torch.no_grad():
            for name, tensor in tensors.items():
                if name.endswith("norm.weight") or name.endswith("layer_scalar"):
                    tensor.copy_(1 + torch.rand_like(tensor) / 2)
    return body


def layers_of(body, family):
    return getattr(body, "whole", body).get_submodule(family.layers)


def by_plain_hooks(body, family, ids):
    """`resid_mid`, `mlp_in` and `mlp_out` of every layer of one pass: [T, H] each."""
    seen = {}

    def given(key):
        def hook(module, args, kwargs):
            states = args[0] if args else kwargs["hidden_states"]
            seen[key] = states.reshape(-1, WIDTH).clone()

        return hook

    def returned(key):
        def hook(module, args, output):
            states = output[0] if isinstance(output, tuple) else output
            seen[key] = states.reshape(-1, WIDTH) * family.scale

        return hook

    handles = []
    for number, layer in enumerate(layers_of(body, family)):
        for name, site in (("resid_mid", family.reads), ("mlp_in", family.mlp)):
            if site is not None:
                module = layer.get_submodule(site)
                hook = given((name, number))
                handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
        module = layer.get_submodule(family.adds)
        handles.append(module.register_forward_hook(returned(("mlp_out", number))))
    body(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize(
    "family", FAMILIES, ids=lambda f: f"{f.name}-{f.config['text_config'].get('model_type')}"
)
@torch.inference_mode()
def test_family(family):
    """Every layer and position bit by bit, at each site; what is said of it; its norms."""
    if family.name not in transformers.CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {family.name}")
    body = body_of(family)
    expected = by_plain_hooks(body, family, IDS)
    found = prove_decoder(body, {"input_ids": IDS})
    decoder = found.decoder
    assert decoder.layers == tuple(layers_of(body, family))
    sites = ["resid_mid", "mlp_in"] if family.mlp else ["resid_mid"]
    for site in sites:
        with (
            Taps(decoder, site, torch.float32) as taps,
            taps.aimed(torch.arange(IDS.numel()), torch.device("cpu")) as gathered,
        ):
            body(input_ids=IDS, attention_mask=torch.ones_like(IDS), use_cache=False)
        for layer in range(N_LAYERS):
            assert torch.equal(gathered[layer], expected[site, layer])
            assert torch.equal(gathered[N_LAYERS + layer], expected["mlp_out", layer])
    added = family.added or f"output of {family.adds}"
    assert decoder.sites("resid_mid") == {"x": f"input of {family.reads}", "mlp_out": added}
    norms = find_norms(decoder, found.seen)
    assert (norms and norms.kind) == family.norms
