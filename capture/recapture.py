"""Capturing samples of a finished store once more, and comparing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from capture.model.load import load_model
from capture.model.taps import Taps
from capture.model.tolerance import Tolerance, relative_errors, root_mean_square, tolerance
from capture.passes.inputs import QUERY_PLACEHOLDER
from capture.passes.preparation import plan_batches, prepared_batches
from capture.passes.prompts import make_prompts
from capture.samples.benchmark import Benchmark
from capture.samples.mixture import MixedPictures
from capture.samples.pictures import FolderPictures, PictureSource
from capture.samples.queries import Query
from capture.settings import CaptureSettings, OneOrEach
from capture.sink.chunk import row_tensors, run_batch, to_host
from capture.sink.joining import check_finite, join_chunk
from capture.sink.provenance import local_weights_sha256, make_recipe
from llava_amber_activations.console.progress import Progress, progress_of
from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.formats.columns import FLOATS, LOGPROB, SAMPLE
from llava_amber_activations.formats.dataset_folder import NORMS_FILE
from llava_amber_activations.formats.dtypes import torch_dtype
from llava_amber_activations.formats.recipe import Recipe
from llava_amber_activations.store.chunk import Chunk
from llava_amber_activations.store.layout import (
    chunk_path,
    read_recipe,
    recipe_chunks,
    vector_names,
)
from llava_amber_activations.store.norms_file import read_store_norms
from llava_amber_activations.store.samples import SampleRecord, read_samples
from llava_amber_activations.vectors.norms import Norms

# What may differ between the machine that captured and the one that checks.
_MAY_DIFFER = (
    *("model", "benchmark", "queries_sha256", "versions", "transcoders_sha256", "pool"),
    *("dataset_revision", "device", "batch_size", "auto_batch_size", "compile", "reuse_prefix"),
    *("weights_sha256", "format_version"),
)


@dataclass(frozen=True)
class Recaptured:
    """What was compared.

    Attributes:
        samples: that were captured again.
        largest_error: relative, of any one of their vectors.
        tolerance: what is allowed of such an error.
    """

    samples: list[int]
    largest_error: float
    tolerance: float


def recapture(
    store: Path,
    *,
    model: str,
    image_dir: OneOrEach[Path | None],
    n_samples: int,
    seed: int,
    device: torch.device,
    revision: str | None = None,
) -> Recaptured:
    """Capture `n_samples` random samples of a finished store again and compare every vector.

    Args:
        image_dir: folder of the pictures, or one for each source of a mixture, in the order in
            which they were captured; None where there are none.

    Raises:
        ActivationsError: a sample has a picture and there is no folder for it, a picture is another
            one, the model is of another recipe, or a vector differs by more than the model's
            precision explains.
    """
    recipe = read_recipe(store)
    all_records = read_samples(store)
    benchmark = _benchmark(recipe, all_records, image_dir)
    records = [record for record in all_records if record.n_rows]
    drawn = np.random.default_rng(seed).choice(
        len(records), size=min(n_samples, len(records)), replace=False
    )
    chosen = [records[index] for index in sorted(drawn.tolist())]
    settings = CaptureSettings(
        model=model,
        dataset=recipe.benchmark or "",
        image_dir=None,
        system=recipe.system,
        answer_column=recipe.answer_column,
        output_dir=store,
        n_targets=recipe.n_targets,
        layers=recipe.layers,
        positions=recipe.positions or "last",
        sample_positions=recipe.sample_positions,
        always=recipe.always,
        seed=recipe.seed or 0,
        max_new_tokens=recipe.max_new_tokens,
        logprobs=LOGPROB in recipe.extra_columns,
        x_site=recipe.x_site or "resid_mid",
        dtype=recipe.dtype,
        store_dtype=recipe.store_dtype,
        chunk_samples=recipe.chunk_samples,
        revision=revision or recipe.revision,
    )
    dtype = recipe.dtype or recipe.store_dtype
    _check_weights(store, recipe.weights_sha256, model)
    loaded = load_model(model, dtype=dtype, device=device, revision=settings.revision)
    found = make_recipe(settings, loaded, dtype, benchmark)
    same = {name: getattr(found, name) for name in _MAY_DIFFER}
    if recipe.sites is None:
        same["sites"] = found.sites
    differences = replace(recipe, **same).differences(found)
    if differences:
        raise ActivationsError(
            f"{model} cannot recapture {store}: its recipe differs in {', '.join(differences)}"
        )
    _check_norms(store, read_store_norms(store, recipe), loaded.norms, model)
    allowed = tolerance(dtype)
    largest = 0.0
    kept = torch_dtype(recipe.store_dtype)
    with Taps(loaded.decoder, settings.x_site, kept, recipe.layers) as taps:
        for record in progress_of(chosen, "recapture", unit="sample"):
            query = benchmark.queries[record.sample]
            prepared = prepared_batches(
                plan_batches(0, [query], make_prompts([query], loaded, None), 1),
                loaded.processor,
                benchmark.pictures,
                for_generation=settings.response_tokens is not None,
                num_workers=0,
                image_token_id=loaded.image_token_id,
            )
            batch = to_host(run_batch(next(prepared), loaded, taps, settings, {}), loaded)
            if batch.prepared.digests.get(record.sample) != record.image_sha256:
                raise ActivationsError(
                    f"the image {benchmark.pictures.name(query)} of sample {record.sample} is not "
                    "the one that was captured: its SHA-256 differs"
                )
            joined = join_chunk([query], [batch], loaded, kept, recipe.layers, recipe.extra_columns)
            tensors = {name: torch.cat(parts) for name, parts in joined.pieces.items()}
            check_finite(tensors, recipe.kept_layers)
            stored = _stored_rows(store, record.sample)
            largest = max(largest, _compare(tensors, stored, record.sample, allowed))
    return Recaptured([record.sample for record in chosen], largest, allowed.worst)


def _benchmark(
    recipe: Recipe, records: Sequence[SampleRecord], image_dir: OneOrEach[Path | None]
) -> Benchmark:
    """Return the samples of a store as a capture has them.

    Raises:
        ActivationsError: there is not one folder for all sources, nor one for each, or none for one
            that has pictures.
    """
    sources = recipe.sources or ()
    names: list[str | None] = [source.name for source in sources] or [None]
    are_raw: set[str | None] = {s.name for s in sources if s.prompt_template == "none"}
    if not sources and recipe.prompt == QUERY_PLACEHOLDER:
        are_raw.add(None)
    queries = [
        Query(
            *(record.sample, record.id, record.image, record.query, record.source),
            history=record.history or (),
            answer=record.answer,
            is_raw=record.source in are_raw,
        )
        for record in records
    ]
    folders = image_dir if isinstance(image_dir, tuple) else (image_dir,)
    if len(folders) == 1:
        folders *= len(names)
    if len(folders) != len(names):
        raise ActivationsError(
            f"--image-dir is given {len(folders)} times, and the store has {len(names)} sources "
            f"({', '.join(map(str, names))}): give it once for all, or once for each in this order"
        )
    by_name = dict(zip(names, folders, strict=True))
    for query in queries:
        if query.image is not None and by_name[query.source] is None:
            where = "" if query.source is None else f" of {query.source}"
            raise ActivationsError(
                f"sample {query.sample}{where} has a picture: give --image-dir, the folder that "
                f"holds it as {query.image}"
            )
    pictures: dict[str | None, PictureSource] = {
        name: FolderPictures(folder) for name, folder in by_name.items() if folder is not None
    }
    return Benchmark(
        queries,
        recipe.queries_sha256,
        MixedPictures(pictures),
        recipe.dataset_revision,
        recipe.sources,
    )


def _stored_rows(store: Path, sample: int) -> dict[str, torch.Tensor]:
    """Return a sample's rows of every tensor of a store."""
    recipe = read_recipe(store)
    chunks = recipe_chunks(recipe)
    number = next(number for number, samples in enumerate(chunks) if sample in samples)
    chunk = Chunk(chunk_path(store, number))
    own = (chunk.rows(SAMPLE) == sample).nonzero()[:, 0]
    start, stop = int(own[0]), int(own[-1]) + 1
    names = (*row_tensors(recipe.extra_columns), *vector_names(recipe.kept_layers))
    return {name: chunk.rows(name, start, stop) for name in names}


