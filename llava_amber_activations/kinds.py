"""What a row's token is: part of the picture, of the text, or of the model's own answer."""

from __future__ import annotations

# Codes of the `kind` tensor of a store; -1 where it is not known. The dataset's column holds the
# names, and "" where it is not known.
KINDS = ("text", "image", "generated")
TEXT, IMAGE, GENERATED = range(len(KINDS))

# `patch_row` and `patch_col` of a row that is no patch, or of a picture whose patches do not lie in
# one grid.
NO_PATCH = -1


def kind_name(code: int) -> str:
    """Return the name of a kind's code."""
    return "" if code < 0 else KINDS[code]
