"""The capture run: which chunks are missing, whose they are, and making each one."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from capture.beforehand import check_capture, check_place
from capture.model.transcoders import load_encoders
from capture.opening import OpenCapture, load, open_capture
from capture.passes.prompts import least_rows
from capture.pipeline import make_chunks
from capture.samples.benchmark import Benchmark
from capture.settings import CaptureSettings
from capture.sink.settled import adopt_recipe
from capture.sink.store_lock import captured_into
from llava_amber_activations.console.progress import Progress
from llava_amber_activations.console.sizes import readable_size
from llava_amber_activations.console.verbosity import note
from llava_amber_activations.files.room import check_room, free_bytes
from llava_amber_activations.formats.dataset_folder import NORMS_FILE
from llava_amber_activations.formats.dtypes import torch_dtype
from llava_amber_activations.store.chunk import Chunk
from llava_amber_activations.store.finish import finish_store
from llava_amber_activations.store.layout import chunk_path, missing_chunks, recipe_chunks
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
    loaded = load(settings, device, shown=rank == 0)
    opened = open_capture(settings, benchmark, loaded, shown=rank == 0)
    model, recipe = opened.model, opened.recipe
    _check_room(opened, say=rank == 0)
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

        setup = replace(opened.setup, encoders=encoders, on_answers=say_answers)
        make_chunks(store, todo, setup, torch_dtype(recipe.store_dtype), progress.update)
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


def _check_room(opened: OpenCapture, *, say: bool) -> None:
    """Say how much the missing chunks take, and check that the disk has room for them.

    Raises:
        ActivationsError: it has not, and `force` is not set.
    """
    settings, recipe, queries = opened.settings, opened.recipe, opened.benchmark.queries
    store = settings.output_dir
    chunks = enumerate(recipe_chunks(recipe))
    missing = [chunk for number, chunk in chunks if not chunk_path(store, number).exists()]
    n_samples = sum(map(len, missing))
    n_rows = least_rows(opened.prompts, (queries[n] for chunk in missing for n in chunk), settings)
    itemsize = torch_dtype(recipe.store_dtype).itemsize
    row = 2 * len(recipe.kept_layers) * recipe.hidden_size * itemsize
    what = f"a capture of {n_samples} samples"
    check_room(store, n_rows * row, what, force=settings.force)
    if say and missing:
        more = "" if settings.positions == "last" else " or more"
        note(
            f"{what}: {n_rows} rows{more}, {readable_size(n_rows * row)}{more}; the disk of "
            f"{store} has {readable_size(free_bytes(store))} free"
        )
