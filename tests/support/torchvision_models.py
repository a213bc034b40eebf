"""Tiny random models whose processors take torchvision, which the tests do without elsewhere."""

from picture_models import (
    CHAT,
    COLOURS,
    IMAGE_TOKEN,
    PATCH,
    SIDE,
    SQUARE,
    TILE,
    byte_tokenizer,
    template,
    text,
    vision,
)
from transformers import (
    Cohere2Config,
    Cohere2VisionConfig,
    Cohere2VisionForConditionalGeneration,
    Cohere2VisionImageProcessor,
    Cohere2VisionProcessor,
    Lfm2Config,
    Lfm2VlConfig,
    Lfm2VlForConditionalGeneration,
    Lfm2VlImageProcessor,
    Lfm2VlProcessor,
    Llama4Config,
    Llama4ForConditionalGeneration,
    Llama4ImageProcessor,
    Llama4Processor,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MistralConfig,
    PixtralVisionConfig,
    Siglip2VisionConfig,
    SiglipVisionConfig,
)
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil
from transformers.models.pixtral.processing_pixtral import PixtralProcessor


def mistral3():
    tokenizer = byte_tokenizer("[IMG_BREAK]", "[IMG_END]")
    config = Mistral3Config(
        vision_config=PixtralVisionConfig(**vision(image_size=4 * TILE)),
        text_config=MistralConfig(**text(tokenizer)),
        image_token_index=IMAGE_TOKEN,
        spatial_merge_size=2,
    )
    processor = PixtralProcessor(
        PixtralImageProcessorPil(size={"longest_edge": 4 * TILE}, patch_size=PATCH, **COLOURS),
        tokenizer,
        patch_size=PATCH,
        spatial_merge_size=2,
        image_token="<image>",
        **CHAT,
    )
    return Mistral3ForConditionalGeneration(config), processor


def llama4():
    tokenizer = byte_tokenizer(
        *("<|image|>", "<|image_start|>", "<|image_end|>", "<|tile_x_separator|>"),
        *("<|tile_y_separator|>", "<|patch|>"),
    )
    patch = tokenizer.convert_tokens_to_ids("<|patch|>")
    tower = {"vision_output_dim": 16, "projector_input_dim": 16, "projector_output_dim": 16}
    experts = {"num_local_experts": 2, "intermediate_size_mlp": 32, "head_dim": 8}
    config = Llama4Config(
        vision_config=vision(num_hidden_layers=1, intermediate_size=64, **tower),
        text_config=text(tokenizer, **experts),
        image_token_index=patch,
        boi_token_index=5,
        eoi_token_index=6,
    )
    processor = Llama4Processor(
        Llama4ImageProcessor(size=SQUARE, max_patches=6, **COLOURS),
        tokenizer,
        patch_size=PATCH,
        chat_template=template("<|image|>"),
    )
    return Llama4ForConditionalGeneration(config), processor


def cohere2_vision():
    tokenizer = byte_tokenizer(
        *("<boi>", "<eoi>", "<break>"),
        boi_token="<boi>",
        eoi_token="<eoi>",
        img_line_break_token="<break>",
    )
    config = Cohere2VisionConfig(
        vision_config=SiglipVisionConfig(**vision()),
        text_config=Cohere2Config(**text(tokenizer, head_dim=8)),
        image_token_id=IMAGE_TOKEN,
        alignment_intermediate_size=64,
    )
    # What its processor calls the size of a patch is how many patches a side of a tile has.
    pictures = Cohere2VisionImageProcessor(
        size=SQUARE, patch_size=SIDE // 2, max_patches=6, **COLOURS
    )
    processor = Cohere2VisionProcessor(pictures, tokenizer, **CHAT)
    return Cohere2VisionForConditionalGeneration(config), processor


def lfm2_vl():
    marks = [f"<|img_row_{row}_col_{column}|>" for row in range(1, 5) for column in range(1, 5)]
    tokenizer = byte_tokenizer(
        *("<|image_start|>", "<|image_end|>", "<|img_thumbnail|>", *marks),
        image_start_token="<|image_start|>",
        image_end_token="<|image_end|>",
        image_thumbnail_token="<|img_thumbnail|>",
    )
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    config = Lfm2VlConfig(
        vision_config=Siglip2VisionConfig(
            num_hidden_layers=1, patch_size=PATCH, num_patches=SIDE**2, **sizes
        ),
        text_config=Lfm2Config(**text(tokenizer), layer_types=["full_attention"]),
        image_token_id=IMAGE_TOKEN,
        projector_hidden_size=32,
    )
    pictures = Lfm2VlImageProcessor(
        **{"size": SQUARE, "tile_size": TILE, "encoder_patch_size": PATCH, **COLOURS},
        **{"min_image_tokens": 2, "max_image_tokens": 4, "max_tiles": 6},
    )
    processor = Lfm2VlProcessor(pictures, tokenizer, **CHAT)
    return Lfm2VlForConditionalGeneration(config), processor


def rows_of_tiles(pixels):
    """Turn tiles as rows of patches, [tiles, n, PATCH × PATCH × 3], into [tiles, 3, n, …]."""
    return pixels.reshape(*pixels.shape[:2], PATCH**2, 3).permute(0, 3, 1, 2)
