"""Batches prepared ahead of the model, by other processes: pictures decoded, prompts tokenised."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from capture.passes.generation import append_responses
from capture.passes.inputs import answer_ids, make_inputs, system_spans
from capture.passes.prefix import PrefixedInputs, make_prefixed_inputs, prefix_ids
from capture.passes.prompts import Prompts, too_long
from capture.patches.layouts import PatchPlaces, patch_places
from capture.samples.pictures import Picture, PictureSource, read_picture
from capture.samples.queries import Query
from llava_amber_activations.console.interruption import interrupts_left_to_this_process
from llava_amber_activations.errors import ActivationsError

# What a processor raises of a picture that it is not made for, such as one of an extreme shape.
_PROCESSOR_ERRORS = (
    *(ValueError, TypeError, RuntimeError, IndexError, ArithmeticError, OSError, MemoryError),
)


@dataclass(frozen=True)
class PlannedBatch:
    """Samples of one chunk that share a forward pass.

    Attributes:
        shared: whether neighbouring queries on one picture share its prefix.
        unusable: why each of its samples cannot be asked; empty where they can.
    """

    chunk: int
    queries: tuple[Query, ...]
    shared: bool = False
    unusable: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class PreparedBatch:
    """A planned batch whose pictures have been read.

    Attributes:
        queries: those whose pictures could be read.
        inputs: of the model, answers to read included, padded on the right; None where no picture
            could be read, and where prefixes are shared.
        prompt_lengths: tokens of each prompt in `inputs`; None where no answer follows one.
        system: positions of each prompt's system's turn, as `select_rows` takes them.
        prefixed: the inputs where prefixes are shared.
        generation_inputs: the same, padded on the left, where responses are wanted.
        patches: where those of the pictures of `inputs` lie.
        digests: SHA-256 of each sample's picture.
        skipped: why each other sample has none.
    """

    plan: PlannedBatch
    queries: tuple[Query, ...] = ()
    inputs: dict[str, torch.Tensor] | None = None
    prompt_lengths: Sequence[int] | None = None
    system: Sequence[range] = ()
    prefixed: tuple[PrefixedInputs, ...] = ()
    generation_inputs: dict[str, torch.Tensor] | None = None
    patches: PatchPlaces | None = None
    digests: dict[int, str] = field(default_factory=dict)
    skipped: dict[int, str] = field(default_factory=dict)


def plan_batches(
    chunk: int,
    queries: Sequence[Query],
    prompts: Prompts,
    batch_size: int,
    share_prefixes_of: int | None = None,
) -> list[PlannedBatch]:
    """Cut a chunk's samples into batches of similar length, so that little is padded.

    The samples that cannot be asked are a batch of their own, of which there is nothing to run.

    Args:
        share_prefixes_of: the image token; then queries that share a picture share batches, and
            its prefix. None where prefixes are not reused.
    """
    ids = prompts.ids
    refused = tuple(query for query in queries if query.sample in prompts.unusable)
    queries = [query for query in queries if query.sample not in prompts.unusable]
    pictures: dict[Any, list[Query]] = {}
    if share_prefixes_of is not None:
        for query in queries:
            start = prefix_ids(ids[query.sample], share_prefixes_of)
            if start is not None:
                pictures.setdefault((query.picture, start), []).append(query)
    groups = [group for group in pictures.values() if len(group) > 1]
    shared = {query.sample for group in groups for query in group}
    alone = [query for query in queries if query.sample not in shared]
    alone.sort(key=lambda query: (_kind(query), prompts.n_read(query)))
    alike = [list(same) for _, same in groupby(alone, key=_kind)]
    return [
        *(PlannedBatch(chunk, batch, shared=True) for batch in _packed(groups, batch_size)),
        *(
            PlannedBatch(chunk, tuple(same[start : start + batch_size]))
            for same in alike
            for start in range(0, len(same), batch_size)
        ),
        *([_unusable(chunk, refused, prompts)] if refused else []),
    ]


def _kind(query: Query) -> tuple[bool, bool]:
    """Return what the samples of one batch have in common: processors take no mixture of them."""
    return query.image is None, query.is_raw


def _unusable(chunk: int, queries: tuple[Query, ...], prompts: Prompts) -> PlannedBatch:
    reasons = {query.sample: prompts.unusable[query.sample] for query in queries}
    return PlannedBatch(chunk, queries, unusable=reasons)


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
        most_tokens: int | None,
    ) -> None:
        self._plans = plans
        self._processor = processor
        self._source = source
        self._for_generation = for_generation
        self._image_token_id = image_token_id
        self._most_tokens = most_tokens

    def __len__(self) -> int:
        return len(self._plans)

    def __getitem__(self, number: int) -> PreparedBatch:
        plan = self._plans[number]
        if plan.unusable:
            return PreparedBatch(plan, skipped=dict(plan.unusable))
        pictures: dict[Query, Picture | None] = {}
        skipped: dict[int, str] = {}
        for query in plan.queries:
            try:
                has_picture = query.image is not None
                pictures[query] = read_picture(self._source, query) if has_picture else None
            except ActivationsError as error:
                skipped[query.sample] = str(error)
        try:
            return self._prepared(plan, pictures, skipped)
        except _PROCESSOR_ERRORS:
            problems = {query: self._problem(query, pictures[query]) for query in pictures}
            if not any(problems.values()):
                raise
        for query, problem in problems.items():
            if problem is not None:
                del pictures[query]
                skipped[query.sample] = problem
        return self._prepared(plan, pictures, skipped)

    def _prepared(
        self,
        plan: PlannedBatch,
        pictures: Mapping[Query, Picture | None],
        skipped: dict[int, str],
    ) -> PreparedBatch:
        """Make the inputs of a batch.

        Raises:
            _PROCESSOR_ERRORS: the processor cannot take a picture, or a prompt is too long.
        """
        if not pictures:
            return PreparedBatch(plan, skipped=skipped)
        read = {query: picture for query, picture in pictures.items() if picture is not None}
        digests = {query.sample: picture.sha256 for query, picture in read.items()}
        if plan.shared:
            groups = [
                (same, read[same[0]])
                for _, group in groupby(read, key=lambda query: query.picture)
                for same in [list(group)]
            ]
            prefixed = tuple(make_prefixed_inputs(self._processor, groups, self._image_token_id))
            self._check_length(part.mask for part in prefixed)
            queries = tuple(query for part in prefixed for query in part.queries)
            return PreparedBatch(plan, queries, prefixed=prefixed, digests=digests, skipped=skipped)
        queries = tuple(pictures)
        images = list(read.values())
        inputs = make_inputs(self._processor, queries, images)
        sizes = [(picture.image.height, picture.image.width) for picture in images]
        patches = patch_places(self._processor, inputs, sizes, self._image_token_id)
        lengths = inputs["attention_mask"].sum(dim=1).tolist()
        system = system_spans(self._processor, queries, lengths, self._image_token_id)
        given = [query.answer for query in queries if query.answer is not None]
        if given:
            of_text = answer_ids(self._processor, given)
            answers = [[] if query.answer is None else of_text[query.answer] for query in queries]
            pad = self._processor.tokenizer.pad_token_id
            inputs, lengths = append_responses(inputs, answers, pad)
        self._check_length([inputs["attention_mask"]])
        left = None
        if self._for_generation:
            left = make_inputs(self._processor, queries, images, padding_side="left")
        return PreparedBatch(
            plan=plan,
            queries=queries,
            inputs=inputs,
            prompt_lengths=lengths if given else None,
            system=system,
            generation_inputs=left,
            patches=patches,
            digests=digests,
            skipped=skipped,
        )

    def _check_length(self, masks: Iterable[torch.Tensor]) -> None:
        for mask in masks:
            if self._most_tokens is not None and mask.sum(dim=1).max() > self._most_tokens:
                raise ValueError("a prompt is too long")

    def _problem(self, query: Query, picture: Picture | None) -> str | None:
        """Say why a sample cannot be prepared, by preparing it alone; None where it can."""
        images = [] if picture is None else [picture]
        try:
            inputs = make_inputs(self._processor, [query], images)
        except _PROCESSOR_ERRORS as error:
            reason = " ".join(str(error).split())[:200]
            what = (
                f"the text of sample {query.sample}, which has no picture,"
                if picture is None
                else f"the image {self._source.name(query)} of sample {query.sample}"
            )
            return (
                f"{what} is none that the model's processor takes ({type(error).__name__}: "
                f"{reason}): give another one, or leave the sample out with --on-error skip"
            )
        n_tokens = int(inputs["attention_mask"].sum())
        if query.answer is not None:
            n_tokens += len(answer_ids(self._processor, [query.answer])[query.answer])
        if self._most_tokens is not None and n_tokens > self._most_tokens:
            return too_long(query, n_tokens, self._most_tokens)
        return None


def prepared_batches(
    plans: Sequence[PlannedBatch],
    processor: Any,
    source: PictureSource,
    *,
    for_generation: bool,
    num_workers: int,
    image_token_id: int,
    most_tokens: int | None = None,
) -> Iterator[PreparedBatch]:
    """Yield the batches in order, each prepared while those before it are in the model.

    Args:
        most_tokens: of a prompt with its picture; a sample that has more is skipped.
    """
    loader = DataLoader(
        _Preparation(plans, processor, source, for_generation, image_token_id, most_tokens),
        batch_size=None,
        num_workers=num_workers,
        # Not forked: the model's threads, and a GPU's context, do not survive a fork.
        multiprocessing_context="spawn" if num_workers else None,
        worker_init_fn=_leave_interrupts,
    )
    with interrupts_left_to_this_process():
        prepared = iter(loader)
    yield from prepared


def _leave_interrupts(worker: int) -> None:
    """Leave Ctrl-C, which a terminal sends to every process, to the one that started this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
