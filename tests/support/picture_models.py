"""What tiny random models that see pictures in patches are made of, with their own processors.

The towers do not mix patches (their attention is zero), so that a token of the picture depends on
the pixels that it stands for alone; nothing is normalised, so that pixels stay colours.
"""

from unittest.mock import patch

import torch
from small_configs import TEXT, VISION
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, ProcessorMixin

PATCH, SIDE = 4, 4
TILE = SIDE * PATCH
COLOURS = {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}
SQUARE = {"height": TILE, "width": TILE}
IMAGE_TOKEN = 3
# What Idefics 3 and those like it write before tiles.
NUMBERED = (
    *("<fake_token_around_image>", "<global-img>", "<end_of_utterance>"),
    *(f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)),
)


def template(image):
    """Return a chat template that is the picture's token and the text."""
    return (
        "{% for message in messages %}{% for part in message['content'] %}"
        f"{{{{ {image!r} if part['type'] == 'image' else part['text'] }}}}"
        "{% endfor %}{% endfor %}"
    )


CHAT = {"chat_template": template("<image>")}


def byte_tokenizer(*specials, **named):
    """Return a tokenizer of one token a byte and `specials`; `named` is what they are called."""
    specials = ["<pad>", "<s>", "</s>", "<image>", *specials]
    vocabulary = [*specials, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokens = {token: number for number, token in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.BPE(vocab=tokens, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(specials)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>", **named},
    )


def of_pictures(kind, *args, **options):
    """Make a processor that has no part for videos, which takes torchvision."""
    with patch.object(ProcessorMixin, "check_argument_for_proper_class"):
        return kind(*args, **options)


def text(tokenizer, **more):
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": 4096, "num_hidden_layers": 1}
    return TEXT | sizes | more


def vision(**more):
    return VISION | {"image_size": TILE, "patch_size": PATCH} | more


def unmixed(model):
    """Draw the weights, and set what attention in the picture's tower returns to zero."""
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        attention = ("out_proj", "o_proj", "attn.proj", "projection_layer", "attention.proj")
        is_tower = "vision" in name or "visual" in name
        if is_tower and any(word in name for word in attention):
            parameter.data.zero_()
        elif parameter.ndim > 1:
            parameter.data.normal_(std=0.3)
    return model.eval()
