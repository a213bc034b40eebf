"""The model's own answers: greedy, and then appended to the prompts to be read once more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def generate_responses(
    model: Any,
    inputs: Mapping[str, torch.Tensor],
    max_new_tokens: int,
    pad_token_id: int,
    suppressed: list[int],
) -> list[list[int]]:
    """Generate each element's response greedily.

    Args:
        model: the whole model, its head included.
        inputs: a batch on the model's device, padded on the left, as generation wants it.
        max_new_tokens: most tokens of a response.
        suppressed: tokens that no response may hold: the image token, which stands for a picture.

    Returns:
        The token ids of each response, up to and without the token that ends it.
    """
    ends = model.generation_config.eos_token_id
    ends = set(ends if isinstance(ends, list) else [ends])
    with torch.inference_mode():
        output = model.generate(
            **inputs,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            pad_token_id=pad_token_id,
            suppress_tokens=suppressed,
        )
    responses = []
    for tokens in output[:, inputs["input_ids"].shape[1] :].tolist():
        end = next((n for n, token in enumerate(tokens) if token in ends), len(tokens))
        responses.append(tokens[:end])
    return responses


def append_responses(
    inputs: Mapping[str, torch.Tensor], responses: list[list[int]], pad_token_id: int
) -> tuple[dict[str, torch.Tensor], list[int]]:
    """Append responses to prompts that are padded on the right, and pad on the right again.

    Returns:
        The batch, and the length of each prompt in it. Tensors that are not [batch, T] stay as
        they are.
    """
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    lengths = mask.sum(dim=1).tolist()
    n_tokens = max(length + len(r) for length, r in zip(lengths, responses, strict=True))
    extended = {}
    for name, tensor in inputs.items():
        if tensor.shape != ids.shape:
            extended[name] = tensor
            continue
        fill = pad_token_id if name == "input_ids" else 0
        longer = torch.full((len(ids), n_tokens), fill, dtype=tensor.dtype)
        for row, (length, response) in enumerate(zip(lengths, responses, strict=True)):
            end = length + len(response)
            longer[row, :length] = tensor[row, :length]
            if name == "input_ids":
                longer[row, length:end] = torch.tensor(response, dtype=tensor.dtype)
            elif name == "attention_mask":
                longer[row, length:end] = 1
        extended[name] = longer
    return extended, lengths
