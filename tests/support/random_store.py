"""Finished capture stores of random values, written without a model."""

import numpy as np
import torch
from safetensors.numpy import load_file

from llava_amber_activations.formats.recipe import Recipe
from llava_amber_activations.store.chunk import write_chunk
from llava_amber_activations.store.finish import finish_store
from llava_amber_activations.store.layout import chunk_path, write_recipe
from llava_amber_activations.store.samples import SampleRecord

N_LAYERS = 32


def make_random_store(store, n_rows, width, scale=1, change=None):
    """Write a finished float16 store of distinct values in two chunks, without a model.

    `change`, if given, gets the tensors of each chunk, by their names, and changes them.
    """
    recipe = Recipe(
        n_layers=N_LAYERS,
        hidden_size=width,
        n_targets=16,
        store_dtype="float16",
        n_samples=n_rows,
        chunk_samples=n_rows // 2,
        model="random/llava",
        x_site="resid_mid",
        positions="last",
        prompt="USER: <image>\n{query} ASSISTANT:",
        benchmark="query_generative.json",
    )
    write_recipe(store, recipe)
    generator = torch.Generator().manual_seed(0)
    for chunk, samples in enumerate((range(n_rows // 2), range(n_rows // 2, n_rows))):
        rows = len(samples)
        tensors = {
            f"{kind}_{layer:02d}": scale * torch.randn(rows, width, generator=generator).half()
            for kind in ("x", "mlp_out")
            for layer in range(N_LAYERS)
        }
        tensors["sample"] = torch.tensor(samples, dtype=torch.int32)
        tensors["position"] = torch.full((rows,), 42, dtype=torch.int32)
        tensors["token_id"] = torch.full((rows,), 29901, dtype=torch.int32)
        if change is not None:
            change(tensors)
        records = [
            SampleRecord(
                *(number, 1 + number, f"AMBER_{1 + number}.jpg"),
                *("Describe this image.", "0" * 64, 1),
            )
            for number in samples
        ]
        write_chunk(chunk_path(store, chunk), tensors, records)
    finish_store(store, recipe)
    return store


def read_vectors(store):
    """Read every tensor of a store from its chunks, without this project's packages."""
    chunks = [load_file(path) for path in sorted((store / "chunks").iterdir())]
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}
