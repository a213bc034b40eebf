"""Tiny random models that cut pictures into tiles, with their own processors."""

from types import SimpleNamespace
from unittest.mock import patch

from picture_models import (
    CHAT,
    COLOURS,
    IMAGE_TOKEN,
    NUMBERED,
    PATCH,
    SIDE,
    SQUARE,
    TILE,
    byte_tokenizer,
    of_pictures,
    text,
    vision,
)
from transformers import (
    CLIPVisionConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3Processor,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionProcessor,
    Qwen2Config,
    SiglipVisionConfig,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
    LlavaOnevisionImageProcessorPil,
)
from transformers.models.smolvlm import processing_smolvlm
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil


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
    tokenizer = byte_tokenizer(*NUMBERED)
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


def smolvlm():
    tokenizer = byte_tokenizer("<video>", *NUMBERED)
    config = SmolVLMConfig(
        vision_config=vision(),
        text_config=LlamaConfig(**text(tokenizer)),
        image_token_id=IMAGE_TOKEN,
        scale_factor=2,
        pad_token_id=0,
    )
    pictures = SmolVLMImageProcessorPil(
        size={"longest_edge": 3 * TILE}, max_image_size={"longest_edge": TILE}, **COLOURS
    )
    # What it asks of the part for videos, whatever it is given; and a package for videos.
    videos = SimpleNamespace(num_frames=1, fps=1, size={})
    with patch.object(processing_smolvlm, "num2words", str):
        processor = of_pictures(
            *(processing_smolvlm.SmolVLMProcessor, pictures, tokenizer, videos),
            image_seq_len=(SIDE // 2) ** 2,
            **CHAT,
        )
    return SmolVLMForConditionalGeneration(config), processor


TILED = (llava_next, llava_onevision, idefics3, smolvlm)
