"""Tiny random models that stretch a picture over tiles, with their own processors."""

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
    template,
    text,
    vision,
)
from transformers import (
    AyaVisionConfig,
    AyaVisionForConditionalGeneration,
    AyaVisionProcessor,
    Cohere2Config,
    InternVLConfig,
    InternVLForConditionalGeneration,
    Ovis2Config,
    Ovis2ForConditionalGeneration,
    Ovis2Processor,
    QianfanOCRConfig,
    QianfanOCRForConditionalGeneration,
    QianfanOCRProcessor,
    Qwen2Config,
    Qwen3Config,
    SiglipVisionConfig,
)
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.internvl.processing_internvl import InternVLProcessor
from transformers.models.ovis2.image_processing_pil_ovis2 import Ovis2ImageProcessorPil

SEQUENCE = {"image_seq_length": (SIDE // 2) ** 2}


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


def aya_vision():
    marks = ("<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_LINE_BREAK|>", "TILE", "TILE_GLOBAL")
    tokenizer = byte_tokenizer(*marks)
    config = AyaVisionConfig(
        vision_config=SiglipVisionConfig(**vision()),
        text_config=Cohere2Config(**text(tokenizer, head_dim=8)),
        image_token_index=IMAGE_TOKEN,
        alignment_intermediate_size=64,
    )
    pictures = GotOcr2ImageProcessorPil(
        size=SQUARE, crop_to_patches=True, min_patches=1, max_patches=6, **COLOURS
    )
    processor = AyaVisionProcessor(
        *(pictures, tokenizer),
        patch_size=PATCH,
        img_size=TILE,
        downsample_factor=2,
        image_token="<picture>",
        img_patch_token="<image>",
        chat_template=template("<picture>"),
    )
    return AyaVisionForConditionalGeneration(config), processor


def qianfan_ocr():
    marks = {"start_image_token": "<img>", "end_image_token": "</img>"}
    tokenizer = byte_tokenizer(
        *("<img>", "</img>", "<picture>"), context_image_token="<image>", **marks
    )
    config = QianfanOCRConfig(
        vision_config=vision(),
        text_config=Qwen3Config(**text(tokenizer, head_dim=8)),
        image_token_id=IMAGE_TOKEN,
        **SEQUENCE,
    )
    pictures = GotOcr2ImageProcessorPil(size=SQUARE, min_patches=1, max_patches=6, **COLOURS)
    processor = QianfanOCRProcessor(
        *(pictures, tokenizer),
        image_placeholder_token="<picture>",
        chat_template=template("<picture>"),
        **SEQUENCE,
    )
    return QianfanOCRForConditionalGeneration(config), processor


def ovis2():
    marks = ("<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>")
    tokenizer = byte_tokenizer("<IMG_ATOM>", *marks)
    atom, *others = tokenizer.convert_tokens_to_ids(["<IMG_ATOM>", *marks])
    config = Ovis2Config(
        vision_config=vision(vocab_size=16, hidden_stride=2, num_hidden_layers=1),
        text_config=Qwen2Config(**text(tokenizer)),
        image_token_id=atom,
        visual_indicator_token_ids=others,
        vocab_size=len(tokenizer),
        hidden_size=32,
    )
    pictures = Ovis2ImageProcessorPil(size=SQUARE, crop_to_patches=True, max_patches=6, **COLOURS)
    processor = Ovis2Processor(pictures, tokenizer, **SEQUENCE, **CHAT)
    return Ovis2ForConditionalGeneration(config), processor


def granite_docling():
    # Which older versions do not know.
    from transformers import (
        GraniteDoclingConfig,
        GraniteDoclingForConditionalGeneration,
        GraniteDoclingProcessor,
    )
    from transformers.models.granite_docling.image_processing_pil_granite_docling import (
        GraniteDoclingImageProcessorPil,
    )

    tokenizer = byte_tokenizer(*NUMBERED)
    config = GraniteDoclingConfig(
        vision_config=vision(num_hidden_layers=1, out_hidden_size=32, scale_factor=2),
        text_config=text(tokenizer),
        image_token_id=IMAGE_TOKEN,
        pad_token_id=0,
    )
    pictures = GraniteDoclingImageProcessorPil(size=SQUARE, max_patches=6, **COLOURS)
    processor = GraniteDoclingProcessor(pictures, tokenizer, image_seq_len=(SIDE // 2) ** 2, **CHAT)
    return GraniteDoclingForConditionalGeneration(config), processor


STRETCHED = (internvl, aya_vision, qianfan_ocr, ovis2, granite_docling)
