"""A store of photographs, tokens and answers, written without a model: one patch is too large."""

import numpy as np
import torch

from llava_amber_activations.files.checksums import sha256_of
from llava_amber_activations.formats.recipe import Recipe
from llava_amber_activations.store.chunk import write_chunk
from llava_amber_activations.store.finish import finish_store
from llava_amber_activations.store.layout import chunk_path, write_recipe
from llava_amber_activations.store.samples import SampleRecord, Tokens

N_SAMPLES, N_LAYERS, WIDTH = 9, 5, 16
SIDE = 4
# A beginning, the picture, a question; then the answer.
TEXTS = ["<s>", *["<image>"] * SIDE**2, " What", "?", " A", " dog", " and", " a", " cat", "."]
KINDS = [0, *[1] * SIDE**2, 0, 0, *[2] * 6]
RESPONSE_START = KINDS.index(2)
# Of each picture: words that are true of it, and words that are not.
ANNOTATIONS = [
    {"id": 101 + number, "truth": ["dog"], "hallu": ["cat"], "place": "outside"}
    for number in range(N_SAMPLES)
]
# Where a large vector is planted.
SAMPLE, LAYER, ROW, COL = 6, 3, 2, 1
PLANTED = 1 + ROW * SIDE + COL


def vectors():
    """Return every vector of the store: `{"x_00": float32 [samples, tokens, WIDTH], …}`."""
    random = np.random.default_rng(0)
    shape = N_SAMPLES, len(TEXTS), WIDTH
    found = {
        f"{kind}_{layer:02d}": random.standard_normal(shape).astype(np.float32)
        for kind in ("x", "mlp_out")
        for layer in range(N_LAYERS)
    }
    found[f"x_{LAYER:02d}"][SAMPLE, PLANTED] *= 40
    return found


def make_planted_store(store, image_dir):
    """Write a finished store of nine samples on photographs: all positions, tokens, answers."""
    recipe = Recipe(
        n_layers=N_LAYERS,
        hidden_size=WIDTH,
        n_targets=2,
        store_dtype="float32",
        n_samples=N_SAMPLES,
        chunk_samples=N_SAMPLES,
        model="planted/llava",
        x_site="resid_mid",
        positions="all",
        image_processor="CLIPImageProcessor",
        # What a page must not take for its own.
        benchmark="<i>queries.json",
    )
    write_recipe(store, recipe)
    n = len(TEXTS)
    places = [(number // SIDE, number % SIDE) for number in range(SIDE**2)]
    patches = [(-1, -1), *places, *[(-1, -1)] * (n - 1 - SIDE**2)]
    tensors = {
        name: torch.from_numpy(values.reshape(-1, WIDTH)) for name, values in vectors().items()
    }
    each = {
        "position": range(n),
        "token_id": [7 * place % 97 for place in range(n)],
        "kind": KINDS,
        "patch_row": [row for row, _ in patches],
        "patch_col": [col for _, col in patches],
    }
    for name, values in each.items():
        tensors[name] = torch.tensor([*values] * N_SAMPLES, dtype=torch.int32)
    tensors["sample"] = torch.arange(N_SAMPLES, dtype=torch.int32).repeat_interleave(n)
    records = [
        SampleRecord(
            sample=number,
            id=101 + number,
            image=(image := f"AMBER_{1 + number % 8}.jpg"),
            query="What?",
            image_sha256=sha256_of(image_dir / image),
            n_rows=n,
            prompt="<s><image> What?",
            tokens=Tokens.of(TEXTS),
            response="A dog and a cat.",
            response_start=RESPONSE_START,
        )
        for number in range(N_SAMPLES)
    ]
    write_chunk(chunk_path(store, 0), tensors, records)
    finish_store(store, recipe)
    return store
