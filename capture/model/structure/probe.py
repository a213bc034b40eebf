"""The short inputs that a model is proven on: a picture and a text."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import nn

from capture.model.structure.prove import CannotRunError, ProvenDecoder, prove_decoder

_TEXT = "Describe this image."


def probe(
    model: nn.Module, processor: Any, image_token_id: int, device: torch.device
) -> ProvenDecoder:
    """Prove a model's decoder on a drawn picture and a short text.

    On the text alone where the processor makes no inputs of the two, or the model does not run on
    them.

    Raises:
        ActivationsError: as `prove_decoder`.
    """
    try:
        return prove_decoder(model, _with_picture(model, processor, device))
    except CannotRunError as error:
        of_picture = error
    ids = [token for token in processor.tokenizer(_TEXT)["input_ids"] if token != image_token_id]
    try:
        return prove_decoder(model, {"input_ids": torch.tensor([ids]).to(device)})
    except CannotRunError:
        raise of_picture from None


def _with_picture(
    model: nn.Module, processor: Any, device: torch.device
) -> dict[str, torch.Tensor]:
    gradient = Image.linear_gradient("L").resize((96, 64))
    picture = Image.merge("RGB", (gradient, gradient.rotate(90), gradient))
    content = [{"type": "image"}, {"type": "text", "text": _TEXT}]
    try:
        prompt = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        made = processor(images=[picture], text=[prompt], return_tensors="pt")
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise CannotRunError(f"the processor makes no inputs of a picture: {error}") from error
    dtype = next(model.parameters()).dtype
    return {
        name: value.to(device, dtype if value.is_floating_point() else value.dtype)
        for name, value in made.items()
        if isinstance(value, torch.Tensor)
    }
