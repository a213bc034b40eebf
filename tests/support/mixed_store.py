"""A store of samples of two sources, with answers that were read, written without a model."""

import math

import numpy as np
import torch

from llava_amber_activations.formats.columns import KINDS
from llava_amber_activations.formats.recipe import Recipe, RecipeSource
from llava_amber_activations.store.chunk import write_chunk
from llava_amber_activations.store.finish import finish_store
from llava_amber_activations.store.layout import chunk_path, recipe_chunks, write_recipe
from llava_amber_activations.store.samples import SampleRecord

N_LAYERS, WIDTH = 3, 8
SHA256 = "a" * 64
SOURCES = ("pope", "texts", "pope", "pope", "texts")
# The kinds of each sample's tokens: of the texts, without a picture; the last sample was skipped.
PICTURED = ("system", "text", "image", "image", "image", "text", "answer", "answer")
WRITTEN = ("system", "text", "generated")
KINDS_OF = (PICTURED, WRITTEN, PICTURED, PICTURED[:6], ())
ROWS = [
    (sample, position, kind)
    for sample, kinds in enumerate(KINDS_OF)
    for position, kind in enumerate(kinds)
]


def columns(extra):
    """Return the columns of every row as lists, by their names; None is a probability unknown."""
    at = [position if kind == "image" else None for _, position, kind in ROWS]
    found = {
        "sample": [sample for sample, _, _ in ROWS],
        "id": [201 + sample for sample, _, _ in ROWS],
        "image": ["" if SOURCES[sample] == "texts" else f"{sample}.jpg" for sample, _, _ in ROWS],
        "position": [position for _, position, _ in ROWS],
        "token_id": [7 * sample + position for sample, position, _ in ROWS],
        "kind": [kind for _, _, kind in ROWS],
        "patch_row": [-1 if place is None else 0 for place in at],
        "patch_col": [-1 if place is None else place - 2 for place in at],
        "source": [SOURCES[sample] for sample, _, _ in ROWS],
        "tile": [-1 if place is None else place % 2 for place in at],
        "logprob": [
            -0.25 * (1 + sample) * position if kind in ("answer", "generated") else None
            for sample, position, kind in ROWS
        ],
    }
    return {
        name: values
        for name, values in found.items()
        if name in extra or name not in ("source", "tile", "logprob")
    }


def vectors():
    """Return every vector of the store: `{"x_00": float32 [rows, WIDTH], …}`."""
    random = np.random.default_rng(3)
    return {
        f"{kind}_{layer:02d}": random.standard_normal((len(ROWS), WIDTH)).astype(np.float32)
        for kind in ("x", "mlp_out")
        for layer in range(N_LAYERS)
    }


def records(extra):
    """Return the records of the samples."""
    return [
        SampleRecord(
            sample=sample,
            id=201 + sample,
            image=None if source == "texts" else f"{sample}.jpg",
            query="What?",
            image_sha256=None if source == "texts" else SHA256,
            n_rows=len(KINDS_OF[sample]),
            error=None if KINDS_OF[sample] else "it cannot be read",
            source=source if "source" in extra else None,
        )
        for sample, source in enumerate(SOURCES)
    ]


def make_mixed_store(store, extra=("source", "tile", "logprob"), **changed):
    """Write a finished store whose rows have some of the extra columns.

    Args:
        changed: tensors in the place of the store's own, by their names.
    """
    recipe = Recipe(
        n_layers=N_LAYERS,
        hidden_size=WIDTH,
        n_targets=2,
        store_dtype="float32",
        n_samples=len(SOURCES),
        chunk_samples=2,
        model="mixed/llava",
        x_site="resid_mid",
        positions="all",
        benchmark="pope.json, texts.json",
        sources=tuple(
            RecipeSource(name, f"{name}.json", SHA256, SOURCES.count(name))
            for name in ("pope", "texts")
        )
        if "source" in extra
        else None,
        extra_columns=extra,
    )
    write_recipe(store, recipe)
    said = columns(extra)
    said["kind"] = [KINDS.index(kind) for kind in said["kind"]]
    tensors = {name: torch.from_numpy(values) for name, values in vectors().items()}
    for name in set(said) - {"id", "image", "source", "logprob"}:
        tensors[name] = torch.tensor(said[name], dtype=torch.int32)
    if "logprob" in extra:
        known = [math.nan if value is None else value for value in said["logprob"]]
        tensors["logprob"] = torch.tensor(known, dtype=torch.float32)
    tensors |= changed
    of_all = records(extra)
    for number, samples in enumerate(recipe_chunks(recipe)):
        mine = torch.tensor([sample in samples for sample, _, _ in ROWS])
        chunk = {name: tensor[mine].contiguous() for name, tensor in tensors.items()}
        write_chunk(chunk_path(store, number), chunk, [of_all[sample] for sample in samples])
    finish_store(store, recipe)
    return store
