"""One batch of a chunk: run through the model, and then on its way to the host."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from capture.model.load import CaptureModel
from capture.model.taps import Taps
from capture.model.transcoders import Encoder, pool
from capture.passes.generation import OnAnswers, append_responses, generate_responses
from capture.passes.host_copy import HostCopy
from capture.passes.inputs import render_prompt
from capture.passes.logprobs import read_logprobs
from capture.passes.positions import ChosenRows, PositionChoice, select_rows
from capture.passes.prefix import run_prefixed
from capture.passes.preparation import PreparedBatch
from capture.passes.token_pieces import token_pieces
from capture.patches.layouts import cuts_tiles
from capture.samples.queries import Query
from capture.settings import CaptureSettings
from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.formats.columns import (
    ANSWER,
    EXTRA_ROW_TENSORS,
    GENERATED,
    LOGPROB,
    NO_PATCH,
    OPTIONAL_ROW_TENSORS,
    ROW_TENSORS,
    TILE,
)
from llava_amber_activations.store.samples import Tokens
from llava_amber_activations.vectors.finite import finite_slots


def extra_row_tensors(model: CaptureModel, settings: CaptureSettings) -> tuple[str, ...]:
    """Return which of the row tensors that not every store has a capture of `model` has."""
    has = {TILE: cuts_tiles(model.processor), LOGPROB: settings.logprobs}
    return tuple(name for name in EXTRA_ROW_TENSORS if has[name])


def row_tensors(extra_columns: Container[str]) -> tuple[str, ...]:
    """Return the names of all row tensors of a capture whose recipe has some extra columns."""
    extra = (name for name in EXTRA_ROW_TENSORS if name in extra_columns)
    return (*ROW_TENSORS, *OPTIONAL_ROW_TENSORS, *extra)


@dataclass(frozen=True)
class Asked:
    """What one sample's model read: fields of a `SampleRecord`."""

    prompt: str
    tokens: Tokens
    response_start: int | None = None


