"""The independent computation of any prompt: its text written by hand, one sample, plain hooks."""

from pathlib import Path

import torch
from PIL import Image
from single_pass import Reference, SinglePass


def run_text(
    reference: Reference, prompt: str, picture: Path | None = None, answer: str = ""
) -> SinglePass:
    """Run one prompt, and what follows it, tokenised apart from it."""
    return hooked(reference, inputs_of(reference, prompt, picture, answer))


def inputs_of(
    reference: Reference, prompt: str, picture: Path | None, answer: str
) -> dict[str, torch.Tensor]:
    """Return the inputs of a prompt, and what follows it.

    The tokens of the tiny models are bytes, so that no two texts have tokens together.
    """
    if picture is None:
        inputs = dict(reference.processor.tokenizer(prompt, return_tensors="pt"))
    else:
        with Image.open(picture) as image:
            inputs = dict(
                reference.processor(images=image.convert("RGB"), text=prompt, return_tensors="pt")
            )
    after = reference.processor.tokenizer(answer, add_special_tokens=False, return_tensors="pt")
    ids = torch.cat([inputs["input_ids"], after["input_ids"].long()], dim=1)
    return inputs | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@torch.no_grad()
def hooked(reference: Reference, inputs: dict[str, torch.Tensor]) -> SinglePass:
    """Run a model's inputs, of one sample, and keep every site of every layer."""
    found = SinglePass(inputs["input_ids"][0], {}, {}, {}, {})
    handles = []
    for number, layer in enumerate(reference.model.model.language_model.layers):

        def keep(module, args, output, number=number, layer=layer):
            if module is layer.post_attention_layernorm:
                found.resid_mid[number] = args[0][0].clone()
            else:
                found.mlp_out[number] = output[0].clone()

        for module in (layer.post_attention_layernorm, layer.mlp):
            handles.append(module.register_forward_hook(keep))
    reference.model(**inputs)
    for handle in handles:
        handle.remove()
    return found
