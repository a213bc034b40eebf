"""The benchmark that a capture is given: its queries, and where its pictures are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from capture.samples.hf_dataset import read_dataset
from capture.samples.pictures import FolderPictures, PictureSource, check_images
from capture.samples.queries import Query, read_queries
from capture.settings import CaptureSettings
from llava_amber_activations.console.progress import Progress
from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.formats.recipe import HF_PREFIX


@dataclass(frozen=True)
class Benchmark:
    """What is captured.

    Attributes:
        queries: one a sample, in order.
        queries_sha256: checksum of them all.
        pictures: where their pictures are.
        dataset_revision: where they come from a dataset: its commit, or one checksum of its files.
    """

    queries: list[Query]
    queries_sha256: str
    pictures: PictureSource
    dataset_revision: str | None = None


def read_benchmark(settings: CaptureSettings) -> Benchmark:
    """Read the queries, and check the pictures as far as that is quickly done.

    Raises:
        ActivationsError: either is unusable.
    """
    name = str(settings.dataset)
    if name.startswith(HF_PREFIX):
        with Progress(f"open {name}"):
            queries, checksum, columns = read_dataset(
                name.removeprefix(HF_PREFIX),
                settings.split,
                settings.image_column,
                settings.query_column,
                settings.max_samples,
            )
        return Benchmark(queries, checksum, columns, columns.recorded_revision)
    if settings.image_dir is None:
        raise ActivationsError(
            f"the query file {name} needs --image-dir, the folder of its pictures"
        )
    queries, checksum = read_queries(Path(name), settings.max_samples)
    if settings.on_error == "stop":
        check_images(queries, settings.image_dir)
    elif not settings.image_dir.is_dir():
        raise ActivationsError(f"the image folder {settings.image_dir} does not exist")
    return Benchmark(queries, checksum, FolderPictures(settings.image_dir))
