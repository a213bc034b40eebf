"""Many queries on one picture: what precedes the query is computed once, its attention kept.

    USER: <image> … <image> | \\nIs there a cat? ASSISTANT:
    prefix: once a picture    suffix: once a query, on the prefix's key/value cache

In a decoder whose attention is causal, nothing before the query depends on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from PIL import Image
from transformers.modeling_outputs import BaseModelOutputWithPast

from capture.model.load import CaptureModel
from capture.model.taps import Taps
from capture.model.tolerance import relative_errors, root_mean_square, tolerance
from capture.passes.inputs import answer_ids, make_inputs, system_spans, token_ids
from capture.passes.logprobs import read_logprobs
from capture.passes.positions import ChosenRows, PositionChoice, select_rows
from capture.patches.layouts import PatchPlaces, patch_places
from capture.samples.pictures import Picture
from capture.samples.queries import Query
from llava_amber_activations.formats.columns import ANSWER, LOGPROB, POSITION

# The key/value cache among a model's arguments and outputs: transformers calls it so from 5.24 on,
# and announces that 5.40 no longer knows the older name.
CACHE = "cache" if "cache" in BaseModelOutputWithPast.__dataclass_fields__ else "past_key_values"


@dataclass(frozen=True)
class PrefixedInputs:
    """Queries on pictures whose prefixes are of one length C.

    Attributes:
        queries: in the order of `ids`.
        prefix: the model's inputs for the prefixes, one a picture: `input_ids` [pictures, C].
        picture: int64 [batch], whose prefix a query goes on from.
        ids: int64 [batch, T], the whole prompts and their answers to read, padded on the right.
        mask: int64 [batch, T], 1 where `ids` is no padding.
        patches: where those of the pictures lie.
        prompt_lengths: tokens of each prompt.
        system: positions of each prompt's system's turn, as `select_rows` takes them.
    """

    queries: tuple[Query, ...]
    prefix: dict[str, torch.Tensor]
    picture: torch.Tensor
    ids: torch.Tensor
    mask: torch.Tensor
    patches: PatchPlaces
    prompt_lengths: Sequence[int]
    system: Sequence[range]

    @property
    def length(self) -> int:
        """Tokens C of every prefix."""
        return self.prefix["input_ids"].shape[1]

    def described(self) -> dict[str, torch.Tensor]:
        """Return what `select_rows` asks of a batch: ids and mask."""
        return {"input_ids": self.ids, "attention_mask": self.mask}


def prefix_ids(ids: Sequence[int], image_token_id: int) -> tuple[int, ...] | None:
    """Return what precedes the picture in a prompt whose picture is one token yet.

    None where it does not hold exactly one picture.
    """
    if list(ids).count(image_token_id) != 1:
        return None
    return tuple(ids[: list(ids).index(image_token_id)])


def make_prefixed_inputs(
    processor: Any,
    groups: Sequence[tuple[Sequence[Query], Picture]],
    image_token_id: int,
) -> list[PrefixedInputs]:
    """Make the inputs of groups of queries, each group on one picture.

    Args:
        groups: of prompts that agree up to their picture (`prefix_ids`).

    Returns:
        One for each length of prefix: pictures cut into tiles differ in it.
    """
    firsts = [queries[0] for queries, _ in groups]
    inputs = make_inputs(processor, firsts, [picture for _, picture in groups])
    tails = [
        [_tail(token_ids(processor, query.chat), image_token_id) for query in queries]
        for queries, _ in groups
    ]
    whole = inputs["attention_mask"].sum(dim=1).tolist()
    lengths = [n_tokens - len(tail[0]) for n_tokens, tail in zip(whole, tails, strict=True)]
    if len(set(lengths)) > 1:
        order = sorted(range(len(groups)), key=lambda number: lengths[number])
        return [
            made
            for _, same in groupby(order, key=lambda number: lengths[number])
            for made in make_prefixed_inputs(
                processor, [groups[number] for number in same], image_token_id
            )
        ]
    sizes = [(picture.image.height, picture.image.width) for _, picture in groups]
    patches = patch_places(processor, inputs, sizes, image_token_id)
    shape = inputs["input_ids"].shape
    prefix = {
        name: tensor[:, : lengths[0]] if tensor.shape == shape else tensor
        for name, tensor in inputs.items()
    }
    prompts = [
        prefix["input_ids"][number].tolist() + tail
        for number, group in enumerate(tails)
        for tail in group
    ]
    queries = [query for same, _ in groups for query in same]
    prompt_lengths = [len(prompt) for prompt in prompts]
    answers = answer_ids(processor, (query.answer for query in queries if query.answer is not None))
    prompts = [
        prompt if query.answer is None else prompt + answers[query.answer]
        for prompt, query in zip(prompts, queries, strict=True)
    ]
    longest = max(map(len, prompts))
    padded = [
        prompt + [processor.tokenizer.pad_token_id] * (longest - len(prompt)) for prompt in prompts
    ]
    masks = [[1] * len(prompt) + [0] * (longest - len(prompt)) for prompt in prompts]
    counts = torch.tensor([len(group) for group in tails])
    return [
        PrefixedInputs(
            queries=tuple(queries),
            prefix=prefix,
            picture=torch.arange(len(groups)).repeat_interleave(counts),
            ids=torch.tensor(padded),
            mask=torch.tensor(masks),
            patches=patches,
            prompt_lengths=prompt_lengths,
            system=system_spans(processor, queries, prompt_lengths, image_token_id),
        )
    ]


def _tail(ids: list[int], image_token_id: int) -> list[int]:
    return ids[ids.index(image_token_id) + 1 :]


@torch.inference_mode()
def run_prefixed(
    inputs: PrefixedInputs,
    model: CaptureModel,
    taps: Taps,
    choice: PositionChoice,
    *,
    logprobs: bool = False,
) -> tuple[torch.Tensor, ChosenRows]:
    """Run prefixes, and then queries on them.

    Args:
        logprobs: whether rows say how likely their tokens are.

    Returns:
        As from `Taps.aimed`, [2 × layers, rows, H], and which rows they are.
    """
    samples = [query.sample for query in inputs.queries]
    rows = select_rows(
        *(inputs.described(), samples, choice, model.image_token_id, inputs.prompt_lengths),
        after=ANSWER,
        system=inputs.system,
        patches=inputs.patches.of(inputs.picture),
    )
    position = rows.columns[POSITION].to(torch.int64)
    in_prefix = position < inputs.length
    flat = inputs.picture[rows.element] * inputs.length + position
    once, copies = flat[in_prefix].unique(return_inverse=True)
    with taps.aimed(once, model.device) as of_prefix:
        first = model.body(**model.on_device(inputs.prefix), use_cache=True)
    if in_prefix.all() and not logprobs:
        return of_prefix.index_select(1, copies.to(of_prefix.device)), rows
    # On the CPU: a model on several devices keeps a layer's cache with the layer.
    cache = getattr(first, CACHE)
    cache.batch_select_indices(inputs.picture)
    ids = inputs.ids[:, inputs.length :]
    flat = rows.element * ids.shape[1] + position - inputs.length
    with taps.aimed(flat[~in_prefix], model.device, to_the_end=logprobs) as of_suffix:
        second = model.body(
            **model.on_device({"input_ids": ids, "attention_mask": inputs.mask}),
            **{CACHE: cache},
            use_cache=True,
        )
    if logprobs:

        def states(element: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
            of_prefix, of_suffix = first.last_hidden_state, second.last_hidden_state
            before = position < inputs.length
            found: torch.Tensor = of_suffix.new_empty(len(element), of_suffix.shape[2])
            found[before] = of_prefix[inputs.picture[element[before]], position[before]]
            found[~before] = of_suffix[element[~before], position[~before] - inputs.length]
            return found

        rows.columns[LOGPROB] = read_logprobs(rows, states, model, second)
    if not in_prefix.any():
        return of_suffix, rows
    gathered = of_suffix.new_empty((len(of_suffix), len(position), of_suffix.shape[2]))
    gathered[:, in_prefix] = of_prefix.index_select(1, copies.to(of_prefix.device))
    gathered[:, ~in_prefix] = of_suffix
    return gathered, rows


@torch.inference_mode()
def prefix_problem(model: CaptureModel, dtype: str) -> str | None:
    """Find out, on a drawn picture and two queries, whether prefixes can be reused.

    Args:
        dtype: what the model computes in, which decides how near the two ways must be.

    Returns:
        None where every vector of every position is the same either way, up to rounding; else, why
        not.
    """
    queries = [Query(0, 0, "", "Why?"), Query(1, 0, "", "Is there a cat in this image?")]
    gradient = Image.linear_gradient("L").resize((96, 64))
    picture = Picture(Image.merge("RGB", (gradient, gradient.rotate(90), gradient)), "")
    choice = PositionChoice("all")
    ids = [token_ids(model.processor, query.chat) for query in queries]
    starts = {prefix_ids(one, model.image_token_id) for one in ids}
    if len(starts) > 1 or None in starts:
        return "the prompt does not begin with the picture"
    try:
        plain = make_inputs(model.processor, queries, [picture, picture])
        (shared,) = make_prefixed_inputs(
            model.processor, [(queries, picture)], model.image_token_id
        )
        if not torch.equal(plain["input_ids"], shared.ids):
            return "the prompt's tokens depend on what follows the picture"
        rows = select_rows(plain, [0, 1], choice, model.image_token_id)
        with Taps(model.decoder, "resid_mid", torch.float32) as taps:
            with taps.aimed(rows.flat, model.device) as expected:
                model.body(**model.on_device(plain), use_cache=False)
            found, _ = run_prefixed(shared, model, taps, choice)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    # A layer at a time: in float64, all of them are large.
    errors = torch.stack(list(map(relative_errors, found, expected)))
    allowed = tolerance(dtype)
    rms, worst = root_mean_square(errors), float(errors.max())
    if rms > allowed.rms or worst > allowed.worst:
        return (
            f"what precedes the query differs by {rms:.1e} of its norm on average, and by "
            f"{worst:.1e} at most, where it is reused"
        )
    return None
