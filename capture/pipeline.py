"""The pipeline of a run: pictures read ahead, the model in the middle, chunks written behind."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

import torch

from capture.model.load import CaptureModel
from capture.model.norms import NormWitness
from capture.model.taps import Taps
from capture.model.transcoders import Encoder
from capture.passes.generation import OnAnswers
from capture.passes.preparation import plan_batches, prepared_batches
from capture.passes.prompts import Prompts, most_prompt_tokens
from capture.samples.pictures import PictureSource
from capture.samples.queries import Query
from capture.settings import MOST_WORKERS, CaptureSettings
from capture.sink.chunk import CapturedBatch, run_batch
from capture.sink.chunk_sink import CapturedChunk, chunk_sink
from llava_amber_activations.errors import ActivationsError

# What `--batch-size auto` begins with; on a CPU more samples at once are no faster.
_FIRST_BATCH_SIZE = {"cpu": 8}
_FIRST_BATCH_SIZE_ON_GPU = 64


def make_chunks(
    store: Path,
    todo: Mapping[int, Sequence[Query]],
    source: PictureSource,
    prompts: Prompts,
    model: CaptureModel,
    settings: CaptureSettings,
    encoders: Mapping[int, Encoder],
    dtype: torch.dtype,
    on_samples: Callable[[int], object],
    *,
    share_prefixes: bool = False,
    on_answers: OnAnswers | None = None,
) -> None:
    """Capture and write chunks, in order.

    With `batch_size` None, a batch that does not fit the device's memory halves the size, and its
    chunk is begun again; what is written stays.

    Args:
        todo: the queries of each chunk to make.
        source: of their pictures.
        prompts: of their queries.
        encoders: of each layer whose features are wanted.
        dtype: of the store's vectors.
        on_samples: called with the number of samples done, or less than none for a chunk that is
            begun again.
        share_prefixes: whether queries on one picture share its prefix.
        on_answers: is told how far the answers of a batch are, while they are generated.

    Raises:
        ActivationsError: a picture is unreadable, a value does not fit, or not even one sample
            fits the memory.
    """
    remaining = dict(todo)
    first = _FIRST_BATCH_SIZE.get(model.device.type, _FIRST_BATCH_SIZE_ON_GPU)
    # Of a whole chunk, also where only the last and shorter one is to make: a run that goes on
    # begins with the size that the first one began with.
    size = settings.batch_size or min(first, settings.samples_per_chunk)
    share = model.image_token_id if share_prefixes else None
    norms = model.norms if settings.x_site == "resid_mid" else None
    with (
        Taps(model.decoder, settings.x_site, dtype, settings.layers) as taps,
        chunk_sink(store, model, dtype, settings.layers) as sink,
    ):
        while remaining:
            counted = 0
            try:
                for number, batches in _run_chunks(
                    *(remaining, source, prompts, model, taps, settings, encoders, size, share),
                    on_answers,
                ):
                    held: list[CapturedBatch] = []
                    with NormWitness(model.decoder, norms) as witness:
                        for batch in batches:
                            held.append(batch)
                            n_samples = len(batch.prepared.plan.queries)
                            counted += n_samples
                            on_samples(n_samples)
                    counted = 0
                    queries, agrees = remaining.pop(number), witness.agrees
                    sink.put(CapturedChunk(number, queries, held, size, agrees))
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


def _run_chunks(
    todo: Mapping[int, Sequence[Query]],
    source: PictureSource,
    prompts: Prompts,
    model: CaptureModel,
    taps: Taps,
    settings: CaptureSettings,
    encoders: Mapping[int, Encoder],
    batch_size: int,
    share_prefixes_of: int | None,
    on_answers: OnAnswers | None,
) -> Iterator[tuple[int, Iterator[CapturedBatch]]]:
    """Yield each chunk's number with its batches, which run as they are taken."""
    plans = [
        plan
        for number, queries in todo.items()
        for plan in plan_batches(number, queries, prompts, batch_size, share_prefixes_of)
    ]
    prepared = prepared_batches(
        plans,
        model.processor,
        source,
        for_generation=settings.response_tokens is not None,
        num_workers=_num_workers(settings, model.device),
        image_token_id=model.image_token_id,
        most_tokens=most_prompt_tokens(model, settings.response_tokens),
    )
    for number, batches in groupby(prepared, key=lambda batch: batch.plan.chunk):
        yield (
            number,
            (run_batch(batch, model, taps, settings, encoders, on_answers) for batch in batches),
        )


def _num_workers(settings: CaptureSettings, device: torch.device) -> int:
    if settings.num_workers is not None:
        return settings.num_workers
    # On a CPU the model wants every core itself.
    return 0 if device.type == "cpu" else min(MOST_WORKERS, (os.cpu_count() or 1) - 1)
