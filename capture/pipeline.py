"""The pipeline of a run: pictures read ahead, the model in the middle, chunks written behind."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Generic, TypeVar

import torch

from capture.model.load import CaptureModel
from capture.model.norms import NormWitness
from capture.model.taps import Taps
from capture.model.transcoders import Encoder
from capture.passes.generation import OnAnswers
from capture.passes.preparation import (
    PlannedBatch,
    PreparedBatch,
    plan_batches,
    prepared_batches,
)
from capture.passes.prompts import Prompts, most_prompt_tokens
from capture.samples.pictures import PictureSource
from capture.samples.queries import Query
from capture.settings import MOST_WORKERS, CaptureSettings
from capture.sink.chunk import GatheredBatch, run_batch, to_host
from capture.sink.chunk_sink import CapturedChunk, chunk_sink
from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.vectors.norms import Norms

# What `--batch-size auto` begins with; on a CPU more samples at once are no faster.
_FIRST_BATCH_SIZE = {"cpu": 8}
_FIRST_BATCH_SIZE_ON_GPU = 64

_Kept = TypeVar("_Kept")


@dataclass(frozen=True)
class PassSetup:
    """A model and what its passes need.

    Attributes:
        prompts: of the queries.
        source: of their pictures.
        settings: what was asked for.
        encoders: of each layer whose features are wanted.
        share_prefixes: whether queries on one picture share its prefix.
        on_answers: is told how far the answers of a batch are, while they are generated.
        extra_columns: as the recipe has them.
    """

    model: CaptureModel
    prompts: Prompts
    source: PictureSource
    settings: CaptureSettings
    encoders: Mapping[int, Encoder] = field(default_factory=dict)
    share_prefixes: bool = False
    on_answers: OnAnswers | None = None
    extra_columns: Sequence[str] = ()


@dataclass(frozen=True)
class RunChunk(Generic[_Kept]):
    """A chunk whose batches have all been run.

    Attributes:
        number: of the chunk.
        queries: of its samples, in the order of the query file.
        batches: what was kept of each, in any order.
        batch_size: most samples of a forward pass.
        norms_agree: whether what the norms gave was what the MLPs received, where it was looked at.
    """

    number: int
    queries: Sequence[Query]
    batches: list[_Kept]
    batch_size: int
    norms_agree: bool | None


def make_chunks(
    store: Path,
    todo: Mapping[int, Sequence[Query]],
    setup: PassSetup,
    dtype: torch.dtype,
    on_samples: Callable[[int], object],
) -> None:
    """Capture and write chunks, in order; what is written stays.

    Args:
        todo: the queries of each chunk to make.
        dtype: of the store's vectors.
        on_samples: as `run_chunks` takes it.

    Raises:
        ActivationsError: as `run_chunks`, or a value does not fit `dtype`.
    """
    model, settings = setup.model, setup.settings
    norms = model.norms if settings.x_site == "resid_mid" else None
    with (
        Taps(model.decoder, settings.x_site, dtype, settings.layers) as taps,
        chunk_sink(store, model, dtype, settings.layers, setup.extra_columns) as sink,
    ):
        for chunk in run_chunks(
            todo, setup, taps, lambda batch: to_host(batch, model), on_samples, norms=norms
        ):
            sink.put(CapturedChunk(**vars(chunk)))


def run_chunks(
    todo: Mapping[int, Sequence[Query]],
    setup: PassSetup,
    taps: Taps,
    keep: Callable[[GatheredBatch], _Kept],
    on_samples: Callable[[int], object] = lambda n_samples: None,
    *,
    norms: Norms | None = None,
    wanted: Callable[[PlannedBatch], bool] = lambda plan: True,
) -> Iterator[RunChunk[_Kept]]:
    """Run chunks, in order, each when it is asked for; those after it are prepared meanwhile.

    With `batch_size` None, a batch that does not fit the device's memory halves the size, and its
    chunk is begun again.

    Args:
        todo: the queries of each chunk, by its number.
        taps: of the model, at work.
        keep: makes of each batch, as soon as it has run, what is kept of it.
        on_samples: called with the number of samples done, or less than none for a chunk that is
            begun again.
        norms: of the model, to be looked at in each chunk; None where nobody asks.
        wanted: whether a batch is to be run at all; one of a chunk's is.

    Raises:
        ActivationsError: a picture is unreadable, or not even one sample fits the memory.
    """
    model, settings = setup.model, setup.settings
    remaining = dict(todo)
    first = _FIRST_BATCH_SIZE.get(model.device.type, _FIRST_BATCH_SIZE_ON_GPU)
    # Of a whole chunk, also where only the last and shorter one is to make: a run that goes on
    # begins with the size that the first one began with.
    size = settings.batch_size or min(first, settings.samples_per_chunk)
    while remaining:
        counted = 0
        try:
            for number, prepared in groupby(
                prepared_batches(
                    list(filter(wanted, _plans(remaining, setup, size))),
                    model.processor,
                    setup.source,
                    for_generation=settings.response_tokens is not None,
                    num_workers=_num_workers(settings, model.device),
                    image_token_id=model.image_token_id,
                    most_tokens=most_prompt_tokens(model, settings.response_tokens),
                ),
                key=lambda batch: batch.plan.chunk,
            ):
                held: list[_Kept] = []
                with NormWitness(model.decoder, norms) as witness:
                    for batch in prepared:
                        # No name holds what the device gathered while the next batch runs.
                        held.append(keep(_run(batch, setup, taps)))
                        n_samples = len(batch.plan.queries)
                        counted += n_samples
                        on_samples(n_samples)
                counted = 0
                yield RunChunk(number, remaining.pop(number), held, size, witness.agrees)
            return
        except torch.OutOfMemoryError as error:
            if settings.batch_size is not None or size == 1:
                raise ActivationsError(
                    f"{size} samples at once do not fit the memory of {model.device}: "
                    + ("give a smaller --batch-size, or auto" if size > 1 else "none does")
                ) from error
            size //= 2
            on_samples(-counted)
            # The batch that did not fit is still held by the error's frames until here.
            error.__traceback__ = None
            if model.device.type == "cuda":
                torch.cuda.empty_cache()


def _run(batch: PreparedBatch, setup: PassSetup, taps: Taps) -> GatheredBatch:
    return run_batch(batch, setup.model, taps, setup.settings, setup.encoders, setup.on_answers)


def _plans(
    todo: Mapping[int, Sequence[Query]], setup: PassSetup, batch_size: int
) -> list[PlannedBatch]:
    share = setup.model.image_token_id if setup.share_prefixes else None
    return [
        plan
        for number, queries in todo.items()
        for plan in plan_batches(number, queries, setup.prompts, batch_size, share)
    ]


def _num_workers(settings: CaptureSettings, device: torch.device) -> int:
    if settings.num_workers is not None:
        return settings.num_workers
    # On a CPU the model wants every core itself.
    return 0 if device.type == "cpu" else min(MOST_WORKERS, (os.cpu_count() or 1) - 1)
