"""Capturing the samples of one chunk, batch after batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from capture.inputs import Picture, make_inputs, read_picture
from capture.model import CaptureModel
from capture.positions import select_rows
from capture.queries import Query
from capture.settings import CaptureSettings
from capture.taps import Taps
from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.store import (
    POSITION,
    ROW_TENSORS,
    SAMPLE,
    TOKEN_ID,
    SampleRecord,
    vector_names,
)


@dataclass(frozen=True)
class _Batch:
    """What one forward pass gave.

    Attributes:
        vectors: [2 × n_layers, rows, H] of the store's dtype, on the CPU, as `Taps` orders them.
        columns: `sample`, `position` and `token_id`, each int32 [rows].
    """

    vectors: torch.Tensor
    columns: dict[str, torch.Tensor]


def capture_chunk(
    queries: Sequence[Query],
    model: CaptureModel,
    taps: Taps,
    settings: CaptureSettings,
    on_samples: Callable[[int], object],
) -> tuple[dict[str, torch.Tensor], list[SampleRecord]]:
    """Capture the samples of one chunk.

    Args:
        on_samples: called with the number of samples done, after every batch.

    Returns:
        The chunk's tensors and its samples' records, as `store.write_chunk` takes them.

    Raises:
        ActivationsError: a picture is unreadable (unless `on_error` is "skip"), or a value does
            not fit the store's dtype.
    """
    batches: list[_Batch] = []
    digests: dict[int, str] = {}
    skipped: dict[int, str] = {}
    for start in range(0, len(queries), settings.batch_size):
        readable = []
        for query in queries[start : start + settings.batch_size]:
            try:
                picture = read_picture(settings.image_dir, query)
            except ActivationsError as error:
                if settings.on_error == "stop":
                    raise
                skipped[query.sample] = str(error)
            else:
                readable.append((query, picture))
        if readable:
            batches.append(_run_batch(readable, model, taps, settings))
        digests |= {query.sample: picture.sha256 for query, picture in readable}
        on_samples(min(settings.batch_size, len(queries) - start))
    tensors = _joined(batches, model, taps)
    n_rows = torch.bincount(tensors[SAMPLE], minlength=queries[-1].sample + 1).tolist()
    records = [
        SampleRecord(
            sample=query.sample,
            id=query.id,
            image=query.image,
            query=query.query,
            image_sha256=digests.get(query.sample),
            n_rows=n_rows[query.sample],
            error=skipped.get(query.sample),
        )
        for query in queries
    ]
    return tensors, records


@torch.inference_mode()
def _run_batch(
    readable: Sequence[tuple[Query, Picture]],
    model: CaptureModel,
    taps: Taps,
    settings: CaptureSettings,
) -> _Batch:
    queries = [query for query, _ in readable]
    inputs = make_inputs(model.processor, queries, [picture for _, picture in readable])
    rows = select_rows(
        inputs["input_ids"], inputs["attention_mask"], settings.positions, model.image_token_id
    )
    taps.aim(rows.flat, model.device)
    model.body(**model.on_device(inputs), use_cache=False)
    samples = torch.tensor([query.sample for query in queries], dtype=torch.int32)
    columns = {
        SAMPLE: samples[rows.element],
        POSITION: rows.position,
        TOKEN_ID: rows.token_id,
    }
    vectors = taps.gathered().cpu()
    _check_finite(vectors, columns[SAMPLE])
    return _Batch(vectors, columns)


def _check_finite(vectors: torch.Tensor, sample: torch.Tensor) -> None:
    finite = torch.isfinite(vectors).all(dim=2)
    if finite.all():
        return
    n_layers = len(vectors) // 2
    bad = (~finite).nonzero().tolist()
    # The first in the order in which the model computes them: what follows is its consequence.
    slot, row = min(bad, key=lambda place: (place[0] % n_layers, place[0] // n_layers, place[1]))
    name = vector_names(n_layers)[slot]
    raise ActivationsError(
        f"{name} of sample {int(sample[row])} has a value that {vectors.dtype} cannot hold: "
        "capture with --dtype bfloat16 or float32 (and the same --store-dtype)"
    )


def _joined(batches: Sequence[_Batch], model: CaptureModel, taps: Taps) -> dict[str, torch.Tensor]:
    n_layers = len(model.decoder.layers)
    if not batches:
        taps.aim(torch.empty(0, dtype=torch.int64), torch.device("cpu"))
        none = torch.empty(0, dtype=torch.int32)
        batches = [_Batch(taps.gathered(), dict.fromkeys(ROW_TENSORS, none))]
    tensors = {
        name: torch.cat([batch.vectors[slot] for batch in batches])
        for slot, name in enumerate(vector_names(n_layers))
    }
    for name in ROW_TENSORS:
        tensors[name] = torch.cat([batch.columns[name] for batch in batches])
    return tensors
