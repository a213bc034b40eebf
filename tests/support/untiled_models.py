"""Tiny random models that see a picture as one grid of patches, with their own processors."""

from picture_models import (
    CHAT,
    COLOURS,
    IMAGE_TOKEN,
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
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3Processor,
    Gemma4Config,
    Gemma4ForConditionalGeneration,
    GemmaConfig,
    Glm4vConfig,
    Glm4vForConditionalGeneration,
    LightOnOcrConfig,
    LightOnOcrForConditionalGeneration,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    PixtralVisionConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3Config,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    SiglipVisionConfig,
)
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil
from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil
from transformers.models.glm4v.processing_glm4v import Glm4vProcessor
from transformers.models.lighton_ocr.processing_lighton_ocr import LightOnOcrProcessor
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil
from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.processing_qwen2_vl import Qwen2VLProcessor
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

FRAMES, MERGED = 2, 2


def patches_of_frames(pixels):
    """Turn rows of merged patches, [n, 3 × frames × PATCH × PATCH], into [n, 3, …]."""
    return pixels.reshape(len(pixels), 3, FRAMES * PATCH, PATCH)


def llava():
    tokenizer = byte_tokenizer()
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**vision()),
        text_config=LlamaConfig(**text(tokenizer)),
        image_token_index=IMAGE_TOKEN,
        image_seq_length=SIDE**2,
    )
    # Stretched, where LLaVA-1.5 cuts the middle out: so that all of a picture is seen.
    pictures = CLIPImageProcessorPil(size=SQUARE, do_center_crop=False, **COLOURS)
    processor = LlavaProcessor(
        *(pictures, tokenizer),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        **CHAT,
    )
    return LlavaForConditionalGeneration(config), processor


def _frames_and_marks():
    marks = ("<video>", "<start>", "<end>", "<video_start>", "<video_end>")
    tokenizer = byte_tokenizer(
        *marks, video_token="<video>", vision_bos_token="<start>", vision_eos_token="<end>"
    )
    return tokenizer, {
        "image_token_id": IMAGE_TOKEN,
        "video_token_id": 4,
        "vision_start_token_id": 5,
        "vision_end_token_id": 6,
    }


