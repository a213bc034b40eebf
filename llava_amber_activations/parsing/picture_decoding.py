"""A picture file's bytes as the RGB picture that a viewer shows.

Plain 8-bit RGB and grey pictures are what Pillow decodes, bit for bit. Beyond that:

    rotation in EXIF     is applied
    transparency         lies on white, as on a page: alpha channels and transparent colours
    16-bit grey          is scaled to 8 bits, v / 257 rounded (Pillow alone would clip it at 255);
                         16-bit colour Pillow itself reduces to its upper 8 bits
    CMYK                 (255 - C)(255 - K) / 255 and so on
    several frames       the first

Colour profiles are not applied: no processor of a model does. What has no such reading (32-bit and
floating-point pixels) is refused.
"""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import ExifTags, Image

# What Pillow raises of a damaged file: which one, depends on the format and on the wrong byte.
PICTURE_ERRORS = (
    *(OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, OverflowError, EOFError),
    *(struct.error, zlib.error, MemoryError, Image.DecompressionBombError),
)

# What EXIF's numbers ask for, to bring the picture upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ALPHA_MODES = ("RGBA", "RGBa", "LA", "La", "PA")
# Processors scale the shorter side to some hundred pixels before they crop, or pad the longer one:
# 336 × 1.4 million pixels of three colours are 1.4 GB.
_LONGEST_TO_SHORTEST = 4096


class UnusablePictureError(ValueError):
    """A picture that can be decoded and not used; says why, after the picture's name."""


def decode_picture(content: bytes) -> Image.Image:
    """Decode a picture file as RGB, as the module says.

    Raises:
        UnusablePictureError: it has no reading as RGB, or an extreme shape.
        Exception: one of `PICTURE_ERRORS`, it is damaged, or too large.
    """
    with Image.open(io.BytesIO(content)) as image:
        check_usable(image)
        image.load()
        upright = _UPRIGHT.get(_orientation(image))
        rgb = _as_rgb(image)
    return rgb if upright is None else rgb.transpose(upright)


def check_usable(image: Image.Image) -> None:
    """Check what a picture's header says of it, before it is decoded.

    Raises:
        UnusablePictureError: it has no reading as RGB, or an extreme shape.
    """
    width, height = image.size
    if max(width, height) > _LONGEST_TO_SHORTEST * min(width, height):
        raise UnusablePictureError(
            f"is {width} × {height} pixels, and its sides may differ by a factor of "
            f"{_LONGEST_TO_SHORTEST} at most: crop it"
        )
    if image.mode == "F" or (image.mode == "I" and not _is_sixteen_bit(image)):
        kind = "32-bit integers" if image.mode == "I" else "floating-point numbers"
        raise UnusablePictureError(
            f"holds {kind}, which no viewer shows the same: save it with 8 or 16 bits"
        )


def _is_sixteen_bit(image: Image.Image) -> bool:
    # Which of the modes a PNG of 16-bit grey has, differs among versions of Pillow.
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))


def _orientation(image: Image.Image) -> Any:
    # After the picture is loaded: of a TIFF, that applies the rotation and forgets it.
    try:
        value = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:
        # Damaged EXIF, of which Pillow raises whatever its bytes lead to, says nothing.
        return None
    return value if isinstance(value, int) else None


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        return _on_white(image)
    if _is_sixteen_bit(image):
        return _scaled(image)
    return image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        values = np.asarray(image)
        scaled = np.array(_scaled(image))
        scaled[values == image.info["transparency"]] = 255
        return Image.fromarray(scaled)
    if image.mode == "La":
        image = image.convert("LA")
    rgba = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(rgba, mask=rgba.getchannel("A"))
    return white


def _scaled(image: Image.Image) -> Image.Image:
    """16-bit grey, scaled to 8 bits."""
    values = np.asarray(image).astype(np.uint32)
    grey = ((values + 128) // 257).clip(0, 255).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")
