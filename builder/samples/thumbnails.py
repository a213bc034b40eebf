"""Pictures made smaller."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.files.read_errors import reason_of
from llava_amber_activations.parsing.picture_decoding import PICTURE_ERRORS, decode_picture

_JPEG_QUALITY = 90


def smaller(content: bytes, size: int, path: Path) -> bytes:
    """Return a picture file as a JPEG of as many pixels or fewer on its longest side.

    Args:
        path: of the file, for an error's sentence.

    Raises:
        ActivationsError: it cannot be decoded.
    """
    try:
        image = decode_picture(content)
    except PICTURE_ERRORS as error:
        raise ActivationsError(
            f"{path} cannot be made smaller ({reason_of(error)}): build without --picture-size"
        ) from None
    image.thumbnail((size, size), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=_JPEG_QUALITY)
    return out.getvalue()
