"""The pictures of a benchmark: files in a folder, or a column of a dataset."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Protocol

from PIL import Image

from capture.samples.queries import Query
from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.parsing.picture_decoding import (
    PICTURE_ERRORS,
    UnusablePictureError,
    check_usable,
    decode_picture,
)


class PictureSource(Protocol):
    """Where pictures are; sent to the processes that read them."""

    def content(self, query: Query) -> bytes:
        """Return the bytes of a sample's picture file.

        Raises:
            OSError: it is missing or cannot be read.
            ActivationsError: the sample names none of this source.
        """

    def name(self, query: Query) -> str:
        """Say which picture it is, for an error's sentence."""


@dataclass(frozen=True)
class Picture:
    """A decoded picture, RGB, and the SHA-256 of its file."""

    image: Image.Image
    sha256: str


@dataclass(frozen=True)
class FolderPictures:
    """Files in a folder, by their path inside it."""

    folder: Path

    def content(self, query: Query) -> bytes:
        """Return the bytes of a sample's file."""
        return image_path(self.folder, query).read_bytes()

    def name(self, query: Query) -> str:
        """Return the file's path."""
        return str(self.folder / str(query.image))


def read_picture(source: PictureSource, query: Query) -> Picture:
    """Read and decode a sample's picture.

    Raises:
        ActivationsError: it is missing, outside the folder, or cannot be decoded.
    """
    try:
        content = source.content(query)
        image = decode_picture(content)
    except PICTURE_ERRORS as error:
        raise unreadable_image(source.name(query), query, error) from None
    return Picture(image, hashlib.sha256(content).hexdigest())


def image_path(image_dir: Path, query: Query) -> Path:
    """Return the path of the picture of a sample that has one, inside `image_dir`.

    The check is on the name alone: a query file comes from elsewhere and must not choose a path,
    but a link that the user has put into the folder may point wherever they like.

    Raises:
        ActivationsError: the name is absolute, climbs out of the folder, or is none.
    """
    image = str(query.image)
    if "\0" in image:
        raise ActivationsError(
            f"the image {image!r} of sample {query.sample} has a NUL character in its name, "
            "which no file can have"
        )
    for flavour in (PurePosixPath(image), PureWindowsPath(image)):
        if flavour.is_absolute() or flavour.drive or ".." in flavour.parts or not flavour.parts:
            raise ActivationsError(
                f"the image '{image}' of sample {query.sample} leaves the image folder "
                f"{image_dir}: name pictures by their path inside it"
            )
    return image_dir / image


def check_images(queries: Sequence[Query], image_dir: Path) -> None:
    """Check that every picture is there and can be used, by its header, before hours are spent.

    Args:
        queries: that have pictures.

    Raises:
        ActivationsError: the first picture that is missing, outside the folder, unreadable or
            unusable.
    """
    if not image_dir.is_dir():
        raise ActivationsError(f"the image folder {image_dir} does not exist")
    checked: set[str | None] = set()
    for query in queries:
        if query.image in checked:
            continue
        path = image_path(image_dir, query)
        try:
            with Image.open(path) as image:
                check_usable(image)
                checked.add(query.image)
        except PICTURE_ERRORS as error:
            raise unreadable_image(str(path), query, error) from None


def unreadable_image(name: str, query: Query, error: Exception) -> ActivationsError:
    """Say that a picture is missing or cannot be used, and what to do."""
    shown = name if name.isprintable() else repr(name)
    return ActivationsError(
        f"the image {shown} of sample {query.sample} {_reason(error)}, or leave the sample out "
        "with --on-error skip"
    )


def _reason(error: Exception) -> str:
    if isinstance(error, UnusablePictureError):
        return str(error)
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return "is missing: put it there"
    if isinstance(error, IsADirectoryError):
        return "is a folder: put the picture there"
    if isinstance(error, PermissionError):
        return "may not be read by this user: let it be read"
    return "cannot be read as a picture: put it there"
