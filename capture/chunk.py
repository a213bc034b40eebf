"""One chunk: its batches run through the model, and joined in the order of the query file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch

from capture.generation import append_responses, generate_responses
from capture.host_copy import HostCopy
from capture.model import CaptureModel
from capture.positions import PositionChoice, select_rows
from capture.preparation import PreparedBatch
from capture.queries import Query
from capture.settings import CaptureSettings
from capture.taps import Taps
from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.store import (
    PLACE_TENSORS,
    ROW_TENSORS,
    SAMPLE,
    SampleRecord,
    vector_names,
)

_COLUMNS = (*ROW_TENSORS, *PLACE_TENSORS)


@dataclass(frozen=True)
class CapturedBatch:
    """What one forward pass gave.

    Attributes:
        vectors: [2 × n_layers, rows, H] of the store's dtype, as `Taps` orders them, perhaps still
            on its way to the CPU.
        columns: the store's row tensors, each int32 [rows].
        responses: of each sample, where they were generated.
    """

    prepared: PreparedBatch
    vectors: HostCopy | None = None
    columns: dict[str, torch.Tensor] = field(default_factory=dict)
    responses: dict[int, str] = field(default_factory=dict)


@torch.inference_mode()
def run_batch(
    prepared: PreparedBatch, model: CaptureModel, taps: Taps, settings: CaptureSettings
) -> CapturedBatch:
    """Run one batch through the model, its response first where one is wanted.

    Raises:
        ActivationsError: a picture was unreadable, and `on_error` is "stop".
    """
    if prepared.skipped and settings.on_error == "stop":
        raise ActivationsError(next(iter(prepared.skipped.values())))
    inputs = prepared.inputs
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
        )
        inputs, lengths = append_responses(inputs, ids, model.pad_token_id)
        texts = model.processor.tokenizer.batch_decode(ids, skip_special_tokens=True)
        responses = {sample: text.strip() for sample, text in zip(samples, texts, strict=True)}
    choice = PositionChoice(settings.positions, settings.sample_positions, settings.seed)
    rows = select_rows(inputs, samples, choice, model.image_token_id, lengths)
    with taps.aimed(rows.flat, model.device) as gathered:
        model.body(**model.on_device(inputs), use_cache=False)
    return CapturedBatch(prepared, HostCopy(gathered), rows.columns, responses)


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
            finite = torch.isfinite(tensors[name]).all(dim=1)
            if not finite.all():
                sample = int(tensors[SAMPLE][finite.logical_not()][0])
                raise ActivationsError(
                    f"{name} of sample {sample} has a value that {tensors[name].dtype} cannot "
                    "hold: capture with --dtype bfloat16 or float32 (and the same --store-dtype)"
                )