def _compare(
    found: dict[str, torch.Tensor], stored: dict[str, torch.Tensor], sample: int, allowed: Tolerance
) -> float:
    """Return the largest relative error of a sample's vectors."""
    errors: dict[str, torch.Tensor] = {}
    for name, tensor in stored.items():
        if name in FLOATS:
            _check_logprobs(found[name], tensor, sample, allowed)
        elif tensor.is_floating_point():
            errors[name] = relative_errors(found[name], tensor)
        elif not torch.equal(tensor, found[name]):
            raise ActivationsError(f"{name} of sample {sample} is not the stored one")
    largest = {name: float(of_rows.max()) for name, of_rows in errors.items()}
    for name, error in largest.items():
        if error > allowed.worst:
            raise ActivationsError(
                f"{name} of sample {sample} differs from the stored one by {error:.1e} of its "
                f"norm, more than {allowed.worst:.0e}: the store is not of this model"
            )
    rms = root_mean_square(torch.cat(list(errors.values())))
    if rms > allowed.rms:
        raise ActivationsError(
            f"the vectors of sample {sample} differ from the stored ones by {rms:.1e} of their "
            f"norms on average, more than {allowed.rms:.0e}: the store is not of this model"
        )
    return max(largest.values())


def _check_logprobs(
    found: torch.Tensor, stored: torch.Tensor, sample: int, allowed: Tolerance
) -> None:
    """Check that log-probabilities of a sample's tokens are known of the same, and near."""
    known = stored.isfinite()
    far = (found - stored)[known].abs() / (1 + stored[known].abs())
    if not torch.equal(known, found.isfinite()) or (far > allowed.worst).any():
        raise ActivationsError(
            f"{LOGPROB} of sample {sample} is not the stored one, within {allowed.worst:.0e}: the "
            "store is not of this model"
        )


