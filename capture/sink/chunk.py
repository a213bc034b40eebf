"""One batch of a chunk, run through the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from capture.model.load import CaptureModel
from capture.model.taps import Taps
from capture.model.transcoders import Encoder, pool
from capture.passes.generation import OnAnswers, append_responses, generate_responses
from capture.passes.host_copy import HostCopy
from capture.passes.inputs import render_prompt
from capture.passes.positions import ChosenRows, PositionChoice, select_rows
from capture.passes.prefix import run_prefixed
from capture.passes.preparation import PreparedBatch
from capture.passes.token_pieces import token_pieces
from capture.samples.queries import Query
from capture.settings import CaptureSettings
from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.formats.columns import OPTIONAL_ROW_TENSORS, ROW_TENSORS
from llava_amber_activations.store.samples import Tokens
from llava_amber_activations.vectors.finite import finite_slots

COLUMNS = (*ROW_TENSORS, *OPTIONAL_ROW_TENSORS)


@dataclass(frozen=True)
class Asked:
    """What one sample's model read: fields of a `SampleRecord`."""

    prompt: str
    tokens: Tokens
    response_start: int | None = None


@dataclass(frozen=True)
class CapturedBatch:
    """What one forward pass gave.

    Attributes:
        vectors: [2 × kept layers, rows, H] of the store's dtype, as `Taps` orders them, perhaps
            still on its way to the CPU.
        columns: the store's row tensors, each int32 [rows].
        responses: of each sample, where they were generated.
        asked: of each sample, what its record has of prompt, tokens and where its response starts.
        features: of each layer with a transcoder, [samples, F], one row for each of
            `prepared.queries`.
        finite: whether each row of each vector is finite, [2 × kept layers, rows], where the device
            that has them said so; None where they are to be looked at on their way to the file.
    """

    prepared: PreparedBatch
    vectors: HostCopy | None = None
    columns: dict[str, torch.Tensor] = field(default_factory=dict)
    responses: dict[int, str] = field(default_factory=dict)
    asked: dict[int, Asked] = field(default_factory=dict)
    features: dict[int, HostCopy] = field(default_factory=dict)
    finite: HostCopy | None = None


@torch.inference_mode()
def run_batch(
    prepared: PreparedBatch,
    model: CaptureModel,
    taps: Taps,
    settings: CaptureSettings,
    encoders: Mapping[int, Encoder],
    on_answers: OnAnswers | None = None,
) -> CapturedBatch:
    """Run one batch through the model, its response first where one is wanted.

    Args:
        on_answers: is told how far the responses are.

    Raises:
        ActivationsError: a picture was unreadable, and `on_error` is "stop".
    """
    if prepared.skipped and settings.on_error == "stop":
        raise ActivationsError(next(iter(prepared.skipped.values())))
    inputs = prepared.inputs
    choice = PositionChoice(
        settings.positions, settings.sample_positions, settings.seed, settings.always
    )
    if prepared.prefixed:
        parts: list[tuple[torch.Tensor, ChosenRows]] = []
        start = 0
        for part in prepared.prefixed:
            gathered, rows = run_prefixed(part, model, taps, choice)
            parts.append((gathered, replace(rows, element=rows.element + start)))
            start += len(part.queries)
        captured = _on_its_way(prepared, parts, taps.layers, model, settings, encoders)
        ids = [one for part in prepared.prefixed for one in _unpadded(part.ids, part.mask)]
        return replace(captured, asked=_asked(prepared.queries, ids, model))
    if inputs is None:
        return CapturedBatch(prepared)
    samples = [query.sample for query in prepared.queries]
    lengths: list[int] | None = None
    responses: dict[int, str] = {}
    if prepared.generation_inputs is not None and settings.response_tokens is not None:
        ids = generate_responses(
            model.whole,
            model.on_device(prepared.generation_inputs),
            settings.response_tokens,
            model.pad_token_id,
            [model.image_token_id],
            on_answers,
        )
        inputs, lengths = append_responses(inputs, ids, model.pad_token_id)
        texts = model.processor.tokenizer.batch_decode(ids, skip_special_tokens=True)
        responses = {sample: text.strip() for sample, text in zip(samples, texts, strict=True)}
    rows = select_rows(inputs, samples, choice, model.image_token_id, lengths)
    with taps.aimed(rows.flat, model.device) as gathered:
        model.body(**model.on_device(inputs), use_cache=False)
    parts = [(gathered, rows)]
    captured = _on_its_way(prepared, parts, taps.layers, model, settings, encoders)
    # While the device computes.
    token_ids = _unpadded(inputs["input_ids"], inputs["attention_mask"])
    asked = _asked(prepared.queries, token_ids, model, lengths)
    return replace(captured, responses=responses, asked=asked)


def _unpadded(ids: torch.Tensor, mask: torch.Tensor) -> list[list[int]]:
    """Return the tokens of each of [batch, T] that are no padding."""
    return [row[real].tolist() for row, real in zip(ids, mask.bool(), strict=True)]


def _asked(
    queries: Sequence[Query],
    token_ids: Sequence[Sequence[int]],
    model: CaptureModel,
    prompt_lengths: Sequence[int] | None = None,
) -> dict[int, Asked]:
    tokenizer, image_token_id = model.processor.tokenizer, model.image_token_id
    starts: Sequence[int | None] = prompt_lengths or [None] * len(queries)
    return {
        query.sample: Asked(
            render_prompt(model.processor, query.query),
            Tokens.of(token_pieces(tokenizer, ids, image_token_id)),
            start,
        )
        for query, ids, start in zip(queries, token_ids, starts, strict=True)
    }


def _on_its_way(
    prepared: PreparedBatch,
    parts: Sequence[tuple[torch.Tensor, ChosenRows]],
    kept: Sequence[int],
    model: CaptureModel,
    settings: CaptureSettings,
    encoders: Mapping[int, Encoder],
) -> CapturedBatch:
    """Send what the parts of a batch gathered on its way to the host, its features with it."""
    gathered = parts[0][0] if len(parts) == 1 else torch.cat([part for part, _ in parts], dim=1)
    columns = {name: torch.cat([rows.columns[name] for _, rows in parts]) for name in COLUMNS}
    element = torch.cat([rows.element for _, rows in parts]).to(model.device)
    n_samples = len(prepared.queries)
    features = {
        layer: HostCopy(
            pool(
                encoder.features(gathered[kept.index(layer)]), element, n_samples, settings.pool
            ).to(gathered.dtype)
        )
        for layer, encoder in encoders.items()
    }
    # A GPU looks before the copy; where there is none, threads do on the way to the file.
    finite = None if gathered.device.type == "cpu" else HostCopy(finite_slots(gathered))
    vectors = HostCopy(gathered)
    return CapturedBatch(prepared, vectors, columns, features=features, finite=finite)
