"""Batches prepared ahead of the model, by other processes: pictures decoded, prompts tokenised."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from capture.inputs import make_inputs, token_ids
from capture.pictures import Picture, PictureSource, read_picture
from capture.prefix import PrefixedInputs, make_prefixed_inputs, prefix_ids
from capture.queries import Query
from llava_amber_activations.errors import ActivationsError


@dataclass(frozen=True)
class PlannedBatch:
    """Samples of one chunk that share a forward pass.

    Attributes:
        shared: whether neighbouring queries on one picture share its prefix.
    """

    chunk: int
    queries: tuple[Query, ...]
    shared: bool = False


@dataclass(frozen=True)
class PreparedBatch:
    """A planned batch whose pictures have been read.

    Attributes:
        queries: those whose pictures could be read.
        inputs: of the model, padded on the right; None where no picture could be read, and where
            prefixes are shared.
        prefixed: the inputs where prefixes are shared.
        generation_inputs: the same, padded on the left, where responses are wanted.
        digests: SHA-256 of each sample's picture.
        skipped: why each other sample has none.
    """

    plan: PlannedBatch
    queries: tuple[Query, ...] = ()
    inputs: dict[str, torch.Tensor] | None = None
    prefixed: tuple[PrefixedInputs, ...] = ()
    generation_inputs: dict[str, torch.Tensor] | None = None
    digests: dict[int, str] = field(default_factory=dict)
    skipped: dict[int, str] = field(default_factory=dict)


def plan_batches(
    chunk: int,
    queries: Sequence[Query],
    processor: Any,
    batch_size: int,
    share_prefixes_of: int | None = None,
) -> list[PlannedBatch]:
    """Cut a chunk's samples into batches of similar length, so that little is padded.

    Args:
        share_prefixes_of: the image token; then queries that share a picture share batches, and
            its prefix. None where prefixes are not reused.
    """
    ids = {text: token_ids(processor, text) for text in {query.query for query in queries}}
    pictures: dict[Any, list[Query]] = {}
    if share_prefixes_of is not None:
        for query in queries:
            start = prefix_ids(ids[query.query], share_prefixes_of)
            if start is not None:
                pictures.setdefault((query.image, start), []).append(query)
    groups = [group for group in pictures.values() if len(group) > 1]
    shared = {query.sample for group in groups for query in group}
    alone = [query for query in queries if query.sample not in shared]
    alone.sort(key=lambda query: len(ids[query.query]))
    cut = range(0, len(alone), batch_size)
    return [
        *(PlannedBatch(chunk, batch, shared=True) for batch in _packed(groups, batch_size)),
        *(PlannedBatch(chunk, tuple(alone[start : start + batch_size])) for start in cut),
    ]


def _packed(groups: Sequence[Sequence[Query]], batch_size: int) -> Iterator[tuple[Query, ...]]:
    """Fill batches with groups, whole ones while they fit, and cut those that never do."""
    held: list[Query] = []
    for group in groups:
        if held and len(held) + len(group) > batch_size:
            yield tuple(held)
            held = []
        held += group
        while len(held) > batch_size:
            yield tuple(held[:batch_size])
            held = held[batch_size:]
    if held:
        yield tuple(held)


class _Preparation(Dataset[PreparedBatch]):
    """Prepares batch after batch; sent to the worker processes."""

    def __init__(
        self,
        plans: Sequence[PlannedBatch],
        processor: Any,
        source: PictureSource,
        for_generation: bool,
        image_token_id: int,
    ) -> None:
        self._plans = plans
        self._processor = processor
        self._source = source
        self._for_generation = for_generation
        self._image_token_id = image_token_id

    def __len__(self) -> int:
        return len(self._plans)

    def __getitem__(self, number: int) -> PreparedBatch:
        plan = self._plans[number]
        pictures: dict[Query, Picture] = {}
        skipped: dict[int, str] = {}
        for query in plan.queries:
            try:
                pictures[query] = read_picture(self._source, query)
            except ActivationsError as error:
                skipped[query.sample] = str(error)
        if not pictures:
            return PreparedBatch(plan, skipped=skipped)
        digests = {query.sample: picture.sha256 for query, picture in pictures.items()}
        if plan.shared:
            groups = [
                (same, pictures[same[0]])
                for _, group in groupby(pictures, key=lambda query: query.image)
                for same in [list(group)]
            ]
            prefixed = tuple(make_prefixed_inputs(self._processor, groups, self._image_token_id))
            queries = tuple(query for part in prefixed for query in part.queries)
            return PreparedBatch(plan, queries, prefixed=prefixed, digests=digests, skipped=skipped)
        queries = tuple(pictures)
        images = list(pictures.values())
        left = None
        if self._for_generation:
            left = make_inputs(self._processor, queries, images, padding_side="left")
        return PreparedBatch(
            plan=plan,
            queries=queries,
            inputs=make_inputs(self._processor, queries, images),
            generation_inputs=left,
            digests=digests,
            skipped=skipped,
        )


def prepared_batches(
    plans: Sequence[PlannedBatch],
    processor: Any,
    source: PictureSource,
    *,
    for_generation: bool,
    num_workers: int,
    image_token_id: int,
) -> Iterator[PreparedBatch]:
    """Yield the batches in order, each prepared while those before it are in the model."""
    loader = DataLoader(
        _Preparation(plans, processor, source, for_generation, image_token_id),
        batch_size=None,
        num_workers=num_workers,
        # Not forked: the model's threads, and a GPU's context, do not survive a fork.
        multiprocessing_context="spawn" if num_workers else None,
    )
    yield from loader
