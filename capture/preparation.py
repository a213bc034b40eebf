"""Batches prepared ahead of the model, by other processes: pictures decoded, prompts tokenised."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from capture.inputs import make_inputs, render_prompt
from capture.pictures import Picture, PictureSource, read_picture
from capture.queries import Query
from llava_amber_activations.errors import ActivationsError


@dataclass(frozen=True)
class PlannedBatch:
    """Samples of one chunk that share a forward pass."""

    chunk: int
    queries: tuple[Query, ...]


@dataclass(frozen=True)
class PreparedBatch:
    """A planned batch whose pictures have been read.

    Attributes:
        queries: those whose pictures could be read.
        inputs: of the model, padded on the right; None where no picture could be read.
        generation_inputs: the same, padded on the left, where responses are wanted.
        digests: SHA-256 of each sample's picture.
        skipped: why each other sample has none.
    """

    plan: PlannedBatch
    queries: tuple[Query, ...] = ()
    inputs: dict[str, torch.Tensor] | None = None
    generation_inputs: dict[str, torch.Tensor] | None = None
    digests: dict[int, str] = field(default_factory=dict)
    skipped: dict[int, str] = field(default_factory=dict)


def plan_batches(
    chunk: int, queries: Sequence[Query], processor: Any, batch_size: int
) -> list[PlannedBatch]:
    """Cut a chunk's samples into batches of similar length, so that little is padded."""
    lengths = {query.query: 0 for query in queries}
    for text in lengths:
        prompt = render_prompt(processor, text)
        lengths[text] = len(processor.tokenizer(prompt)["input_ids"])
    ordered = sorted(queries, key=lambda query: lengths[query.query])
    return [
        PlannedBatch(chunk, tuple(ordered[start : start + batch_size]))
        for start in range(0, len(ordered), batch_size)
    ]


class _Preparation(Dataset[PreparedBatch]):
    """Prepares batch after batch; sent to the worker processes."""

    def __init__(
        self,
        plans: Sequence[PlannedBatch],
        processor: Any,
        source: PictureSource,
        for_generation: bool,
    ) -> None:
        self._plans = plans
        self._processor = processor
        self._source = source
        self._for_generation = for_generation

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
            digests={query.sample: picture.sha256 for query, picture in pictures.items()},
            skipped=skipped,
        )


def prepared_batches(
    plans: Sequence[PlannedBatch],
    processor: Any,
    source: PictureSource,
    *,
    for_generation: bool,
    num_workers: int,
) -> Iterator[PreparedBatch]:
    """Yield the batches in order, each prepared while those before it are in the model."""
    loader = DataLoader(
        _Preparation(plans, processor, source, for_generation),
        batch_size=None,
        num_workers=num_workers,
        # Not forked: the model's threads, and a GPU's context, do not survive a fork.
        multiprocessing_context="spawn" if num_workers else None,
    )
    yield from loader
