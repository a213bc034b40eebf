"""What the general rules do not know of a family: where its config needs other numbers."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModel, Gemma3nVisionConfig, PreTrainedModel, SiglipVisionConfig


class _NoTower(PreTrainedModel):
    """Stands for a picture tower that another package has, where texts alone are run."""

    config_class = Gemma3nVisionConfig

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError("there is no tower for pictures")


AutoModel.register(Gemma3nVisionConfig, _NoTower, exist_ok=True)


_SMALL_SIGLIP = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 16,
}


def _rope(*sections: int, theta: float = 10000.0, **further: Any) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": theta, "mrope_section": list(sections)}
    return {"rope_parameters": {**rope, **further}}


_QUERIES: dict[str, dict[str, Any]] = {
    "": {"num_query_tokens": 4, "image_token_index": 250},
    "vision_config": {"image_size": 28},
    "qformer_config": {"encoder_hidden_size": 32},
}

# Of each family: of each config in it, by its path, the values that the rules would get wrong.
CHANGES: dict[str, dict[str, dict[str, Any]]] = {
    "apertus1p5": {
        "": {"image_token_offset": 100, "audio_token_offset": 116},
        "vision_config": {"codebook_size": 16, "base_channels": 32},
        "audio_config": {"codebook_dim": 32, "codebook_size": 16},
    },
    "blip": {"vision_config": {"image_size": 32}},
    "blip-2": _QUERIES,
    "chameleon": {"": {"vocabulary_map": {"<image>": 250}}},
    "cohere_compass": {
        "text_config": {"rope_parameters": {"full_attention": _rope(2, 3, 3)["rope_parameters"]}}
    },
    "deepseek_ocr2": {
        "text_config": {
            "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
            "num_experts_per_tok": 2,
        }
    },
    "diffusion_gemma": {
        "text_config": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 48}
    },
    "dots3_note": {
        "text_config": {"head_dim": 32},
        "vision_config": {"adapter_in_dim": 32},
        "audio_config": {"adapter_input_size": 32},
    },
    "emu3": {
        "": {"vocabulary_map": {"<image>": 250, "<|extra_200|>": 251}},
        "vq_config": {"base_channels": 32},
    },
    "ernie4_5_vl_moe": {"text_config": {**_rope(3, 3, 2), "moe_intermediate_size": [48, 24]}},
    "fast_vlm": {"": {"vision_config": SiglipVisionConfig(**_SMALL_SIGLIP)}},
    "florence2": {
        "vision_config": {"depths": [1, 1, 1, 1], "embed_dim": [16, 16, 32, 64]},
    },
    "gemma3n": {
        "text_config": {"num_kv_shared_layers": 1},
    },
    "glm46v": {"text_config": _rope(2, 3, 3)},
    "glm4v": {"text_config": _rope(2, 3, 3)},
    "glm4v_moe": {"text_config": _rope(1, 1, 2, partial_rotary_factor=0.5)},
    "glm_ocr": {"text_config": _rope(2, 3, 3)},
    "glmga": {"text_config": _rope(2, 3, 3)},
    "granite4_vision": {
        "": {"deepstack_layer_map": [[-1, 1]], "downsample_rate": "1/2"},
        "vision_config": {"hidden_size": 64},
        "qformer_config": {"hidden_size": 64, "encoder_hidden_size": 64},
    },
    "hunyuan_vl": {"text_config": {"head_dim": 16, **_rope(2, 2, 2, 2)}},
    "idefics": {
        "": {"cross_layer_interval": 2},
        "vision_config": {"image_size": 28, "embed_dim": 32},
    },
    "instructblip": _QUERIES,
    "instructblipvideo": {**_QUERIES, "": {"num_query_tokens": 4, "video_token_index": 250}},
    "janus": {"vq_config": {"base_channels": 32, "projection_dim": 64}},
    "mistral4": {"": {"qk_nope_head_dim": 8, "qk_head_dim": 16, "head_dim": 16}},
    "kosmos-2": {"": {"latent_query_num": 4}, "vision_config": {"image_size": 28}},
    "mllama": {
        "text_config": {"cross_attention_layers": [1]},
        "vision_config": {
            "image_size": 28,
            "attention_heads": 2,
            "num_global_layers": 1,
            "intermediate_layers_indices": [0, 1],
            "vision_output_dim": 96,
        },
    },
    "molmo2": {"adapter_config": {"vision_feature_layer": [1, 0]}},
    "paddleocr_vl": {"text_config": _rope(2, 3, 3)},
    "perception_lm": {
        "": {
            "vision_config": SiglipVisionConfig(
                **_SMALL_SIGLIP, model_args={"embed_dim": 32}, architecture="none"
            )
        }
    },
    "qwen2_5_omni_thinker": {
        "": {"vision_start_token_id": 240, "vision_end_token_id": 241},
        "text_config": _rope(2, 3, 3),
    },
    "qwen2_5_vl": {"text_config": _rope(2, 3, 3)},
    "qwen2_vl": {"text_config": _rope(2, 3, 3)},
    "qwen3_omni_moe_thinker": {
        "": {"vision_start_token_id": 240, "vision_end_token_id": 241},
        "text_config": _rope(2, 3, 3),
    },
    "qwen4_exp": {
        "text_config": {
            "indexer_n_heads": 2,
            "indexer_kv_heads": 1,
            "indexer_head_dim": 16,
            "indexer_budget": 64,
            "indexer_compress_ratio": 4,
        }
    },
    "step3p7": {"text_config": {"sliding_window": 512}},
}

# Neither the config nor the processor says which token stands for a picture: `capture`, which asks
# both, refuses them. No processor is made here, so they are listed.
NO_IMAGE_TOKEN = ("blip", "evolla", "git", "kosmos-2", "kosmos-2.5", "mistral4")

# What a reader of the table must know of it.
NOTES: dict[str, str] = {
    "chameleon": "Config completed: it has no `vocabulary_map`.",
    "cohere_compass": "Config completed: it has no `rope_parameters`.",
    "deepseek_ocr2": "Config completed: it has no `mlp_layer_types`, no `num_experts_per_tok`.",
    "diffusion_gemma": "Its encoder, which reads the prompt; config completed: it has no experts.",
    "emu3": "Config completed: it has no `vocabulary_map`.",
    "fast_vlm": "With SigLIP's picture tower: its own needs timm.",
    "gemma3n": "Without a picture tower: its own needs timm.",
    "granite4_vision": "Config completed: no `deepstack_layer_map`, no `downsample_rate`.",
    "hunyuan_vl": "Config completed: it has no `head_dim`, no `mrope_section`.",
    "idefics": "Config changed: `cross_layer_interval` is 2.",
    "perception_lm": "With SigLIP's picture tower: its own needs timm.",
    "qwen2_5_omni_thinker": "Config completed: it has no `vision_start_token_id`.",
    "qwen3_omni_moe_thinker": "Config completed: it has no `vision_start_token_id`.",
    "step3p7": "Config completed: it has no `sliding_window`.",
}
