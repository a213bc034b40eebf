"""The columns that a row has beside its vectors, and those of a sample; the codes of `kind`.

A store holds a row's as int32 tensors of the same names (`logprob` as float32), a dataset folder as
columns; `id`, `image` and `source` are a sample's, and stand in a store's records.
"""

from __future__ import annotations

from collections.abc import Container, Iterable

import numpy as np
import numpy.typing as npt

X, TARGETS, FEATURES = "x", "targets", "features"
SAMPLE, ID, IMAGE, POSITION, TOKEN_ID = "sample", "id", "image", "position", "token_id"
KIND, PATCH_ROW, PATCH_COL = "kind", "patch_row", "patch_col"
LEADING = (SAMPLE, ID, IMAGE, POSITION, TOKEN_ID, KIND, PATCH_ROW, PATCH_COL)

SOURCE, TILE, LOGPROB = "source", "tile", "logprob"
EXTRA = (SOURCE, TILE, LOGPROB)
"""Columns that the rows of some datasets have, after `LEADING`; the recipe's `extra_columns` says
which.

`source` is the name of the query file or dataset that the sample is of, where several were mixed.
`tile` is int32: where a model sees a picture in tiles, 0 of a patch of the whole picture, 1, 2, …
of one of a tile, in reading order; -1 of every other row. `patch_row` and `patch_col` of a tile's
patch count over all tiles together. `logprob` is float32: the natural logarithm of the probability
that the model gave the row's token, where it was generated or an answer to read; else NaN.
"""
ROW_COLUMNS = (*LEADING, *EXTRA)

STRINGS = (IMAGE, KIND, SOURCE)
FLOATS = (LOGPROB,)
INTEGERS = tuple(name for name in ROW_COLUMNS if name not in (*STRINGS, *FLOATS))
# What a batch carries of a row, as numbers: `kind` as its code.
NUMBERED = tuple(name for name in ROW_COLUMNS if name not in (IMAGE, SOURCE))

# Of a sample, in config `samples`.
QUERY, PROMPT, RESPONSE, N_ROWS = "query", "prompt", "response", "n_rows"
IMAGE_SHA256, ERROR, TOKENS, PICTURE = "image_sha256", "error", "tokens", "picture"
SAMPLE_COLUMNS = (
    *(SAMPLE, ID, IMAGE, QUERY, PROMPT, RESPONSE, N_ROWS, IMAGE_SHA256, ERROR, TOKENS),
)

ROW_TENSORS = (SAMPLE, POSITION, TOKEN_ID)
# Stores that other programs write may lack these; -1 then stands for every row.
OPTIONAL_ROW_TENSORS = (KIND, PATCH_ROW, PATCH_COL)
# Stores have those that their recipe's `extra_columns` names, and `logprob` as float32.
EXTRA_ROW_TENSORS = (TILE, LOGPROB)

KINDS = ("text", "image", "generated", "answer", "system")
"""What a row's token is: part of the text, of the picture, of the model's own answer, of an answer
that the benchmark gave the model to read, or of the system's turn.

The code of `kind`, in a store and in a batch, is the place in this tuple, -1 where it is not
known; a column holds the name, and "" where it is not known.
"""
TEXT, IMAGE_PATCH, GENERATED, ANSWER, SYSTEM = range(len(KINDS))

# `image` of a row whose sample has no picture, in a dataset folder.
NO_IMAGE = ""

# `tile` of a patch of the whole picture.
WHOLE_PICTURE = 0

# `patch_row` and `patch_col` of a row that is no patch, or of a picture whose patches do not lie in
# one grid.
NO_PATCH = -1


_CODES = {name: code for code, name in enumerate(KINDS)}


def row_columns(extra: Container[str]) -> tuple[str, ...]:
    """Return the columns of rows in their order, of `EXTRA` those that are in `extra`."""
    return (*LEADING, *(name for name in EXTRA if name in extra))


def numbered(columns: Container[str]) -> tuple[str, ...]:
    """Return which of some columns a batch carries of a row, in the order of `ROW_COLUMNS`."""
    return tuple(name for name in NUMBERED if name in columns)


def kind_codes(names: Iterable[str]) -> npt.NDArray[np.int32]:
    """Return the codes of kinds by their names: int32, -1 where the kind is not known."""
    return np.array([_CODES.get(name, -1) for name in names], np.int32)


def kind_name(code: int) -> str:
    """Return the name of a kind's code."""
    return "" if code < 0 else KINDS[code]
