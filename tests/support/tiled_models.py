"""Tiny random models that see pictures in patches, tiles and rows, with their own processors.

The towers do not mix patches (their attention is zero), so that a token of the picture depends on
the pixels that it stands for alone; nothing is normalised, so that pixels stay colours.
"""

from unittest.mock import patch

import torch
from small_configs import TEXT, VISION
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPVisionConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3Processor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionProcessor,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2Config,
    SiglipVisionConfig,
)
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.internvl.processing_internvl import InternVLProcessor
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
    LlavaOnevisionImageProcessorPil,
)

PATCH, SIDE = 4, 4
TILE = SIDE * PATCH
COLOURS = {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}
SQUARE = {"height": TILE, "width": TILE}
IMAGE_TOKEN = 3


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
        if "visi" in name and any(word in name for word in attention):
            parameter.data.zero_()
        elif parameter.ndim > 1:
            parameter.data.normal_(std=0.3)
    return model.eval()


def llava_next():
    tokenizer = byte_tokenizer()
    tiles = [(2, 1), (1, 2), (1, 3), (2, 2)]
    pinpoints = [[rows * TILE, columns * TILE] for rows, columns in tiles]
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(**vision()),
        text_config=LlamaConfig(**text(tokenizer)),
        image_token_index=IMAGE_TOKEN,
        image_grid_pinpoints=pinpoints,
    )
    pictures = LlavaNextImageProcessorPil(
        size={"shortest_edge": TILE}, crop_size=SQUARE, image_grid_pinpoints=pinpoints, **COLOURS
    )
    processor = LlavaNextProcessor(
        *(pictures, tokenizer),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        **CHAT,
    )
    return LlavaNextForConditionalGeneration(config), processor


def llava_onevision():
    """It shrinks a grid of more than four tiles."""
    tokenizer = byte_tokenizer("<video>", video_token="<video>")
    tiles = [(rows, columns) for rows in range(1, 4) for columns in range(1, 4)]
    pinpoints = [[rows * TILE, columns * TILE] for rows, columns in tiles]
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**vision()),
        text_config=Qwen2Config(**text(tokenizer)),
        image_token_index=IMAGE_TOKEN,
        video_token_index=4,
        image_grid_pinpoints=pinpoints,
        vision_aspect_ratio="anyres_max_4",
    )
    pictures = LlavaOnevisionImageProcessorPil(
        size=SQUARE, image_grid_pinpoints=pinpoints, **COLOURS
    )
    processor = of_pictures(
        *(LlavaOnevisionProcessor, pictures, tokenizer),
        num_image_tokens=SIDE**2,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_4",
        **CHAT,
    )
    return LlavaOnevisionForConditionalGeneration(config), processor


def idefics3():
    marks = [f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)]
    tokenizer = byte_tokenizer(
        "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", *marks
    )
    config = Idefics3Config(
        vision_config=vision(),
        text_config=LlamaConfig(**text(tokenizer)),
        image_token_id=IMAGE_TOKEN,
        scale_factor=2,
        pad_token_id=0,
    )
    pictures = Idefics3ImageProcessorPil(
        size={"longest_edge": 3 * TILE}, max_image_size={"longest_edge": TILE}, **COLOURS
    )
    processor = Idefics3Processor(pictures, tokenizer, image_seq_len=(SIDE // 2) ** 2, **CHAT)
    return Idefics3ForConditionalGeneration(config), processor


def internvl():
    tokenizer = byte_tokenizer(
        *("<img>", "</img>", "<video>"),
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<image>",
        video_token="<video>",
    )
    config = InternVLConfig(
        vision_config=vision(),
        text_config=Qwen2Config(**text(tokenizer)),
        image_token_id=IMAGE_TOKEN,
        image_seq_length=(SIDE // 2) ** 2,
    )
    pictures = GotOcr2ImageProcessorPil(size=SQUARE, min_patches=1, max_patches=6, **COLOURS)
    processor = of_pictures(
        InternVLProcessor, pictures, tokenizer, image_seq_length=(SIDE // 2) ** 2, **CHAT
    )
    return InternVLForConditionalGeneration(config), processor


TILED = (llava_next, llava_onevision, idefics3, internvl)
