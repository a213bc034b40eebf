"""A chunk's batches in the order of the query file: its tensors in pieces, its samples' records."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock

import torch

from capture.model.load import CaptureModel
from capture.samples.queries import Query
from capture.sink.chunk import Asked, CapturedBatch, row_tensors
from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.formats.columns import FLOATS, SAMPLE
from llava_amber_activations.store.layout import vector_names
from llava_amber_activations.store.samples import SampleRecord
from llava_amber_activations.vectors.finite import finite_rows


@dataclass(frozen=True)
class JoinedChunk:
    """A chunk in the order of the query file.

    Attributes:
        pieces: of each tensor its rows, [rows, H] or [rows], in pieces, at least one: those of
            vectors are views of what the batches hold.
        records: of the chunk's samples.
        finite: of each vector, whether each row is finite, bool [rows], where the batches say so.
    """

    pieces: dict[str, list[torch.Tensor]]
    records: list[SampleRecord]
    finite: dict[str, torch.Tensor] | None


def join_chunk(
    queries: Sequence[Query],
    batches: Iterable[CapturedBatch],
    model: CaptureModel,
    dtype: torch.dtype,
    layers: Sequence[int] | None = None,
    extra_columns: Container[str] = (),
) -> JoinedChunk:
    """Put a chunk's batches, in whatever order they are, into that of the query file.

    Args:
        dtype: of the vectors, which an empty chunk has too.
        layers: whose vectors they are, as `Taps` has them; all of the model's if None.
        extra_columns: as the recipe has them.
    """
    batches = list(batches)
    filled = [batch for batch in batches if batch.vectors is not None]
    columns = {
        name: torch.cat([batch.columns[name] for batch in filled] or [_no_rows(name)])
        for name in row_tensors(extra_columns)
    }
    order = torch.argsort(columns[SAMPLE], stable=True)
    runs = _runs(order, [len(batch.columns[SAMPLE]) for batch in filled])
    names = vector_names(range(len(model.decoder.layers)) if layers is None else layers)
    vectors = [batch.vectors.tensor() for batch in filled if batch.vectors is not None]
    no_rows = torch.empty(0, model.decoder.hidden_size, dtype=dtype)
    pieces = {name: [column[order]] for name, column in columns.items()}
    for slot, name in enumerate(names):
        pieces[name] = [vectors[n][slot, start:stop] for n, start, stop in runs] or [no_rows]
    said = [batch.finite.tensor() for batch in filled if batch.finite is not None]
    finite = None
    if filled and len(said) == len(filled):
        of_all = torch.cat(said, dim=1)[:, order]
        finite = dict(zip(names, of_all, strict=True))
    return JoinedChunk(pieces, _records(queries, batches, pieces[SAMPLE][0]), finite)


def _runs(order: torch.Tensor, n_rows: Sequence[int]) -> list[tuple[int, int, int]]:
    """Cut an order of the batches' rows, one after the other, into runs of one batch's.

    Returns:
        Of each run its batch, and where in the batch it starts and stops.
    """
    if not len(order):
        return []
    ends = torch.tensor(n_rows).cumsum(0)
    batch = torch.searchsorted(ends, order, right=True)
    begins = torch.ones(len(order), dtype=torch.bool)
    begins[1:] = (order.diff() != 1) | (batch.diff() != 0)
    first = begins.nonzero().flatten()
    lengths = torch.cat([first, torch.tensor([len(order)])]).diff()
    of_batch = batch[first]
    starts = order[first] - (ends - torch.tensor(n_rows))[of_batch]
    return [
        (number, start, start + length)
        for number, start, length in zip(
            of_batch.tolist(), starts.tolist(), lengths.tolist(), strict=True
        )
    ]


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
    of_batches = [_samples_of(b)[kept] for b, kept in zip(filled, with_rows, strict=True)]
    sample = torch.cat(of_batches or [_no_rows(SAMPLE)])
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


def _no_rows(name: str) -> torch.Tensor:
    return torch.empty(0, dtype=torch.float32 if name in FLOATS else torch.int32)


def _records(
    queries: Sequence[Query], batches: Sequence[CapturedBatch], sample: torch.Tensor
) -> list[SampleRecord]:
    digests: dict[int, str] = {}
    skipped: dict[int, str] = {}
    responses: dict[int, str] = {}
    asked: dict[int, Asked] = {}
    for batch in batches:
        digests |= batch.prepared.digests
        skipped |= batch.prepared.skipped
        responses |= batch.responses
        asked |= batch.asked
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
            source=query.source,
            history=query.history or None,
            answer=query.answer,
            **(vars(asked[query.sample]) if query.sample in asked else {}),
        )
        for query in queries
    ]


class FiniteVectors:
    """Looks whether a chunk's vectors are finite, on their way to its file.

    Args:
        layers: whose vectors the chunk has.
        dtype: of the vectors.
        sample: of each row, int32 [rows].
        known: of each vector, whether each row is finite, bool [rows], where that is known; then
            nothing is looked at.
    """

    def __init__(
        self,
        layers: Sequence[int],
        dtype: torch.dtype,
        sample: torch.Tensor,
        known: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        names = vector_names(layers)
        # In the order in which the model computes them: what follows the first is its consequence.
        pairs = zip(names[: len(layers)], names[len(layers) :], strict=True)
        self._in_order = [name for pair in pairs for name in pair]
        self._vectors = set(names)
        self._dtype = dtype
        self._sample = sample
        self._first_bad: dict[str, int] = {}
        self._lock = Lock()
        self._is_known = known is not None
        for name, finite in (known or {}).items():
            self._note(name, finite, 0)

    def look(self, name: str, start: int, rows: torch.Tensor) -> None:
        """Note the first row of a vector that is not finite; its rows come in order."""
        if not self._is_known and name in self._vectors and name not in self._first_bad:
            self._note(name, finite_rows(rows), start)

    def conclude(self) -> None:
        """Say which vector is not finite.

        Raises:
            ActivationsError: naming the first vector that is not, and its sample.
        """
        for name in self._in_order:
            if name in self._first_bad:
                sample = int(self._sample[self._first_bad[name]])
                raise ActivationsError(
                    f"{name} of sample {sample} has a value that {self._dtype} cannot hold: "
                    "capture with --dtype bfloat16 or float32 (and the same --store-dtype)"
                )

    def _note(self, name: str, finite: torch.Tensor, start: int) -> None:
        if not finite.all():
            with self._lock:
                self._first_bad[name] = start + int(finite.logical_not().nonzero()[0])


def check_finite(tensors: Mapping[str, torch.Tensor], layers: Sequence[int]) -> None:
    """Check vectors that are whole.

    Args:
        layers: whose vectors the chunk has.

    Raises:
        ActivationsError: as `FiniteVectors.conclude`.
    """
    check = FiniteVectors(layers, tensors[vector_names(layers)[0]].dtype, tensors[SAMPLE])
    for name, tensor in tensors.items():
        check.look(name, 0, tensor)
    check.conclude()
