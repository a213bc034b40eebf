"""A dataset with things planted in it, whose samples are row groups of their own."""

import numpy as np
import pytest
import torch

from builder.build import build
from builder.drawn.rows import DrawnRows, DrawnSample
from llava_amber_activations.formats.recipe import Recipe
from llava_amber_activations.store.chunk import write_chunk
from llava_amber_activations.store.finish import finish_store
from llava_amber_activations.store.layout import chunk_path, write_recipe
from llava_amber_activations.store.samples import SampleRecord, Tokens

N_SAMPLES, N_ROWS, N_LAYERS, WIDTH = 12, 40, 4, 16
# Positions 2 … 17 are a picture of 4 × 4 patches, 36 … 39 the answer.
PATCHES, ANSWER = range(2, 18), range(36, 40)
TOKENS = [
    *("<s>", "USER:"),
    *["<image>"] * len(PATCHES),
    *(f" word{position}" for position in range(PATCHES.stop, N_ROWS)),
]
SINK = {"layer": 2, "position": 0, "dimension": 5, "value": 3000.0}


@pytest.fixture(scope="session")
def planted_store(tmp_path_factory):
    """Store of 12 samples of 40 rows: a sink in layer 2, and a patch that is large in layer 1.

    `mlp_out_01` is a linear map of `x_01`, and `mlp_out_03` is noise.
    """
    store = tmp_path_factory.mktemp("planted") / "store"
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
    )
    write_recipe(store, recipe)
    generator = torch.Generator().manual_seed(0)
    n_rows = N_SAMPLES * N_ROWS
    tensors = {
        f"{kind}_{layer:02d}": torch.randn(n_rows, WIDTH, generator=generator)
        for kind in ("x", "mlp_out")
        for layer in range(N_LAYERS)
    }
    positions = torch.arange(N_ROWS, dtype=torch.int32).repeat(N_SAMPLES)
    is_patch = (positions >= PATCHES.start) & (positions < PATCHES.stop)
    place = positions - PATCHES.start
    tensors |= {
        "sample": torch.arange(N_SAMPLES, dtype=torch.int32).repeat_interleave(N_ROWS),
        "position": positions,
        "token_id": 1000 + positions,
        "kind": torch.where(is_patch, 1, torch.where(positions >= ANSWER.start, 2, 0)).int(),
        "patch_row": torch.where(is_patch, place // 4, -1).int(),
        "patch_col": torch.where(is_patch, place % 4, -1).int(),
    }
    tensors["mlp_out_01"] = tensors["x_01"] @ torch.randn(WIDTH, WIDTH, generator=generator)
    tensors["x_02"][positions == SINK["position"], SINK["dimension"]] = SINK["value"]
    # Patch 6 of each picture: row 1, column 2.
    tensors["x_01"][positions == PATCHES.start + 6] *= 3
    tensors["mlp_out_01"][positions == PATCHES.start + 6] *= 3
    records = [
        SampleRecord(
            number,
            1 + number,
            f"AMBER_{1 + number}.jpg",
            f"Describe picture {number}.",
            "0" * 64,
            N_ROWS,
            tokens=Tokens.of(TOKENS),
        )
        for number in range(N_SAMPLES)
    ]
    write_chunk(chunk_path(store, 0), tensors, records)
    finish_store(store, recipe)
    return store


@pytest.fixture(scope="session")
def planted(planted_store, tmp_path_factory):
    """Dataset folder of `planted_store` with `all_layers` alone, in three shards."""
    folder = tmp_path_factory.mktemp("planted") / "dataset"
    build(planted_store, folder, configs=("all_layers",), max_shard_size="100kB")
    return folder


@pytest.fixture
def made_rows():
    """Function that returns rows of vectors, [rows, H] by their names; `per_sample` a sample."""

    def make(vectors, per_sample, **columns):
        n_rows, width = next(iter(vectors.values())).shape
        layers = sorted({int(name[-2:]) for name in vectors})
        fallen = np.full(n_rows, -1, np.int32)
        numbers = np.arange(n_rows, dtype=np.int32)
        names = ("token_id", "kind", "patch_row", "patch_col")
        given = {name: np.asarray(columns.get(name, fallen), np.int32) for name in names}
        n_samples = n_rows // per_sample
        return DrawnRows(
            samples=tuple(
                DrawnSample(n, n + 1, "", range(n * per_sample, (n + 1) * per_sample))
                for n in range(n_samples)
            ),
            n_samples=n_samples,
            n_rows=n_rows,
            layers=tuple(layers),
            n_layers=layers[-1] + 1,
            width=width,
            sample=numbers // per_sample,
            position=numbers % per_sample,
            tokens=columns.get("tokens"),
            vectors=vectors,
            **given,
        )

    return make
