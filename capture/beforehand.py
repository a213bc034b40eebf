"""What a capture is asked for, checked within moments: nothing here loads torch or the model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from capture.model.named import NamedModel, look_up_model
from capture.samples.benchmark import Benchmark, read_benchmark
from capture.samples.queries import Query
from capture.settings import NOT_GIVEN, BenchmarkAsked, CaptureSettings
from capture.sink.settled import check_begun
from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.files.leftovers import is_empty_or_missing
from llava_amber_activations.files.room import check_room
from llava_amber_activations.formats.layers import check_kept, check_n_targets
from llava_amber_activations.formats.recipe import HF_PREFIX
from llava_amber_activations.store.layout import is_store

_ITEM_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}


def check_capture(settings: CaptureSettings) -> Benchmark:
    """Check what can be checked of a capture before torch is imported, and read its queries.

    Raises:
        ActivationsError: an input is missing or unusable, the store holds something else or was
            begun otherwise, or its disk has too little room.
    """
    if settings.transcoders is not None and not settings.transcoders.is_dir():
        raise ActivationsError(f"there is no such folder of transcoders: {settings.transcoders}")
    check_place(settings.output_dir)
    for asked in settings.benchmarks:
        check_dataset_folder(asked)
    model = look_up_model(settings.model, settings.revision)
    if model.n_layers is not None:
        check_n_targets(settings.n_targets, model.n_layers)
        check_kept(settings.layers, model.n_layers)
    benchmark = read_benchmark(settings)
    check_begun(settings, benchmark)
    if not is_store(settings.output_dir):
        check_capture_room(settings, benchmark.queries, model)
    return benchmark


def check_place(store: Path) -> None:
    """Check that a store can be begun, or gone on with, at a place.

    Raises:
        ActivationsError: something else is there.
    """
    # In this order: a rank of this launch may begin the store between the two.
    if not is_empty_or_missing(store) and not is_store(store):
        raise ActivationsError(
            f"{store} holds something that is not a capture store: give an empty or a new folder"
        )


def check_recapture(store: Path, model: str, image_dirs: Sequence[Path | None]) -> None:
    """Check what can be checked of a recapture before torch is imported.

    Raises:
        ActivationsError: there is no such store, model or folder.
    """
    if not is_store(store):
        raise ActivationsError(f"{store} is not a capture store, which alone can be recaptured")
    for image_dir in image_dirs:
        if image_dir is not None and not image_dir.is_dir():
            raise ActivationsError(f"the image folder {image_dir} does not exist")
    look_up_model(model)


def check_capture_room(
    settings: CaptureSettings, queries: Sequence[Query], model: NamedModel
) -> None:
    """Check that the disk has room for what a capture writes at least.

    Raises:
        ActivationsError: it has not.
    """
    if model.n_layers is None or model.hidden_size is None:
        return
    dtype = settings.store_dtype or settings.dtype or "float16"
    n_kept = model.n_layers if settings.layers is None else len(settings.layers)
    row = 2 * n_kept * model.hidden_size * _ITEM_BYTES[dtype]
    n_rows = sum(_least_rows(query, settings, model) for query in queries)
    what = f"a capture of {len(queries)} samples"
    check_room(settings.output_dir, n_rows * row, what, force=settings.force)


def _least_rows(query: Query, settings: CaptureSettings, model: NamedModel) -> int:
    """Return how many rows a sample has at least."""
    if settings.positions == "answer" and query.answer is None:
        return 0
    if settings.positions not in ("all", "image"):
        return 1
    if query.image is None:
        return 1 if settings.positions == "all" else 0
    tokens = model.image_tokens or 1
    return tokens if settings.sample_positions is None else min(tokens, settings.sample_positions)


def check_dataset_folder(asked: BenchmarkAsked) -> None:
    """Check a dataset that is named as a path, which `datasets` takes seconds to say.

    Raises:
        ActivationsError: there is no such folder, or an option does not go with a query file.
    """
    name = str(asked.dataset)
    if not name.startswith(HF_PREFIX):
        if asked.split is not None:
            raise ActivationsError(
                f"--split goes with --dataset {HF_PREFIX}NAME, and {name} is a query file: of "
                f"several datasets, give it {NOT_GIVEN}"
            )
        return
    folder = name.removeprefix(HF_PREFIX)
    is_path = folder.startswith((".", "/", "~")) or folder.count("/") > 1
    if is_path and not Path(folder).exists():
        raise ActivationsError(f"cannot open the dataset {folder}: there is no such folder")
