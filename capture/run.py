"""The capture run: which chunks are missing, whose they are, and making each one."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from capture.beforehand import check_capture, check_place
from capture.model.decoder import compile_layers
from capture.model.load import CaptureModel, default_dtype, load_model
from capture.model.transcoders import load_encoders
from capture.passes.prefix import prefix_problem
from capture.passes.prompts import Prompts, least_rows, make_prompts, most_prompt_tokens
from capture.pipeline import make_chunks
from capture.samples.benchmark import Benchmark
from capture.samples.queries import Query
from capture.settings import CaptureSettings
from capture.sink.provenance import local_weights_sha256, make_recipe
from capture.sink.settled import adopt_recipe
from capture.sink.store_lock import captured_into
from llava_amber_activations.console.progress import Progress
from llava_amber_activations.console.sizes import readable_size
from llava_amber_activations.console.verbosity import note
from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.files.room import check_room, free_bytes
from llava_amber_activations.formats.dataset_folder import NORMS_FILE
from llava_amber_activations.formats.dtypes import torch_dtype
from llava_amber_activations.formats.layers import check_kept, check_n_targets
from llava_amber_activations.store.chunk import Chunk
from llava_amber_activations.store.finish import finish_store
from llava_amber_activations.store.layout import (
    chunk_path,
    chunk_ranges,
    missing_chunks,
    recipe_chunks,
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
    settings: CaptureSettings,
    *,
    device: torch.device,
    rank: int = 0,
    world_size: int = 1,
    benchmark: Benchmark | None = None,
) -> CaptureResult:
    """Capture every missing chunk that is this rank's; whoever finds the last one finishes.

    A chunk's owner is its number modulo `world_size`, and its contents do not depend on who made
    it. No process waits for another: one that dies leaves its chunks to the next run.

    Args:
        benchmark: what `check_capture` found; if None, it looks now.

    Raises:
        ActivationsError: any input is unusable, the store holds something else, or another launch
            captures into it.
    """
    if benchmark is None:
        benchmark = check_capture(settings)
    store = settings.output_dir
    check_place(store)
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
        with Progress(f"checksum of {settings.model}", shown=rank == 0):
            weights_sha256 = weights.result()
    n_layers = len(model.decoder.layers)
    check_n_targets(settings.n_targets, n_layers)
    check_kept(settings.layers, n_layers)
    with Progress("make the prompts", shown=rank == 0):
        most_tokens = most_prompt_tokens(model, settings.response_tokens)
        prompts = make_prompts(queries, model, most_tokens)
    if prompts.unusable and settings.on_error == "stop":
        raise ActivationsError(next(iter(prompts.unusable.values())))
    _check_room(settings, model, dtype, prompts, queries, say=rank == 0)
    if settings.compile:
        compile_layers(model.decoder)
    shares_prefixes = _shares_prefixes(settings, model, dtype, queries, say=rank == 0)
    recipe = make_recipe(
        *(settings, model, dtype, len(queries), benchmark.queries_sha256),
        dataset_revision=benchmark.dataset_revision,
        weights_sha256=weights_sha256,
        reuse_prefix=shares_prefixes,
    )
    encoders = {}
    if settings.transcoders is not None:
        encoders = load_encoders(
            settings.transcoders,
            recipe.n_layers,
            recipe.hidden_size,
            model.device,
            recipe.kept_layers,
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
    is_stream = settings.x_site == "resid_mid"
    norms = model.norms if is_stream else None
    records = finish_store(store, recipe, norms) if complete else None
    if complete and is_stream and not (store / NORMS_FILE).exists():
        note(
            f"{store} has no {NORMS_FILE}, so that mlp_in cannot be computed from it: the norm "
            f"before the MLPs of {settings.model} is of no kind that is known, or some chunks were "
            "captured before such norms were looked for"
        )
    return CaptureResult(len(todo), len(chunks), records)


def _check_room(
    settings: CaptureSettings,
    model: CaptureModel,
    dtype: str,
    prompts: Prompts,
    queries: Sequence[Query],
    *,
    say: bool,
) -> None:
    """Say how much the missing chunks take, and check that the disk has room for them.

    Raises:
        ActivationsError: it has not, and `force` is not set.
    """
    store = settings.output_dir
    chunks = enumerate(chunk_ranges(len(queries), settings.samples_per_chunk))
    missing = [chunk for number, chunk in chunks if not chunk_path(store, number).exists()]
    n_samples = sum(map(len, missing))
    n_rows = least_rows(prompts, (queries[n] for chunk in missing for n in chunk), settings)
    kept = torch_dtype(settings.store_dtype or dtype)
    n_kept = len(model.decoder.layers) if settings.layers is None else len(settings.layers)
    row = 2 * n_kept * model.decoder.hidden_size * kept.itemsize
    what = f"a capture of {n_samples} samples"
    check_room(store, n_rows * row, what, force=settings.force)
    if say and missing:
        more = "" if settings.positions == "last" else " or more"
        note(
            f"{what}: {n_rows} rows{more}, {readable_size(n_rows * row)}{more}; the disk of "
            f"{store} has {readable_size(free_bytes(store))} free"
        )


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
