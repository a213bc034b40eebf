"""What a run needs before its first pass: the model, the prompts, and what is shared among them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from capture.model.decoder import compile_layers
from capture.model.load import CaptureModel, default_dtype, load_model
from capture.passes.logprobs import check_head
from capture.passes.prefix import prefix_problem
from capture.passes.prompts import Prompts, make_prompts, most_prompt_tokens
from capture.pipeline import PassSetup
from capture.samples.benchmark import Benchmark
from capture.samples.queries import Query
from capture.settings import CaptureSettings
from capture.sink.provenance import local_weights_sha256, make_recipe
from llava_amber_activations.console.progress import Progress
from llava_amber_activations.console.verbosity import note
from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.formats.layers import check_kept, check_n_targets
from llava_amber_activations.formats.recipe import Recipe
from llava_amber_activations.store.layout import chunk_ranges


@dataclass(frozen=True)
class LoadedModel:
    """A model that is ready, and what is known of its weights.

    Attributes:
        dtype: what it computes in.
        weights_sha256: of a local folder (`local_weights_sha256`).
    """

    model: CaptureModel
    dtype: str
    weights_sha256: str | None = None


@dataclass(frozen=True)
class OpenCapture:
    """What was asked for, with all that its passes need.

    Attributes:
        benchmark: the queries, and where their pictures are.
        dtype: what the model computes in.
        prompts: of the queries.
        recipe: everything that decides the values.
    """

    settings: CaptureSettings
    benchmark: Benchmark
    model: CaptureModel
    dtype: str
    prompts: Prompts
    recipe: Recipe

    @property
    def setup(self) -> PassSetup:
        """What the passes need."""
        return PassSetup(
            model=self.model,
            prompts=self.prompts,
            source=self.benchmark.pictures,
            settings=self.settings,
            share_prefixes=bool(self.recipe.reuse_prefix),
            extra_columns=self.recipe.extra_columns,
        )


def load(settings: CaptureSettings, device: torch.device, *, shown: bool = True) -> LoadedModel:
    """Load the model that `settings` names, and take the checksum of its weights meanwhile.

    Args:
        shown: whether this process says how long it takes.

    Raises:
        ActivationsError: as `load_model`.
    """
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
            shown=shown,
        )
        with Progress(f"checksum of {settings.model}", shown=shown):
            return LoadedModel(model, dtype, weights.result())


def open_capture(
    settings: CaptureSettings, benchmark: Benchmark, loaded: LoadedModel, *, shown: bool = True
) -> OpenCapture:
    """Make the prompts of a benchmark and decide what its passes share, as the recipe says it.

    Args:
        shown: whether this process says what it does.

    Raises:
        ActivationsError: the model has not the layers that are asked for, a query cannot be asked
            and `on_error` is "stop", prefixes cannot be reused and that was asked for, or
            `logprobs` was, and the head cannot be asked for them.
    """
    model, dtype, queries = loaded.model, loaded.dtype, benchmark.queries
    n_layers = len(model.decoder.layers)
    check_n_targets(settings.n_targets, n_layers)
    check_kept(settings.layers, n_layers)
    with Progress("make the prompts", shown=shown):
        most_tokens = most_prompt_tokens(model, settings.response_tokens)
        prompts = make_prompts(queries, model, most_tokens)
    if prompts.unusable and settings.on_error == "stop":
        raise ActivationsError(next(iter(prompts.unusable.values())))
    if settings.logprobs:
        check_head(model, settings.model, dtype)
    if settings.compile:
        compile_layers(model.decoder)
    recipe = make_recipe(
        *(settings, model, dtype, benchmark),
        weights_sha256=loaded.weights_sha256,
        reuse_prefix=_shares_prefixes(settings, model, dtype, queries, say=shown),
    )
    return OpenCapture(settings, benchmark, model, dtype, prompts, recipe)


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
    of_chunks = ([queries[sample].picture for sample in chunk] for chunk in chunks)
    pictures = ([each for each in chunk if each is not None] for chunk in of_chunks)
    of_use = any(len(set(chunk)) < len(chunk) for chunk in pictures)
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
