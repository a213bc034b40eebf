"""The pictures of config `samples`: those that were captured, as they are or made smaller."""

from __future__ import annotations

import hashlib
from pathlib import Path

from builder.samples.asked import picture_of, picture_path
from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.files.read_errors import read_errors
from llava_amber_activations.store.samples import SampleRecord


class Pictures:
    """Reads the pictures of samples in their order; one that several share, once in a row.

    Args:
        folder: that holds them, by their names.
        size: longest side of each, in pixels; None for the files' own bytes.
    """

    def __init__(self, folder: Path, size: int | None) -> None:
        self._folder = folder
        self._size = size
        self._last: tuple[tuple[str, str | None], bytes] | None = None

    def content(self, record: SampleRecord) -> bytes | None:
        """Return a sample's picture file, or a smaller JPEG; None where it has none to show.

        Raises:
            ActivationsError: it is missing, or not the picture that was captured.
        """
        image = picture_of(record)
        if image is None:
            return None
        which = image, record.image_sha256
        if self._last is None or self._last[0] != which:
            self._last = which, self._read(image, record)
        return self._last[1]

    def _read(self, image: str, record: SampleRecord) -> bytes:
        path = picture_path(self._folder, image)
        with read_errors(path, "give --image-dir the folder that was captured"):
            content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != record.image_sha256:
            raise ActivationsError(
                f"{path} is not the picture of sample {record.sample} that was captured (its "
                "SHA-256 is another): give --image-dir the folder that was captured"
            )
        if self._size is None:
            return content
        # It needs Pillow, which comes with matplotlib, and which an import does without.
        from builder.samples.thumbnails import smaller

        return smaller(content, self._size, path)
