"""One chunk: its batches run through the model, and joined in the order of the query file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from capture.model.load import CaptureModel
from capture.model.taps import Taps
from capture.model.transcoders import Encoder, pool
from capture.passes.generation import OnAnswers, append_responses, generate_responses
from capture.passes.host_copy import HostCopy
from capture.passes.positions import ChosenRows, PositionChoice, select_rows
from capture.passes.prefix import run_prefixed
from capture.passes.preparation import PreparedBatch
from capture.samples.queries import Query
from capture.settings import CaptureSettings
from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.formats.columns import OPTIONAL_ROW_TENSORS, ROW_TENSORS, SAMPLE
from llava_amber_activations.store.layout import vector_names
from llava_amber_activations.store.samples import SampleRecord
from llava_amber_activations.vectors.finite import finite_rows

_COLUMNS = (*ROW_TENSORS, *OPTIONAL_ROW_TENSORS)


@dataclass(frozen=True)
class CapturedBatch:
    """What one forward pass gave.

    Attributes:
        vectors: [2 × n_layers, rows, H] of the store's dtype, as `Taps` orders them, perhaps still
            on its way to the CPU.
        columns: the store's row tensors, each int32 [rows].
        responses: of each sample, where they were generated.
        features: of each layer with a transcoder, [samples, F], one row for each of
            `prepared.queries`.
    """

    prepared: PreparedBatch
    vectors: HostCopy | None = None
    columns: dict[str, torch.Tensor] = field(default_factory=dict)
    responses: dict[int, str] = field(default_factory=dict)
    features: dict[int, HostCopy] = field(default_factory=dict)


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
    choice = PositionChoice(settings.positions, settings.sample_positions, settings.seed)
    if prepared.prefixed:
        parts, start = [], 0
        for part in prepared.prefixed:
            gathered, rows = run_prefixed(part, model, taps, choice)
            parts.append((gathered, replace(rows, element=rows.element + start)))
            start += len(part.queries)
        return _on_its_way(prepared, parts, model, settings, encoders)
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
    return _on_its_way(prepared, [(gathered, rows)], model, settings, encoders, responses)


def _on_its_way(
    prepared: PreparedBatch,
    parts: Sequence[tuple[torch.Tensor, ChosenRows]],
    model: CaptureModel,
    settings: CaptureSettings,
    encoders: Mapping[int, Encoder],
    responses: dict[int, str] | None = None,
) -> CapturedBatch:
    """Send what the parts of a batch gathered on its way to the host, its features with it."""
    gathered = parts[0][0] if len(parts) == 1 else torch.cat([part for part, _ in parts], dim=1)
    columns = {name: torch.cat([rows.columns[name] for _, rows in parts]) for name in _COLUMNS}
    element = torch.cat([rows.element for _, rows in parts]).to(model.device)
    n_samples = len(prepared.queries)
    features = {
        layer: HostCopy(
            pool(encoder.features(gathered[layer]), element, n_samples, settings.pool).to(
                gathered.dtype
            )
        )
        for layer, encoder in encoders.items()
    }
    return CapturedBatch(prepared, HostCopy(gathered), columns, responses or {}, features)


def join_chunk(
    queries: Sequence[Query],
    batches: Iterable[CapturedBatch],
    model: CaptureModel,
    dtype: torch.dtype,
) -> tuple[dict[str, torch.Tensor], list[SampleRecord]]:
    """Join a chunk's batches, in whatever order, into its tensors and its samples' records.

    Args:
        dtype: of the vectors, which an empty chunk has too.

    Raises:
        ActivationsError: a value does not fit the store's dtype.
    """
    batches = list(batches)
    filled = [batch for batch in batches if batch.vectors is not None]
    vectors = [batch.vectors.tensor() for batch in filled if batch.vectors is not None]
    columns = {
        name: torch.cat([batch.columns[name] for batch in filled] or [_no_rows()])
        for name in _COLUMNS
    }
    order = torch.argsort(columns[SAMPLE], stable=True)
    in_order = torch.equal(order, torch.arange(len(order)))
    tensors = {name: columns[name][order] for name in _COLUMNS}
    for slot, name in enumerate(vector_names(len(model.decoder.layers))):
        parts = [part[slot] for part in vectors]
        joined = torch.cat(parts or [torch.empty(0, model.decoder.hidden_size, dtype=dtype)])
        tensors[name] = joined if in_order else joined[order]
    check_finite(tensors, len(model.decoder.layers))
    return tensors, _records(queries, batches, tensors[SAMPLE])


def join_features(
    batches: Iterable[CapturedBatch], layers: Iterable[int]
) -> tuple[dict[int, torch.Tensor], torch.Tensor]:
    """Join the features of a chunk's samples that have rows, in the order of the query file.

    Returns:
        Of each layer, [samples, F]; and the samples, int32.

    Raises:
        ActivationsError: a feature does not fit the store's dtype.
    """
    filled = [batch for batch in batches if batch.features]
    with_rows = [torch.isin(_samples_of(batch), batch.columns[SAMPLE]) for batch in filled]
    sample = torch.cat(
        [_samples_of(b)[kept] for b, kept in zip(filled, with_rows, strict=True)] or [_no_rows()]
    )
    order = torch.argsort(sample)
    joined = {}
    for layer in layers:
        parts = [
            batch.features[layer].tensor()[kept]
            for batch, kept in zip(filled, with_rows, strict=True)
        ]
        if not parts:
            continue
        joined[layer] = torch.cat(parts)[order]
        finite = finite_rows(joined[layer])
        if not finite.all():
            bad = int(sample[order][finite.logical_not()][0])
            raise ActivationsError(
                f"a feature of layer {layer} of sample {bad} does not fit "
                f"{joined[layer].dtype}: capture with --store-dtype float32"
            )
    return joined, sample[order]


def _samples_of(batch: CapturedBatch) -> torch.Tensor:
    return torch.tensor([query.sample for query in batch.prepared.queries], dtype=torch.int32)


def _no_rows() -> torch.Tensor:
    return torch.empty(0, dtype=torch.int32)


def _records(
    queries: Sequence[Query], batches: Sequence[CapturedBatch], sample: torch.Tensor
) -> list[SampleRecord]:
    digests: dict[int, str] = {}
    skipped: dict[int, str] = {}
    responses: dict[int, str] = {}
    for batch in batches:
        digests |= batch.prepared.digests
        skipped |= batch.prepared.skipped
        responses |= batch.responses
    n_rows = torch.bincount(sample, minlength=queries[-1].sample + 1).tolist()
    return [
        SampleRecord(
            sample=query.sample,
            id=query.id,
            image=query.image,
            query=query.query,
            image_sha256=digests.get(query.sample),
            n_rows=n_rows[query.sample],
            error=skipped.get(query.sample),
            response=responses.get(query.sample),
        )
        for query in queries
    ]


def check_finite(tensors: dict[str, torch.Tensor], n_layers: int) -> None:
    """Check that a chunk's vectors are finite.

    Raises:
        ActivationsError: naming the first vector that is not, and its sample.
    """
    x_names, mlp_out_names = vector_names(n_layers)[:n_layers], vector_names(n_layers)[n_layers:]
    # In the order in which the model computes them: what follows the first is its consequence.
    for names in zip(x_names, mlp_out_names, strict=True):
        for name in names:
            finite = finite_rows(tensors[name])
            if not finite.all():
                sample = int(tensors[SAMPLE][finite.logical_not()][0])
                raise ActivationsError(
                    f"{name} of sample {sample} has a value that {tensors[name].dtype} cannot "
                    "hold: capture with --dtype bfloat16 or float32 (and the same --store-dtype)"
                )
