"""Pictures as the page shows them: small, and cut to what the model was shown of them."""

from __future__ import annotations

import base64

from PIL import Image, ImageOps

from builder.samples.thumbnails import as_jpeg, decoded

_LONGEST = 448
_JPEG_QUALITY = 82
# Processors that scale the shorter side and cut the longer one around its middle, as CLIP does; by
# what their names in transformers begin with.
_CUTTING = ("CLIP",)
# A grid of so nearly the picture's shape is of the whole picture.
_SAME_SHAPE = 0.1


def cuts(processor: str | None) -> bool:
    """Whether an image processor is known to cut a picture around its middle."""
    return processor is not None and processor.startswith(_CUTTING)


def thumbnail(
    content: bytes, grid: tuple[int, int] | None, processor: str | None, name: str
) -> bytes:
    """Return a picture file as a small JPEG.

    Where its patches lie in a grid, it is cut to the grid's shape around its middle if the image
    processor is one that does so, and squeezed into that shape otherwise.

    Args:
        grid: rows and columns of patches.
        processor: class of the image processor.
        name: of the picture, for an error's sentence.

    Raises:
        ActivationsError: it cannot be decoded.
    """
    image = decoded(content, f"{name} cannot be shown", "leave --image-dir out")
    if grid is None:
        image.thumbnail((_LONGEST, _LONGEST), Image.Resampling.LANCZOS)
    else:
        size = _size_of(grid)
        is_same = abs(image.width * size[1] / (image.height * size[0]) - 1) < _SAME_SHAPE
        if cuts(processor) or is_same:
            image = ImageOps.fit(image, size, Image.Resampling.LANCZOS)
        else:
            image = image.resize(size, Image.Resampling.LANCZOS)
    return as_jpeg(image, _JPEG_QUALITY)


def as_data_url(jpeg: bytes) -> str:
    """Return a JPEG as a page can hold it."""
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"


def _size_of(grid: tuple[int, int]) -> tuple[int, int]:
    n_rows, n_cols = grid
    longest = max(grid)
    return max(1, round(_LONGEST * n_cols / longest)), max(1, round(_LONGEST * n_rows / longest))
