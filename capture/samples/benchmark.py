"""The benchmark that a capture is given: its queries, and where their pictures are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from capture.samples.chats import with_system
from capture.samples.hf_dataset import read_dataset
from capture.samples.mixture import MixedPictures, mixed, source_names
from capture.samples.pictures import FolderPictures, PictureSource, check_images
from capture.samples.queries import Entries, Query, read_query_file
from capture.settings import NOT_GIVEN, BenchmarkAsked, CaptureSettings
from llava_amber_activations.console.progress import Progress
from llava_amber_activations.console.verbosity import note
from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.formats.recipe import HF_PREFIX, RecipeSource


@dataclass(frozen=True)
class Benchmark:
    """What is captured.

    Attributes:
        queries: one a sample, in order.
        queries_sha256: checksum of them all, where it is known.
        pictures: where their pictures are.
        dataset_revision: where they come from a dataset: its commit, or one checksum of its files.
        sources: where several query files or datasets are mixed, each of them.
    """

    queries: list[Query]
    queries_sha256: str | None
    pictures: PictureSource
    dataset_revision: str | None = None
    sources: tuple[RecipeSource, ...] | None = None


@dataclass(frozen=True)
class _Source:
    """One query file or dataset that has been read; `pictures` is None where it has none."""

    entries: Entries
    pictures: PictureSource | None
    revision: str | None = None


def read_benchmark(settings: CaptureSettings) -> Benchmark:
    """Read the queries, and check the pictures as far as that is quickly done.

    Raises:
        ActivationsError: either is unusable, or the positions that are asked for are those of
            pictures or answers, and no sample has one.
    """
    asked = settings.benchmarks
    if len(asked) == 1:
        if asked[0].weight is not None:
            raise ActivationsError("--weight goes with several --dataset: one alone has no share")
        source = _read(asked[0], settings, settings.max_samples)
        benchmark = Benchmark(
            source.entries.queries,
            source.entries.sha256,
            source.pictures or MixedPictures({}),
            source.revision,
        )
    else:
        benchmark = _mixture(asked, settings)
    _check_samples(benchmark.queries, settings)
    if settings.system is not None:
        queries = [_with_system(query, settings.system) for query in benchmark.queries]
        benchmark = replace(benchmark, queries=queries)
    return benchmark


def benchmark_name(asked: BenchmarkAsked) -> str:
    """Return what a recipe calls a query file or a dataset."""
    name = str(asked.dataset)
    return name if name.startswith(HF_PREFIX) else Path(name).name


def _mixture(asked: Sequence[BenchmarkAsked], settings: CaptureSettings) -> Benchmark:
    weights = [each.weight for each in asked]
    # Without weights, the shares are those of all samples.
    most = None if weights[0] is None else settings.max_samples
    names = source_names(asked)
    sources = {name: _read(each, settings, most) for name, each in zip(names, asked, strict=True)}
    queries = mixed(
        {name: source.entries.queries for name, source in sources.items()},
        weights,
        settings.max_samples,
    )
    if not queries:
        raise ActivationsError("the mixture has no sample: give more, or other weights")
    recorded = tuple(
        RecipeSource(
            name=name,
            benchmark=benchmark_name(each),
            queries_sha256=source.entries.sha256,
            n_samples=sum(query.source == name for query in queries),
            dataset_revision=source.revision,
            weight=each.weight,
            answer_column=each.answer_column,
            prompt_template=each.prompt_template,
        )
        for (name, source), each in zip(sources.items(), asked, strict=True)
    )
    pictures: dict[str | None, PictureSource] = {
        name: source.pictures for name, source in sources.items() if source.pictures is not None
    }
    digests = [[source.name, source.queries_sha256] for source in recorded]
    return Benchmark(
        queries,
        hashlib.sha256(json.dumps(digests).encode()).hexdigest(),
        MixedPictures(pictures),
        sources=recorded,
    )


def _read(asked: BenchmarkAsked, settings: CaptureSettings, most: int | None) -> _Source:
    name = str(asked.dataset)
    if name.startswith(HF_PREFIX):
        with Progress(f"open {name}"):
            entries, state, pictures = read_dataset(asked, most)
        _check_entries(entries, asked)
        return _Source(entries, pictures, state.recorded)
    entries = read_query_file(asked, most)
    _check_entries(entries, asked)
    with_pictures = [query for query in entries.queries if query.image is not None]
    if not with_pictures:
        if asked.image_dir is not None and not asked.has_no_pictures:
            raise ActivationsError(
                f"no entry of the query file {name} names a picture: leave --image-dir out, or "
                "give the key of the pictures as --image-column"
            )
        return _Source(entries, None)
    if asked.image_dir is None:
        raise ActivationsError(
            f"the query file {name} needs --image-dir, the folder of its pictures; or leave them "
            f"aside with --image-column {NOT_GIVEN}"
        )
    if len(with_pictures) < len(entries.queries):
        n_without = len(entries.queries) - len(with_pictures)
        note(f"{name}: {n_without} of {len(entries.queries)} samples have no picture")
    if settings.on_error == "stop":
        check_images(with_pictures, asked.image_dir)
    elif not asked.image_dir.is_dir():
        raise ActivationsError(f"the image folder {asked.image_dir} does not exist")
    return _Source(entries, FolderPictures(asked.image_dir))


def _check_entries(entries: Entries, asked: BenchmarkAsked) -> None:
    """Say what is taken of several answers, and check that texts to read as they are can be.

    Raises:
        ActivationsError: one has a picture, or turns, which only a chat template has places for.
    """
    if entries.n_first_of_several:
        note(
            f"{asked.dataset}: {entries.n_first_of_several} samples have several answers, of which "
            "the first is read"
        )
    for query in entries.queries if asked.is_raw else ():
        if query.image is not None or query.history:
            what = "a picture" if query.image is not None else "turns"
            raise ActivationsError(
                f"sample {query.sample} of {asked.dataset} has {what}, for which --prompt-template "
                "none has no place: leave that out, or the pictures aside with --image-column "
                f"{NOT_GIVEN}"
            )


def _check_samples(queries: Sequence[Query], settings: CaptureSettings) -> None:
    """Check that the positions that are asked for are there, and that answers are of one kind.

    Raises:
        ActivationsError: they are not.
    """
    answered = next((query for query in queries if query.answer is not None), None)
    if settings.response_tokens is not None and answered is not None:
        raise ActivationsError(
            f"sample {answered.sample} has an answer to read, and --positions generated has the "
            "model write one: give --positions answer or all, or leave the answers out"
        )
    if settings.logprobs and settings.response_tokens is None and answered is None:
        raise ActivationsError(
            "--logprobs is of the tokens of answers, and no sample has one: name their column by "
            "--answer-column, or have the model answer by --positions generated"
        )
    if settings.positions == "answer" and answered is None:
        raise ActivationsError(
            "--positions answer keeps the tokens of answers, and no sample has one: give "
            "--answer-column"
        )
    if settings.positions == "image" and all(query.image is None for query in queries):
        raise ActivationsError(
            "--positions image keeps the tokens of pictures, and no sample has one: give others"
        )
    if settings.system is not None and all(query.is_raw for query in queries):
        raise ActivationsError(
            "--system is a turn of a chat, and --prompt-template none has no turns: leave one out"
        )


def _with_system(query: Query, system: str) -> Query:
    if query.is_raw:
        return query
    return replace(query, history=with_system(query.history, system))