@dataclass(frozen=True)
class GatheredBatch:
    """What one forward pass gave, where the model is.

    Attributes:
        vectors: [2 × kept layers, rows, H] of the wanted dtype, as `Taps` orders them; None where
            no sample could be run.
        columns: the store's row tensors, each [rows], on the CPU.
        token_ids: of each of `prepared.queries`, what the model read.
        prompt_lengths: of each, how many of those are the prompt's; None where all are.
        responses: of each sample, where they were generated.
        features: of each layer with a transcoder, [samples, F], one row for each of
            `prepared.queries`.
    """

    prepared: PreparedBatch
    vectors: torch.Tensor | None = None
    columns: dict[str, torch.Tensor] = field(default_factory=dict)
    token_ids: Sequence[Sequence[int]] = ()
    prompt_lengths: Sequence[int] | None = None
    responses: dict[int, str] = field(default_factory=dict)
    features: dict[int, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class CapturedBatch:
    """What a store keeps of a forward pass.

    Attributes:
        vectors: as `GatheredBatch` has them, perhaps still on their way to the CPU.
        columns, responses: as there.
        asked: of each sample, what its record has of prompt, tokens and where its response starts.
        features: as there, on their way as well.
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
) -> GatheredBatch:
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
            gathered, rows = run_prefixed(part, model, taps, choice, logprobs=settings.logprobs)
            parts.append((gathered, replace(rows, element=rows.element + start)))
            start += len(part.queries)
        ids = [one for part in prepared.prefixed for one in _unpadded(part.ids, part.mask)]
        starts = [start for part in prepared.prefixed for start in part.prompt_lengths]
        found = _gathered(prepared, parts, taps.layers, model, settings, encoders)
        return replace(found, token_ids=ids, prompt_lengths=starts)
    if inputs is None:
        return GatheredBatch(prepared)
    samples = [query.sample for query in prepared.queries]
    lengths, after = prepared.prompt_lengths, ANSWER
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
        after = GENERATED
        texts = model.processor.tokenizer.batch_decode(ids, skip_special_tokens=True)
        responses = {sample: text.strip() for sample, text in zip(samples, texts, strict=True)}
    rows = select_rows(
        *(inputs, samples, choice, model.image_token_id, lengths),
        after=after,
        system=prepared.system,
        patches=prepared.patches,
    )
    with taps.aimed(rows.flat, model.device, to_the_end=settings.logprobs) as gathered:
        output = model.body(**model.on_device(inputs), use_cache=False)
    if settings.logprobs:
        states = output.last_hidden_state
        rows.columns[LOGPROB] = read_logprobs(
            rows, lambda element, position: states[element, position], model, output
        )
    found = _gathered(prepared, [(gathered, rows)], taps.layers, model, settings, encoders)
    token_ids = _unpadded(inputs["input_ids"], inputs["attention_mask"])
    return replace(found, token_ids=token_ids, prompt_lengths=lengths, responses=responses)


@torch.inference_mode()
def to_host(gathered: GatheredBatch, model: CaptureModel) -> CapturedBatch:
    """Send what a pass gave on its way to the host, and say what each sample was asked."""
    prepared, vectors = gathered.prepared, gathered.vectors
    if vectors is None:
        return CapturedBatch(prepared)
    features = {layer: HostCopy(each) for layer, each in gathered.features.items()}
    # A GPU looks before the copy; where there is none, threads do on the way to the file.
    finite = None if vectors.device.type == "cpu" else HostCopy(finite_slots(vectors))
    return CapturedBatch(
        prepared,
        HostCopy(vectors),
        gathered.columns,
        gathered.responses,
        # While the device computes.
        _asked(
            prepared.queries, gathered.token_ids, model, gathered.prompt_lengths, gathered.responses
        ),
        features,
        finite,
    )


def _unpadded(ids: torch.Tensor, mask: torch.Tensor) -> list[list[int]]:
    """Return the tokens of each of [batch, T] that are no padding."""
    return [row[real].tolist() for row, real in zip(ids, mask.bool(), strict=True)]


def _asked(
    queries: Sequence[Query],
    token_ids: Sequence[Sequence[int]],
    model: CaptureModel,
    prompt_lengths: Sequence[int] | None = None,
    responses: Container[int] = (),
) -> dict[int, Asked]:
    tokenizer, image_token_id = model.processor.tokenizer, model.image_token_id
    starts: Sequence[int | None] = prompt_lengths or [None] * len(queries)
    return {
        query.sample: Asked(
            render_prompt(model.processor, query.chat),
            Tokens.of(token_pieces(tokenizer, ids, image_token_id)),
            start if query.answer is not None or query.sample in responses else None,
        )
        for query, ids, start in zip(queries, token_ids, starts, strict=True)
    }


def _gathered(
    prepared: PreparedBatch,
    parts: Sequence[tuple[torch.Tensor, ChosenRows]],
    kept: Sequence[int],
    model: CaptureModel,
    settings: CaptureSettings,
    encoders: Mapping[int, Encoder],
) -> GatheredBatch:
    """Join what the parts of a batch gathered, and compute the features of it."""
    vectors = parts[0][0] if len(parts) == 1 else torch.cat([part for part, _ in parts], dim=1)
    columns = {
        name: torch.cat([_column(rows, name) for _, rows in parts])
        for name in row_tensors(extra_row_tensors(model, settings))
    }
    element = torch.cat([rows.element for _, rows in parts]).to(model.device)
    n_samples = len(prepared.queries)
    features = {
        layer: pool(
            encoder.features(vectors[kept.index(layer)]), element, n_samples, settings.pool
        ).to(vectors.dtype)
        for layer, encoder in encoders.items()
    }
    return GatheredBatch(prepared, vectors, columns, features=features)


def _column(rows: ChosenRows, name: str) -> torch.Tensor:
    """Return a row tensor, also that of tiles where a batch has no picture to cut."""
    if name == TILE and TILE not in rows.columns:
        return torch.full((len(rows.element),), NO_PATCH, dtype=torch.int32)
    return rows.columns[name]
