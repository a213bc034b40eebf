"""Pictures made smaller, as JPEG."""

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
    cannot, remedy = f"{path} cannot be made smaller", "build without --picture-size"
    image = decoded(content, cannot, remedy)
    image.thumbnail((size, size), Image.Resampling.LANCZOS)
    return as_jpeg(image, _JPEG_QUALITY)


def decoded(content: bytes, cannot: str, remedy: str) -> Image.Image:
    """Decode a picture file as capture does.

    Args:
        cannot: what cannot be done where it is damaged, for the error's sentence.
        remedy: what to do then.

    Raises:
        ActivationsError: it cannot be decoded.
    """
    try:
        return decode_picture(content)
    except PICTURE_ERRORS as error:
        raise ActivationsError(f"{cannot} ({reason_of(error)}): {remedy}") from None


def as_jpeg(image: Image.Image, quality: int) -> bytes:
    """Return a picture as the bytes of a JPEG file."""
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return out.getvalue()
