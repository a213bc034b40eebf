"""A family's default config, made so small that its model is built in a moment."""

from __future__ import annotations

import copy
from typing import Any

from family.exceptions import CHANGES
from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

N_LAYERS, WIDTH, VOCABULARY = 4, 64, 256
# Ids below are for the prompts' words, those from here on for what a config gives a meaning to.
FIRST_SPECIAL = 200

_TEXT = {
    "hidden_size": WIDTH,
    "d_model": WIDTH,
    "embed_dim": WIDTH,
    "word_embed_proj_dim": WIDTH,
    "intermediate_size": 96,
    "ffn_dim": 96,
    "num_hidden_layers": N_LAYERS,
    "num_layers": N_LAYERS,
    "layers": N_LAYERS,
    "decoder_layers": N_LAYERS,
    "encoder_layers": N_LAYERS,
    "num_attention_heads": 4,
    "attention_heads": 4,
    "num_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 512,
    "out_hidden_size": WIDTH,
    "projector_hidden_size": WIDTH,
    "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size_per_layer_input": 16,
    "linear_head_dim": 16,
    "linear_num_heads": 4,
    "d_kv": 16,
    "d_ff": 96,
}
_TOWER = {
    "hidden_size": 32,
    "embed_dim": 32,
    "d_model": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_layers": 2,
    "depth": 2,
    "n_layers": 2,
    "layers": 2,
    "encoder_layers": 2,
    "num_attention_heads": 2,
    "encoder_attention_heads": 2,
    "num_heads": 2,
    "num_key_value_heads": 2,
    "encoder_ffn_dim": 64,
    "out_hidden_size": WIDTH,
    "output_dim": WIDTH,
    "text_hidden_size": WIDTH,
    "projection_dim": WIDTH,
    "adapter_out_dim": WIDTH,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 128,
    "deepstack_visual_indexes": [0, 1],
    "fullatt_block_indexes": [1],
    "head_dim": 16,
}
_ANYWHERE = {
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_k": 2,
    "moe_topk": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 48,
    "moe_hidden_size": 48,
    "moe_shared_expert_intermediate_size": 48,
    "shared_expert_intermediate_size": 48,
    "q_lora_rank": 24,
    "kv_lora_rank": 24,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "qk_head_dim": 24,
    "index_head_dim": 16,
    "index_n_heads": 2,
    "initializer_range": 0.15,
    "init_std": 0.15,
}


def default_config(family: str) -> PreTrainedConfig:
    """Return the config that a family's class makes by itself."""
    return CONFIG_MAPPING[family]()


def small_config(family: str) -> PreTrainedConfig:
    """Return the family's config with few and narrow layers, and few tokens."""
    whole = default_config(family)
    return _small(whole, whole.get_text_config(), family, "", _Ids())


class _Ids(dict[int, int]):
    """Small ids in the place of a config's own, the same for the same."""

    def __missing__(self, token: int) -> int:
        self[token] = FIRST_SPECIAL + len(self)
        return self[token]


def _small(config: Any, text: Any, family: str, path: str, ids: _Ids) -> Any:
    was = {
        name: value
        for name, value in config.to_dict().items()
        if name not in ("transformers_version", "model_type", "architectures", "dtype")
    }
    values = dict(was)
    is_text = config is text or path in ("", "decoder", "encoder.text_config")
    rules = {**_ANYWHERE, **(_TEXT if is_text else _TOWER)}
    for name, value in was.items():
        below = config.__dict__.get(name)
        if isinstance(below, PreTrainedConfig):
            values[name] = _small(below, text, family, f"{path}.{name}".lstrip("."), ids)
        elif name.endswith(("_token_id", "_token_index")) and isinstance(value, int):
            values[name] = ids[value]
        elif name in rules and value and isinstance(value, list) == isinstance(rules[name], list):
            values[name] = value if isinstance(value, bool) else rules[name]
    _fit_heads(was, values)
    layers = was.get("num_hidden_layers")
    if isinstance(layers, int):
        _fewer_layers(was, values, layers, values["num_hidden_layers"], rules)
    _narrower_rope(was, values)
    values.update(copy.deepcopy(CHANGES.get(family, {}).get(path, {})))
    return type(config)(**values)


def _fit_heads(was: dict[str, Any], values: dict[str, Any]) -> None:
    """Keep what a config's numbers of heads, and their widths, are to each other."""
    heads = was.get("num_attention_heads")
    if heads and was.get("num_key_value_heads") == heads:
        values["num_key_value_heads"] = values["num_attention_heads"]
    if "qk_nope_head_dim" in was and "qk_rope_head_dim" in was:
        values["qk_head_dim"] = values["qk_nope_head_dim"] + values["qk_rope_head_dim"]
        for name in ("qk_rope_head_dim", "qk_head_dim"):
            if was.get("head_dim") in (was.get(name), 0):
                values["head_dim"] = values[name] if was["head_dim"] else 0


def _head_dim(values: dict[str, Any]) -> int:
    return (
        values.get("qk_rope_head_dim")
        or values.get("head_dim")
        or values["hidden_size"] // values["num_attention_heads"]
    )


def _fewer_layers(
    was: dict[str, Any], values: dict[str, Any], n_were: int, n_layers: int, rules: dict[str, Any]
) -> None:
    """Shorten the lists that say something of each layer, keeping one layer of each sort."""
    lists = {n: v for n, v in was.items() if isinstance(v, list) and len(v) == n_were > 2}
    special = {int(number): each for number, each in (was.get("per_layer_config") or {}).items()}
    sorts = [
        repr([[each[layer] for each in lists.values()], sorted(special.get(layer, ()))])
        for layer in range(n_were)
    ]
    first = [layer for layer in range(n_were) if sorts[layer] not in sorts[:layer]][:n_layers]
    others = [layer for layer in range(n_were) if layer not in first]
    kept = sorted(first + others[: n_layers - len(first)])
    for name, value in lists.items():
        if not isinstance(rules.get(name), list):
            values[name] = [value[layer] for layer in kept]
    if special:
        values["per_layer_config"] = {
            place: {
                name: _in_proportion(value, was.get(name), values.get(name))
                for name, value in special[layer].items()
            }
            for place, layer in enumerate(kept)
            if layer in special
        }


def _in_proportion(value: Any, was: Any, now: Any) -> Any:
    return max(1, value * now // was) if isinstance(was, int) and was and now else value


def _narrower_rope(was: dict[str, Any], values: dict[str, Any]) -> None:
    """Fit the sections of a rotary embedding of several axes to the narrower heads."""
    rope = values["rope_parameters"] = copy.deepcopy(was.get("rope_parameters"))
    if rope is None:
        del values["rope_parameters"]
        return
    for each in (rope, *rope.values()):
        if isinstance(each, dict) and "mrope_section" in each:
            sections = each["mrope_section"]
            total = sum(sections) * _head_dim(values) // _head_dim(was)
            share = [total // len(sections)] * len(sections)
            each["mrope_section"] = [total - sum(share[1:]), *share[1:]]
