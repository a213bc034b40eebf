"""The model's own answers: greedy, and then appended to the prompts to be read once more."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

# Is called with: tokens generated so far, answers that have ended, answers in all.
OnAnswers = Callable[[int, int, int], None]

# A look at the tokens waits for the device: not after each of them.
_SECONDS_BETWEEN_LOOKS = 0.5


class _Watch(StoppingCriteria):
    """Says how far a batch's answers are; as a stopping criterion, it stops none of them."""

    def __init__(self, on_answers: OnAnswers, n_prompt: int, ends: set[int]) -> None:
        self._on_answers = on_answers
        self._n_prompt = n_prompt
        self._ends = ends
        self._next_look = 0.0

    def __call__(self, input_ids: torch.Tensor, scores: Any, **options: Any) -> torch.Tensor:
        """Look at [batch, T] token ids, and stop no element: [batch] of False."""
        if time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + _SECONDS_BETWEEN_LOOKS
            new = input_ids[:, self._n_prompt :]
            ends = torch.tensor(sorted(self._ends), device=new.device)
            n_ended = int(torch.isin(new, ends).any(dim=1).sum())
            self._on_answers(new.shape[1], n_ended, len(new))
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def generate_responses(
    model: Any,
    inputs: Mapping[str, torch.Tensor],
    max_new_tokens: int,
    pad_token_id: int,
    suppressed: list[int],
    on_answers: OnAnswers | None = None,
) -> list[list[int]]:
    """Generate each element's response greedily.

    Args:
        model: the whole model, its head included.
        inputs: a batch on the model's device, padded on the left, as generation wants it.
        max_new_tokens: most tokens of a response.
        suppressed: tokens that no response may hold: the image token, which stands for a picture.
        on_answers: is told how far the responses are, twice a second at most.

    Returns:
        The token ids of each response, up to and without the token that ends it.
    """
    ends = model.generation_config.eos_token_id
    ends = set(ends if isinstance(ends, list) else [ends])
    watch = StoppingCriteriaList()
    if on_answers is not None:
        watch.append(_Watch(on_answers, inputs["input_ids"].shape[1], ends))
    with torch.inference_mode():
        output = model.generate(
            **inputs,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            pad_token_id=pad_token_id,
            suppress_tokens=suppressed,
            stopping_criteria=watch,
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
