"""A tiny random LLaVA with its processor: 32 layers like the real one, 64 wide, made in a second.

For `llava-amber demo` and for tests: everything that works on it works on LLaVA-1.5-7B, because it
is the same classes with other numbers in the config.
"""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

_SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", "<pad>", "<image>")

# What llava-hf/llava-1.5-7b-hf renders for one user turn: "USER: <image>\nTEXT ASSISTANT:".
_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] + ' ' }}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def make_tiny_llava(
    folder: Path,
    *,
    n_layers: int = 32,
    hidden_size: int = 64,
    image_size: int = 28,
    patch_size: int = 14,
    seed: int = 0,
) -> Path:
    """Save a random LLaVA and its processor into `folder`, as `save_pretrained` does.

    Weights are drawn wide enough (standard deviation 0.15) that every layer's output depends
    visibly on the picture and on each token; the usual 0.02 would leave a stream that hardly moves.

    Returns:
        `folder`.
    """
    tokenizer = _byte_tokenizer()
    config = LlavaConfig(
        vision_config=tiny_tower(image_size, patch_size),
        text_config=LlamaConfig(
            hidden_size=hidden_size,
            intermediate_size=2 * hidden_size,
            num_hidden_layers=n_layers,
            num_attention_heads=4,
            num_key_value_heads=4,
            vocab_size=len(tokenizer),
            max_position_embeddings=4096,
            initializer_range=0.15,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        ),
        image_token_index=_SPECIAL_TOKENS.index("<image>"),
        image_seq_length=(image_size // patch_size) ** 2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(config)
    model.save_pretrained(folder)
    tiny_processor(tokenizer, _CHAT_TEMPLATE, image_size, patch_size).save_pretrained(folder)
    return folder


def tiny_tower(image_size: int, patch_size: int) -> CLIPVisionConfig:
    """Return the config of a picture tower of three layers, 32 wide."""
    return CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=image_size,
        patch_size=patch_size,
        projection_dim=32,
    )


def tiny_processor(
    tokenizer: PreTrainedTokenizerFast, chat_template: str, image_size: int, patch_size: int
) -> LlavaProcessor:
    """Return what makes that tower's inputs of pictures, and a tokenizer's of text."""
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size={"shortest_edge": image_size},
            crop_size={"height": image_size, "width": image_size},
        ),
        tokenizer=tokenizer,
        patch_size=patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=chat_template,
    )


def _byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, so that any text can be asked without a vocabulary to download."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*_SPECIAL_TOKENS, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", vocabulary["<s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
    )
