"""What is asked of config `samples`: files to join to it, and pictures to put into it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.files.checksums import sha256_of
from llava_amber_activations.files.read_errors import read_errors
from llava_amber_activations.parsing.checked_values import check_relative_path
from llava_amber_activations.store.samples import SampleRecord


@dataclass(frozen=True)
class SamplesAsked:
    """What config `samples` is to hold beside what the store says of each sample.

    Attributes:
        annotations: file to join by `id`.
        relations, safe_words: AMBER's files, by which words of answers are known beside those that
            are annotated.
        answers: file of the answers to label, in the place of the captured ones.
        image_dir: folder of the pictures, where they are to be in it.
        picture_size: longest side of each picture in pixels; None for the files' own bytes.
    """

    annotations: Path | None = None
    relations: Path | None = None
    safe_words: Path | None = None
    answers: Path | None = None
    image_dir: Path | None = None
    picture_size: int | None = None

    @property
    def joined(self) -> dict[str, Path]:
        """The files to join, by the options that name them."""
        files = {
            "annotations": self.annotations,
            "relations": self.relations,
            "safe_words": self.safe_words,
            "answers": self.answers,
        }
        return {name: path for name, path in files.items() if path is not None}

    def digests(self) -> dict[str, str]:
        """Return the SHA-256 of each file to join.

        Raises:
            ActivationsError: one is missing or cannot be read.
        """
        found = {}
        for name, path in self.joined.items():
            with read_errors(path):
                found[name] = sha256_of(path)
        return found


NOTHING_ASKED = SamplesAsked()


def picture_path(folder: Path, image: str) -> Path:
    """Return where a picture lies.

    Raises:
        ActivationsError: its name leaves the folder.
    """
    check_relative_path(image)
    return folder / image


def picture_of(record: SampleRecord) -> str | None:
    """Return the name of a sample's picture, where it has one that could be read."""
    return record.image if record.error is None else None


def picture_bytes(asked: SamplesAsked, records: Sequence[SampleRecord]) -> int:
    """Check that every picture is there; return the bytes of those that are not made smaller.

    Raises:
        ActivationsError: there is no such folder, a picture is not in it, or the store does not say
            which picture it was.
    """
    folder = asked.image_dir
    if folder is None:
        return 0
    if not folder.is_dir():
        raise ActivationsError(f"the image folder {folder} does not exist")
    sizes: dict[str, int] = {}
    for record in records:
        image = picture_of(record)
        if image is None:
            continue
        if record.image_sha256 is None:
            raise ActivationsError(
                f"the store has no checksum of the picture of sample {record.sample}, so that it "
                "cannot be told from another: build without --embed-pictures"
            )
        if image not in sizes:
            path = picture_path(folder, image)
            with read_errors(path, "give --image-dir the folder that was captured"):
                sizes[image] = path.stat().st_size
    return sum(sizes.values()) if asked.picture_size is None else 0
