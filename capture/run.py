"""The capture run: which chunks are missing, whose they are, and making each one."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from tqdm import tqdm

from capture.decoder import compile_layers
from capture.hf_dataset import PREFIX as HF_PREFIX
from capture.hf_dataset import read_dataset
from capture.inputs import QUERY_PLACEHOLDER, render_prompt
from capture.model import CaptureModel, default_dtype, load_model, torch_dtype
from capture.pictures import FolderPictures, PictureSource, check_images
from capture.pipeline import make_chunks
from capture.prefix import prefix_problem
from capture.queries import Query, read_queries
from capture.settings import CaptureSettings
from capture.transcoders import checkpoints_sha256, load_encoders
from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.files import is_empty_or_missing, write_json
from llava_amber_activations.layers import LayerWindow
from llava_amber_activations.recipe import Recipe
from llava_amber_activations.store import (
    RESPONSES_FILE,
    Chunk,
    SampleRecord,
    chunk_path,
    is_store,
    missing_chunks,
    read_recipe,
    recipe_chunks,
    write_recipe,
    write_samples,
)

# One row of LLaVA-1.5-7B is 512 KiB, and a sample has about 600 of them when all are kept: these
# defaults hold a chunk to about 32 MiB and 2.4 GiB.
_CHUNK_SAMPLES = {"last": 64}
_CHUNK_SAMPLES_MANY_ROWS = 8

_VERSIONS_THAT_DECIDE_VALUES = ("torch", "transformers", "pillow")


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
        ActivationsError: any input is unusable, or the store holds something else.
    """
    queries, queries_sha256, source = read_input(settings)
    store = settings.output_dir
    if not is_store(store) and not is_empty_or_missing(store):
        raise ActivationsError(
            f"{store} holds something that is not a capture store: give an empty or a new folder"
        )
    dtype = settings.dtype or default_dtype(device)
    model = load_model(
        settings.model,
        dtype=dtype,
        device=device,
        revision=settings.revision,
        device_map=settings.device_map,
    )
    if settings.compile:
        compile_layers(model.decoder)
    recipe = make_recipe(settings, model, dtype, len(queries), queries_sha256)
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
    with tqdm(
        total=sum(map(len, todo.values())), unit=" samples", desc="capture", disable=rank != 0
    ) as progress:
        kept = torch_dtype(recipe.store_dtype)
        make_chunks(
            *(store, todo, source, model, settings, encoders, kept, progress.update),
            share_prefixes=_shares_prefixes(settings, model, dtype, todo, say=rank == 0),
        )
    complete = not missing_chunks(store, recipe)
    records = finish_store(store, recipe) if complete else None
    return CaptureResult(len(todo), len(chunks), records)


def _shares_prefixes(
    settings: CaptureSettings,
    model: CaptureModel,
    dtype: str,
    todo: Mapping[int, Sequence[Query]],
    *,
    say: bool,
) -> bool:
    """Whether queries on one picture share its prefix: asked for, or of use, and shown to hold.

    Raises:
        ActivationsError: it was asked for, and does not hold.
    """
    asked = settings.reuse_prefix
    of_use = any(len({query.image for query in chunk}) < len(chunk) for chunk in todo.values())
    if asked is False or (asked is None and not of_use) or not todo:
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
        tqdm.write(f"The pictures' prefixes are not reused: {problem}", file=sys.stderr)
    return False


def read_input(settings: CaptureSettings) -> tuple[list[Query], str, PictureSource]:
    """Read the queries, and check the pictures as far as that is quickly done.

    Returns:
        The queries, their checksum, and where their pictures are.

    Raises:
        ActivationsError: either is unusable.
    """
    name = str(settings.dataset)
    if name.startswith(HF_PREFIX):
        return read_dataset(
            name.removeprefix(HF_PREFIX),
            settings.split,
            settings.image_column,
            settings.query_column,
            settings.max_samples,
        )
    if settings.image_dir is None:
        raise ActivationsError(
            f"the query file {name} needs --image-dir, the folder of its pictures"
        )
    queries, checksum = read_queries(Path(name), settings.max_samples)
    if settings.on_error == "stop":
        check_images(queries, settings.image_dir)
    elif not settings.image_dir.is_dir():
        raise ActivationsError(f"the image folder {settings.image_dir} does not exist")
    return queries, checksum, FolderPictures(settings.image_dir)


def finish_store(store: Path, recipe: Recipe) -> list[SampleRecord]:
    """Write what is gathered from all chunks: `samples.jsonl`, and the responses if there are any.

    The responses are in the form that AMBER's evaluation reads.
    """
    records = write_samples(store, recipe)
    answered = [record for record in records if record.response is not None]
    if answered:
        write_json(
            store / RESPONSES_FILE,
            [{"id": record.id, "response": record.response} for record in answered],
        )
    return records


def make_recipe(
    settings: CaptureSettings,
    model: CaptureModel,
    dtype: str,
    n_samples: int,
    queries_sha256: str,
) -> Recipe:
    """Write down everything that decides the values of this capture."""
    n_layers = len(model.decoder.layers)
    LayerWindow(n_layers, settings.n_targets)
    chunk_samples = settings.chunk_samples or _CHUNK_SAMPLES.get(
        settings.positions, _CHUNK_SAMPLES_MANY_ROWS
    )
    return Recipe(
        model=settings.model,
        revision=model.revision,
        dtype=dtype,
        store_dtype=settings.store_dtype or dtype,
        x_site=settings.x_site,
        positions=settings.positions,
        sample_positions=settings.sample_positions,
        seed=None if settings.sample_positions is None else settings.seed,
        max_new_tokens=settings.response_tokens,
        transcoders_sha256=checkpoints_sha256(settings.transcoders),
        pool=None if settings.transcoders is None else settings.pool,
        prompt=render_prompt(model.processor, QUERY_PLACEHOLDER),
        n_layers=n_layers,
        hidden_size=model.decoder.hidden_size,
        n_targets=settings.n_targets,
        benchmark=_benchmark(settings),
        queries_sha256=queries_sha256,
        n_samples=n_samples,
        chunk_samples=chunk_samples,
        image_processor=model.image_processor,
        versions={name: version(name) for name in _VERSIONS_THAT_DECIDE_VALUES},
    )


def _benchmark(settings: CaptureSettings) -> str:
    name = str(settings.dataset)
    return name if name.startswith(HF_PREFIX) else Path(name).name


def adopt_recipe(store: Path, recipe: Recipe) -> None:
    """Begin a store with `recipe`, or check that it was begun with the same one.

    Raises:
        ActivationsError: the store was made by another recipe; names what differs.
    """
    if not is_store(store):
        write_recipe(store, recipe)
        return
    differences = read_recipe(store).differences(recipe)
    if differences:
        raise ActivationsError(
            f"{store} was captured with another recipe: {', '.join(differences)}. "
            "Capture into a new folder, or with the options that this one was begun with"
        )
