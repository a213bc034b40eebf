"""What the page says of each sample beside its rows: query, answer, labels, tokens, picture."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from builder.drawn.rows import DrawnRows
from builder.report.browser_data import Browsed
from builder.report.thumbnails import as_data_url, thumbnail
from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.files.read_errors import read_errors
from llava_amber_activations.formats.arrow_vectors import numbers_in
from llava_amber_activations.formats.columns import (
    IMAGE,
    IMAGE_SHA256,
    PICTURE,
    PROMPT,
    QUERY,
    RESPONSE,
    SAMPLE,
    TOKENS,
)
from llava_amber_activations.formats.dataset_folder import SAMPLES, SAMPLES_SPLIT
from llava_amber_activations.parsing.checked_values import check_relative_path
from llava_amber_activations.reading.layer_rows import read_columns
from llava_amber_activations.reading.read_ahead import Shards
from llava_amber_activations.sources.source import Source, expected_rows

# What `build` joins to the samples of AMBER; whatever else was joined is shown as it is.
_LABELS = (
    *("given_response", "truth", "hallu", "truth_answer", "dimension", "answer", "correct"),
    "mentions",
)
_NOT_SHOWN = ("n_rows", "error", IMAGE_SHA256, PROMPT, "id", IMAGE, SAMPLE, PICTURE)
_REMEDY = "give --image-dir the folder that was captured"

Grids = Mapping[int, tuple[int, int]]


def known_of(table: pa.Table, browsed: Browsed) -> dict[int, dict[str, Any]]:
    """Return what a table of samples says of those that are browsed, as JSON values.

    Args:
        table: as `read_samples_table` returns it.

    Returns:
        By the sample's number: `query`, `response`, `tokens` and the labels, where they are known;
        and under `others` whatever else was joined.
    """
    chosen = np.isin(
        numbers_in(table[SAMPLE]), np.array([each.sample for each in browsed.samples], np.int64)
    )
    known = {}
    for row in table.filter(pa.array(chosen)).to_pylist():
        said = {
            name: row[name]
            for name in (QUERY, RESPONSE, TOKENS, *_LABELS)
            if row.get(name) is not None
        }
        others = {
            name: value if isinstance(value, str | int | float | bool) else str(value)
            for name, value in row.items()
            if name not in (QUERY, RESPONSE, TOKENS, *_LABELS, *_NOT_SHOWN) and value is not None
        }
        known[row[SAMPLE]] = {**said, "others": others}
    return known


def pictures_of(
    source: Source, table: pa.Table, browsed: Browsed, image_dir: Path | None, grids: Grids
) -> dict[int, str]:
    """Return a small picture of each sample that is browsed, as a `data:` URL, by its number.

    They come from `image_dir`, or else from the dataset's own column `picture`; where neither is
    there, none does. Only the row groups of these samples are read.

    Args:
        table: as `read_samples_table` returns it, without pictures.
        grids: of each sample's patches, `(rows, columns)`, where they lie in one.

    Raises:
        ActivationsError: a picture is missing, cannot be decoded, or is not the one that was
            captured; a shard is missing or damaged.
    """
    if image_dir is None:
        contents = _embedded(source, table, browsed)
    else:
        contents = _in_folder(table, browsed, image_dir)
    of_picture: dict[tuple[str, tuple[int, int] | None], str] = {}
    found = {}
    processor = source.manifest.recipe.image_processor
    for sample, content in contents.items():
        grid = grids.get(sample)
        which = hashlib.sha256(content).hexdigest(), grid
        if which not in of_picture:
            name = f"the picture of sample {sample}"
            of_picture[which] = as_data_url(thumbnail(content, grid, processor, name))
        found[sample] = of_picture[which]
    return found


def grids_of(rows: DrawnRows, browsed: Browsed) -> dict[int, tuple[int, int]]:
    """Return how many rows and columns of patches each sample's picture has, where it has some."""
    found = {}
    for sample in browsed.samples:
        at = slice(sample.rows.start, sample.rows.stop)
        patch_rows, patch_cols = rows.patch_row[at], rows.patch_col[at]
        if len(patch_rows) and patch_rows.max() >= 0:
            found[sample.sample] = int(patch_rows.max()) + 1, int(patch_cols.max()) + 1
    return found


def _in_folder(table: pa.Table, browsed: Browsed, image_dir: Path) -> dict[int, bytes]:
    checksums: dict[int, str | None] = {}
    if IMAGE_SHA256 in table.column_names:
        checksums = dict(
            zip(table[SAMPLE].to_pylist(), table[IMAGE_SHA256].to_pylist(), strict=True)
        )
    found = {}
    for sample in browsed.samples:
        # An import knows no pictures.
        if not sample.image:
            continue
        check_relative_path(sample.image)
        path = image_dir / sample.image
        with read_errors(path, _REMEDY):
            content = path.read_bytes()
        wanted = checksums.get(sample.sample)
        if wanted is not None and hashlib.sha256(content).hexdigest() != wanted:
            raise ActivationsError(
                f"{path} is not the picture of sample {sample.sample} that was captured (its "
                f"SHA-256 is another): {_REMEDY}"
            )
        found[sample.sample] = content
    return found


def _embedded(source: Source, table: pa.Table, browsed: Browsed) -> dict[int, bytes]:
    paths = source.manifest.shards(SAMPLES, SAMPLES_SPLIT)
    if not paths:
        return {}
    shards = Shards(
        [source.url(path) for path in paths], expected_rows(source, paths), checked=True
    )
    if PICTURE not in shards.footer(source.url(paths[0])).schema.to_arrow_schema().names:
        return {}
    numbers = numbers_in(table[SAMPLE])
    wanted = np.isin(numbers, np.array([each.sample for each in browsed.samples], np.int64))
    found: dict[int, bytes] = {}
    start = 0
    for group in shards.row_groups():
        at = np.flatnonzero(wanted[start : start + group.n_rows])
        if len(at):
            pictures = read_columns(shards.open(group.url), group.number, [PICTURE])[PICTURE]
            for place in at.tolist():
                picture = pictures[place].as_py()
                if picture is not None and picture["bytes"] is not None:
                    found[int(numbers[start + place])] = picture["bytes"]
        start += group.n_rows
    return found
