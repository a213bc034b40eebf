"""The last step of a capture: what is gathered from the chunks of a complete store."""

from __future__ import annotations

from pathlib import Path

from llava_amber_activations.files.whole import write_json, write_text
from llava_amber_activations.formats.recipe import Recipe
from llava_amber_activations.store.chunk import Chunk
from llava_amber_activations.store.layout import chunk_path, recipe_chunks
from llava_amber_activations.store.samples import SampleRecord
from llava_amber_activations.store.sums import RESPONSES_FILE, SAMPLES_FILE, write_sums


def finish_store(store: Path, recipe: Recipe) -> list[SampleRecord]:
    """Write what is gathered from the chunks of a complete store.

    The samples' records, the responses where there are any, in the form that AMBER's evaluation
    reads, and last the checksums of both and of the recipe.
    """
    chunks = range(len(recipe_chunks(recipe)))
    records = [record for chunk in chunks for record in Chunk(chunk_path(store, chunk)).records]
    write_text(store / SAMPLES_FILE, "".join(record.to_line() + "\n" for record in records))
    answered = [record for record in records if record.response is not None]
    if answered:
        write_json(
            store / RESPONSES_FILE,
            [{"id": record.id, "response": record.response} for record in answered],
        )
    write_sums(store)
    return records