def _rope(*sections):
    return {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": list(sections)}


def _merging(kind):
    return kind(
        patch_size=PATCH,
        temporal_patch_size=FRAMES,
        merge_size=MERGED,
        size={"shortest_edge": 4 * TILE, "longest_edge": 6 * TILE**2},
        **COLOURS,
    )


def qwen2_vl():
    tokenizer, ids = _frames_and_marks()
    tower = {"depth": 1, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "patch_size": PATCH}
    config = Qwen2VLConfig(
        text_config=text(tokenizer, rope_parameters=_rope(1, 1, 2)), vision_config=tower, **ids
    )
    processor = of_pictures(Qwen2VLProcessor, _merging(Qwen2VLImageProcessorPil), tokenizer, **CHAT)
    return Qwen2VLForConditionalGeneration(config), processor


def qwen2_5_vl():
    """Its tower deals the patches out to windows, and puts them back in order."""
    tokenizer, ids = _frames_and_marks()
    tower = {
        **{"depth": 1, "hidden_size": 16, "out_hidden_size": 32, "num_heads": 2},
        **{"patch_size": PATCH, "intermediate_size": 32, "fullatt_block_indexes": []},
        "window_size": 4 * PATCH,
    }
    config = Qwen2_5_VLConfig(
        text_config=text(tokenizer, rope_parameters=_rope(1, 1, 2)), vision_config=tower, **ids
    )
    pictures = _merging(Qwen2VLImageProcessorPil)
    processor = of_pictures(Qwen2_5_VLProcessor, pictures, tokenizer, **CHAT)
    return Qwen2_5_VLForConditionalGeneration(config), processor


def qwen3_vl():
    tokenizer, ids = _frames_and_marks()
    tower = {
        **{"depth": 1, "hidden_size": 16, "out_hidden_size": 32, "num_heads": 2},
        **{"patch_size": PATCH, "deepstack_visual_indexes": [0], "num_position_embeddings": 16},
        "intermediate_size": 32,
    }
    config = Qwen3VLConfig(
        text_config=text(tokenizer, head_dim=8, rope_parameters=_rope(1, 1, 2)),
        vision_config=tower,
        **ids,
    )
    processor = of_pictures(Qwen3VLProcessor, _merging(Qwen2VLImageProcessorPil), tokenizer, **CHAT)
    return Qwen3VLForConditionalGeneration(config), processor


def glm4v():
    tokenizer, _ = _frames_and_marks()
    tower = {
        **{"depth": 1, "hidden_size": 16, "out_hidden_size": 32, "num_heads": 2},
        **{"patch_size": PATCH, "image_size": TILE, "intermediate_size": 32},
    }
    config = Glm4vConfig(
        text_config=text(tokenizer, rope_parameters=_rope(1, 1, 2)),
        vision_config=tower,
        image_token_id=IMAGE_TOKEN,
        video_token_id=4,
        image_start_token_id=5,
        image_end_token_id=6,
        video_start_token_id=7,
        video_end_token_id=8,
    )
    processor = of_pictures(Glm4vProcessor, _merging(Glm4vImageProcessorPil), tokenizer, **CHAT)
    return Glm4vForConditionalGeneration(config), processor


def gemma3():
    tokenizer = byte_tokenizer("<boi>", "<eoi>", boi_token="<boi>", eoi_token="<eoi>")
    config = Gemma3Config(
        vision_config=SiglipVisionConfig(**vision()),
        text_config=text(tokenizer, head_dim=8),
        image_token_index=IMAGE_TOKEN,
        boi_token_index=4,
        eoi_token_index=5,
        mm_tokens_per_image=(SIDE // 2) ** 2,
    )
    processor = Gemma3Processor(
        Gemma3ImageProcessorPil(size=SQUARE, **COLOURS),
        tokenizer,
        image_seq_length=(SIDE // 2) ** 2,
        chat_template=template("<boi>"),
    )
    return Gemma3ForConditionalGeneration(config), processor


def paligemma():
    tokenizer = byte_tokenizer()
    pictures = SiglipImageProcessorPil(size=SQUARE, **COLOURS)
    pictures.image_seq_length = SIDE**2
    processor = PaliGemmaProcessor(pictures, tokenizer, **CHAT)
    config = PaliGemmaConfig(
        vision_config=SiglipVisionConfig(**vision()),
        text_config=GemmaConfig(**text(tokenizer, head_dim=8)),
        image_token_index=IMAGE_TOKEN,
        projection_dim=32,
        hidden_size=32,
    )
    return PaliGemmaForConditionalGeneration(config), processor


def lighton_ocr():
    tokenizer = byte_tokenizer(
        "<break>", "<end>", image_break_token="<break>", image_end_token="<end>"
    )
    config = LightOnOcrConfig(
        vision_config=PixtralVisionConfig(**vision(image_size=4 * TILE)),
        text_config=Qwen3Config(**text(tokenizer, head_dim=8)),
        image_token_id=IMAGE_TOKEN,
        spatial_merge_size=MERGED,
    )
    pictures = PixtralImageProcessorPil(
        size={"longest_edge": 4 * TILE},
        patch_size={"height": MERGED * PATCH, "width": MERGED * PATCH},
        **COLOURS,
    )
    processor = LightOnOcrProcessor(
        pictures, tokenizer, patch_size=PATCH, spatial_merge_size=MERGED, **CHAT
    )
    return LightOnOcrForConditionalGeneration(config), processor


def gemma4():
    # Which takes torchvision before 5.24.
    from transformers.models.gemma4.processing_gemma4 import Gemma4Processor

    tokenizer = byte_tokenizer(
        *("<boi>", "<eoi>", "<|video|>", "<audio>", "<boa>", "<eoa>"),
        boi_token="<boi>",
        eoi_token="<eoi>",
        audio_token="<audio>",
        boa_token="<boa>",
        eoa_token="<eoa>",
    )
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8}
    tower = {
        **{"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, **heads},
        **{"patch_size": PATCH, "pooling_kernel_size": 3, "position_embedding_size": 256},
    }
    config = Gemma4Config(
        vision_config=tower,
        text_config=text(tokenizer, head_dim=8, hidden_size_per_layer_input=0),
        audio_config=None,
        image_token_id=IMAGE_TOKEN,
        boi_token_id=4,
        eoi_token_id=5,
        video_token_id=6,
    )
    pictures = Gemma4ImageProcessorPil(
        patch_size=PATCH, pooling_kernel_size=3, max_soft_tokens=70, **COLOURS
    )
    processor = of_pictures(Gemma4Processor, None, pictures, tokenizer, None, **CHAT)
    return Gemma4ForConditionalGeneration(config), processor


def colours_last(pixels):
    """Turn rows of patches, [batch, n, PATCH × PATCH × 3], into [batch × n, 3, PATCH, PATCH]."""
    return pixels.reshape(-1, PATCH, PATCH, 3).permute(0, 3, 1, 2)


FLAT = (llava, gemma3, paligemma, lighton_ocr)
MERGING = (qwen2_vl, qwen2_5_vl, qwen3_vl, glm4v)
