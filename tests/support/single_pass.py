"""The independent computation: one sample at a time, no padding, plain hooks, every position.

Written against transformers' Llama alone, with nothing of this project's packages in it.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration


@dataclass
class SinglePass:
    """Every position of one sample: ids [T]; each site by layer, [T, H] of the model's dtype."""

    input_ids: torch.Tensor
    resid_pre: dict[int, torch.Tensor]
    resid_mid: dict[int, torch.Tensor]
    mlp_in: dict[int, torch.Tensor]
    mlp_out: dict[int, torch.Tensor]


class Reference:
    """A LLaVA run on one sample at a time."""

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        self.model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=dtype)
        self.model.eval()
        self.processor = AutoProcessor.from_pretrained(folder)

    @torch.no_grad()
    def run(self, picture: Path, query: str) -> SinglePass:
        prompt = f"USER: <image>\n{query} ASSISTANT:"
        with Image.open(picture) as image:
            inputs = self.processor(images=image.convert("RGB"), text=prompt, return_tensors="pt")
        inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        found = SinglePass(inputs["input_ids"][0], {}, {}, {}, {})
        handles = []
        for number, layer in enumerate(self.model.model.language_model.layers):

            def keep(module, args, output, number=number, layer=layer):
                if module is layer.input_layernorm:
                    found.resid_pre[number] = args[0][0].clone()
                elif module is layer.post_attention_layernorm:
                    found.resid_mid[number] = args[0][0].clone()
                else:
                    found.mlp_in[number] = args[0][0].clone()
                    found.mlp_out[number] = output[0].clone()

            for module in (layer.input_layernorm, layer.post_attention_layernorm, layer.mlp):
                handles.append(module.register_forward_hook(keep))
        self.model(**inputs)
        for handle in handles:
            handle.remove()
        return found
