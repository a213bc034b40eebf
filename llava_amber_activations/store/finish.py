"""The last step of a capture: what is gathered from the chunks of a complete store."""

from __future__ import annotations

from pathlib import Path

from llava_amber_activations.files.whole import write_json, write_text
from llava_amber_activations.formats.dataset_folder import NORMS_FILE
from llava_amber_activations.formats.recipe import Recipe
from llava_amber_activations.store.chunk import Chunk
from llava_amber_activations.store.layout import chunk_path, recipe_chunks
from llava_amber_activations.store.norms_file import write_norms
from llava_amber_activations.store.samples import SampleRecord
from llava_amber_activations.store.sums import RESPONSES_FILE, SAMPLES_FILE, write_sums
from llava_amber_activations.vectors.norms import Norms


def finish_store(store: Path, recipe: Recipe, norms: Norms | None = None) -> list[SampleRecord]:
    """Write what is gathered from the chunks of a complete store.

    The samples' records, the responses where there are any, in the form that AMBER's evaluation
    reads, the norms where every chunk says that they gave the MLPs what they received, and last the
    checksums of these and of the recipe.

    Args:
        norms: of the model; None where none is known.
    """
    records: list[SampleRecord] = []
    agree = True
    for number in range(len(recipe_chunks(recipe))):
        chunk = Chunk(chunk_path(store, number))
        records += chunk.records
        agree &= chunk.norms_agree is True or not chunk.n_rows
    if norms is not None and agree:
        write_norms(store, norms)
    else:
        (store / NORMS_FILE).unlink(missing_ok=True)
    write_text(store / SAMPLES_FILE, "".join(record.to_line() + "\n" for record in records))
    answered = [record for record in records if record.response is not None]
    if answered:
        write_json(
            store / RESPONSES_FILE,
            [{"id": record.id, "response": record.response} for record in answered],
        )
    write_sums(store)
    return records
