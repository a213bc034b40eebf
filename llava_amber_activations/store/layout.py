"""The capture store: its files, its tensors, and reading and writing one chunk.

    STORE/
      capture.json                        the recipe
      chunks/chunk-00000.safetensors      x_00 …, mlp_out_00 …: [rows, H]
                                          sample, position, token_id, kind (its code),
                                          patch_row, patch_col, tile: int32 [rows]; logprob:
                                          float32 [rows]; the last two where the recipe names them
      features/features-00000.safetensors of a chunk, where there are transcoders (`features_file`)
      samples.jsonl                       one line a sample; written when the last chunk is there
      responses.json                      AMBER's evaluation form, where responses were generated
      norms.safetensors                   the norms before the MLPs (`norms_file`), where `x` is
                                          `resid_mid` and they are of a known kind
      SHA256SUMS                          of capture.json and the three files above; written last

Where the recipe names `layers`, the vectors are those of these layers alone. The norms are of all.

A chunk covers a fixed range of samples and appears whole or not at all. Its safetensors header
carries, under the metadata key `chunk`, the records of its samples, the batch size that it was
captured with, the checksum of its features, whether the norms gave the MLPs what they received, and
what `tensor_file` says: the SHA-256 of each tensor, and one over all of this. A store without
SHA256SUMS is unfinished, unless it is of format 1.0, which had none.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.files.read_errors import read_errors
from llava_amber_activations.files.whole import write_json
from llava_amber_activations.formats.layers import mlp_out_name, x_name
from llava_amber_activations.formats.recipe import Recipe
from llava_amber_activations.formats.version import has_seals
from llava_amber_activations.parsing.typed_json import parse_json_object
from llava_amber_activations.store.sums import (
    RECIPE_FILE,
    SAMPLES_FILE,
    SUMS_FILE,
)

CHUNKS_DIR = "chunks"


def is_store(path: Path) -> bool:
    """Whether `path` is a capture store, finished or not."""
    return (path / RECIPE_FILE).is_file()


def read_recipe(store: Path) -> Recipe:
    """Read a store's recipe.

    Raises:
        ActivationsError: there is none, or it is damaged or too new.
    """
    path = store / RECIPE_FILE
    if not path.is_file():
        raise ActivationsError(f"{store} is not a capture store: it has no {RECIPE_FILE}")
    with read_errors(path):
        text = path.read_bytes()
    return Recipe.from_json(parse_json_object(text, path), path)


def write_recipe(store: Path, recipe: Recipe) -> None:
    """Write a store's recipe."""
    write_json(store / RECIPE_FILE, recipe.to_json())


def chunk_path(store: Path, chunk: int) -> Path:
    """Return the path of a chunk."""
    return store / CHUNKS_DIR / f"chunk-{chunk:05d}.safetensors"


def chunk_ranges(n_samples: int, chunk_samples: int) -> list[range]:
    """Return the samples of every chunk: fixed ranges, whatever the number of processes."""
    starts = range(0, n_samples, chunk_samples)
    return [range(start, min(start + chunk_samples, n_samples)) for start in starts]


def recipe_chunks(recipe: Recipe) -> list[range]:
    """Return the samples of every chunk of a captured store."""
    return chunk_ranges(recipe.n_samples, recipe.chunk_samples or max(1, recipe.n_samples))


def missing_chunks(store: Path, recipe: Recipe) -> list[int]:
    """Return the numbers of the chunks that are not there yet."""
    chunks = range(len(recipe_chunks(recipe)))
    return [chunk for chunk in chunks if not chunk_path(store, chunk).exists()]


def vector_names(layers: Sequence[int]) -> list[str]:
    """Return the names of the vectors of some layers: every `x_LL`, then every `mlp_out_LL`."""
    return [*map(x_name, layers), *map(mlp_out_name, layers)]


def is_finished(store: Path, recipe: Recipe) -> bool:
    """Whether the last file of a store is there, which says that all are."""
    return (store / SAMPLES_FILE).is_file() and (
        (store / SUMS_FILE).is_file() or not has_seals(recipe.format_version)
    )
