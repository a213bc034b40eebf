"""Capturing samples of a finished store once more, and comparing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from capture.model.load import load_model
from capture.model.taps import Taps
from capture.model.tolerance import Tolerance, relative_errors, root_mean_square, tolerance
from capture.passes.preparation import plan_batches, prepared_batches
from capture.passes.prompts import make_prompts
from capture.samples.pictures import FolderPictures
from capture.samples.queries import Query
from capture.settings import CaptureSettings
from capture.sink.chunk import row_tensors, run_batch, to_host
from capture.sink.joining import check_finite, join_chunk
from capture.sink.provenance import local_weights_sha256, make_recipe
from llava_amber_activations.console.progress import Progress, progress_of
from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.formats.columns import FLOATS, LOGPROB, SAMPLE
from llava_amber_activations.formats.dataset_folder import NORMS_FILE
from llava_amber_activations.formats.dtypes import torch_dtype
from llava_amber_activations.store.chunk import Chunk
from llava_amber_activations.store.layout import (
    chunk_path,
    read_recipe,
    recipe_chunks,
    vector_names,
)
from llava_amber_activations.store.norms_file import read_store_norms
from llava_amber_activations.store.samples import read_samples
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
    image_dir: Path,
    n_samples: int,
    seed: int,
    device: torch.device,
    revision: str | None = None,
) -> Recaptured:
    """Capture `n_samples` random samples of a finished store again and compare every vector.

    Raises:
        ActivationsError: a picture is another one, the model is of another recipe, or a vector
            differs by more than the model's precision explains.
    """
    recipe = read_recipe(store)
    records = [record for record in read_samples(store) if record.n_rows]
    drawn = np.random.default_rng(seed).choice(
        len(records), size=min(n_samples, len(records)), replace=False
    )
    chosen = [records[index] for index in sorted(drawn.tolist())]
    settings = CaptureSettings(
        model=model,
        dataset=recipe.benchmark or "",
        image_dir=image_dir,
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
    found = make_recipe(settings, loaded, dtype, recipe.n_samples, recipe.queries_sha256)
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
            query = Query(record.sample, record.id, record.image, record.query)
            prepared = prepared_batches(
                plan_batches(0, [query], make_prompts([query], loaded, None), 1),
                loaded.processor,
                FolderPictures(image_dir),
                for_generation=settings.response_tokens is not None,
                num_workers=0,
                image_token_id=loaded.image_token_id,
            )
            batch = to_host(run_batch(next(prepared), loaded, taps, settings, {}), loaded)
            if batch.prepared.digests[record.sample] != record.image_sha256:
                raise ActivationsError(
                    f"the image {record.image} of sample {record.sample} in {image_dir} is not the "
                    "one that was captured: its SHA-256 differs"
                )
            joined = join_chunk([query], [batch], loaded, kept, recipe.layers, recipe.extra_columns)
            tensors = {name: torch.cat(parts) for name, parts in joined.pieces.items()}
            check_finite(tensors, recipe.kept_layers)
            stored = _stored_rows(store, record.sample)
            largest = max(largest, _compare(tensors, stored, record.sample, allowed))
    return Recaptured([record.sample for record in chosen], largest, allowed.worst)


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