def _check_norms(store: Path, stored: Norms | None, found: Norms | None, model: str) -> None:
    """Check that a store's norms, where it has them, are the model's, value by value.

    Raises:
        ActivationsError: they are others, or the model's are of no kind that is known here.
    """
    if stored is None:
        return
    if found is None:
        raise ActivationsError(
            f"{NORMS_FILE} of {store} cannot be checked: here, what the norms of {model} compute "
            "is of no kind that is known. If it is the same model, recapture on a machine like the "
            "one that captured"
        )
    for layer, eps in enumerate(stored.eps):
        same = (
            (stored.kind, eps) == (found.kind, found.eps[layer])
            and torch.equal(stored.weight[layer], found.weight[layer])
            and (stored.bias is None) == (found.bias is None)
            and (
                stored.bias is None
                or found.bias is None
                or torch.equal(stored.bias[layer], found.bias[layer])
            )
        )
        if not same:
            raise ActivationsError(
                f"{NORMS_FILE} of {store} is not of {model}, whose norm before the MLP of layer "
                f"{layer} is another: the store is not of this model"
            )


def _check_weights(store: Path, recorded: str | None, model: str) -> None:
    """Check a local model's weights before it is loaded, where the recipe has their checksum.

    Raises:
        ActivationsError: they are others.
    """
    with Progress(f"checksum of {model}"):
        found = local_weights_sha256(model) if recorded else None
    if found is not None and found != recorded:
        raise ActivationsError(
            f"{model} cannot recapture {store}: its recipe differs in weights_sha256 ({recorded}, "
            f"not {found}), which is of the weights and the configs in the model's folder"
        )
