"""The capture run: which chunks are missing, whose they are, and making each one."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from capture.model.decoder import compile_layers
from capture.model.load import CaptureModel, default_dtype, load_model
from capture.model.transcoders import load_encoders
from capture.passes.prefix import prefix_problem
from capture.passes.prompts import make_prompts, most_prompt_tokens
from capture.pipeline import make_chunks
from capture.samples.benchmark import Benchmark, read_benchmark
from capture.samples.queries import Query
from capture.settings import CaptureSettings
from capture.sink.provenance import local_weights_sha256, make_recipe
from capture.sink.store_lock import captured_into
from llava_amber_activations.console.progress import Progress
from llava_amber_activations.console.verbosity import note
from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.files.leftovers import is_empty_or_missing
from llava_amber_activations.formats.dtypes import torch_dtype
from llava_amber_activations.formats.recipe import Recipe
from llava_amber_activations.store.chunk import Chunk
from llava_amber_activations.store.finish import finish_store
from llava_amber_activations.store.layout import (
    chunk_path,
    chunk_ranges,
    is_store,
    missing_chunks,
    read_recipe,
    recipe_chunks,
    write_recipe,
)
from llava_amber_activations.store.samples import SampleRecord


@dataclass(frozen=True)
class CaptureResult:
    """What a run found and did: chunks made now, and samples and rows of the whole store.

    `records` is None while other processes still have chunks to make.
    """

    chunks_made: int
    chunks_total: int
    records: list[SampleRecord] | None


def capture(
    settings: CaptureSettings, *, device: torch.device, rank: int = 0, world_size: int = 1
) -> CaptureResult:
    """Capture every missing chunk that is this rank's; whoever finds the last one finishes.

    A chunk's owner is its number modulo `world_size`, and its contents do not depend on who made
    it. No process waits for another: one that dies leaves its chunks to the next run.

    Raises:
        ActivationsError: any input is unusable, the store holds something else, or another launch
            captures into it.
    """
    benchmark = read_benchmark(settings)
    store = settings.output_dir
    # In this order: a rank of this launch may begin the store between the two.
    if not is_empty_or_missing(store) and not is_store(store):
        raise ActivationsError(
            f"{store} holds something that is not a capture store: give an empty or a new folder"
        )
    with captured_into(store, rank, world_size):
        return _capture(settings, benchmark, device, rank, world_size)


def _capture(
    settings: CaptureSettings,
    benchmark: Benchmark,
    device: torch.device,
    rank: int,
    world_size: int,
) -> CaptureResult:
    queries = benchmark.queries
    store = settings.output_dir
    dtype = settings.dtype or default_dtype(device)
    # Beside the loading, which reads the same files.
    with ThreadPoolExecutor(1, thread_name_prefix="weights") as pool:
        weights = pool.submit(local_weights_sha256, settings.model)
        model = load_model(
            settings.model,
            dtype=dtype,
            device=device,
            revision=settings.revision,
            device_map=settings.device_map,
            shown=rank == 0,
        )
    prompts = make_prompts(queries, model, most_prompt_tokens(model, settings.response_tokens))
    if prompts.unusable and settings.on_error == "stop":
        raise ActivationsError(next(iter(prompts.unusable.values())))
    if settings.compile:
        compile_layers(model.decoder)
    shares_prefixes = _shares_prefixes(settings, model, dtype, queries, say=rank == 0)
    recipe = make_recipe(
        *(settings, model, dtype, len(queries), benchmark.queries_sha256),
        dataset_revision=benchmark.dataset_revision,
        weights_sha256=weights.result(),
        reuse_prefix=shares_prefixes,
    )
    encoders = {}
    if settings.transcoders is not None:
        encoders = load_encoders(
            settings.transcoders, recipe.n_layers, recipe.hidden_size, model.device
        )
    adopt_recipe(store, recipe)

    chunks = recipe_chunks(recipe)
    for number in range(rank, len(chunks), world_size):
        if chunk_path(store, number).exists():
            Chunk(chunk_path(store, number))  # a damaged chunk is refused, not passed over
    todo = {
        number: [queries[sample] for sample in chunks[number]]
        for number in missing_chunks(store, recipe)
        if number % world_size == rank
    }
    n_samples = sum(map(len, todo.values()))
    with Progress("capture", total=n_samples, unit="sample", shown=rank == 0) as progress:

        def say_answers(n_tokens: int, n_ended: int, n_answers: int) -> None:
            progress.update(
                0,
                note=f"answers: {n_tokens} of at most {settings.response_tokens} tokens, "
                f"{n_ended} of {n_answers} ended",
            )

        kept = torch_dtype(recipe.store_dtype)
        make_chunks(
            *(
                store,
                todo,
                benchmark.pictures,
                prompts,
                model,
                settings,
                encoders,
                kept,
                progress.update,
            ),
            share_prefixes=shares_prefixes,
            on_answers=say_answers,
        )
    complete = not missing_chunks(store, recipe)
    records = finish_store(store, recipe) if complete else None
    return CaptureResult(len(todo), len(chunks), records)


def _shares_prefixes(
    settings: CaptureSettings,
    model: CaptureModel,
    dtype: str,
    queries: Sequence[Query],
    *,
    say: bool,
) -> bool:
    """Whether queries on one picture share its prefix: asked for, or of use, and shown to hold.

    Raises:
        ActivationsError: it was asked for, and does not hold.
    """
    asked = settings.reuse_prefix
    # Of all chunks, also those that are there: a run that goes on decides as the first one did.
    chunks = chunk_ranges(len(queries), settings.samples_per_chunk)
    of_use = any(len({queries[sample].image for sample in chunk}) < len(chunk) for chunk in chunks)
    if asked is False or (asked is None and not of_use):
        return False
    problem = "with generated positions the answers are what is computed"
    if settings.response_tokens is None:
        found = prefix_problem(model, dtype)
        if found is None:
            return True
        problem = found
    if asked:
        raise ActivationsError(
            f"--reuse-prefix does not hold for {settings.model}: {problem}. Leave it out"
        )
    if say and settings.response_tokens is None:
        note(f"The pictures' prefixes are not reused: {problem}")
    return False


def adopt_recipe(store: Path, recipe: Recipe) -> None:
    """Begin a store with `recipe`, or check that it was begun with the same one.

    Raises:
        ActivationsError: the store was made by another recipe, or in another format; names what
            differs.
    """
    if not is_store(store):
        write_recipe(store, recipe)
        return
    begun = read_recipe(store)
    if begun.format_version != recipe.format_version:
        raise ActivationsError(
            f"{store} was captured in format {begun.format_version}, and this release captures in "
            f"format {recipe.format_version}: one store cannot mix the two, in which pictures are "
            "read otherwise and not all that decides the values is recorded. It stays readable; "
            "capture into a new folder"
        )
    differences = begun.differences(recipe)
    if differences:
        raise ActivationsError(
            f"{store} was captured with another recipe: {', '.join(differences)}. "
            "Capture into a new folder, or with the options that this one was begun with"
        )
    # What else the file holds, no capture of this format wrote: it is to get no checksum.
    write_recipe(store, recipe)
