"""The options of live batches: those of a capture, in so far as they go with batches."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from capture.beforehand import check_dataset_folder
from capture.settings import CaptureSettings
from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.formats.dtypes import DType
from llava_amber_activations.formats.recipe import X_SITES, Always, Positions
from llava_amber_activations.parsing.checked_values import INT32_MAX, check_choice, check_number

# What a capture can be asked for, and batches cannot: why.
_NOT_LIVE = {
    "output_dir": "nothing is written",
    "force": "nothing is written, so that no disk can be too small",
    "layers": "batches and hook_batches say which layers they are of",
    "transcoders": "batches hold no features",
    "pool": "batches hold no features",
    "batch_size": "a batch's rows are said to batches and hook_batches, and the samples of a "
    "forward pass are samples_per_pass",
}
_OF_A_LOADED_MODEL = ("dtype", "revision", "device_map")
_NOWHERE = Path(os.devnull)


def check_options(options: Mapping[str, Any], *, is_loaded: bool, device: object) -> None:
    """Check that options are those of a capture, and go with batches.

    Args:
        is_loaded: whether the model is.
        device: where it is to go, where that was said.

    Raises:
        ActivationsError: one is not, or does not.
    """
    known = {each.name for each in dataclasses.fields(CaptureSettings)}
    for name in options:
        if name in _NOT_LIVE:
            raise ActivationsError(f"{name} does not go with live batches: {_NOT_LIVE[name]}")
        if name not in known:
            raise ActivationsError(
                f"LiveActivations has no option {name!r}: its options are those of a capture, "
                f"{', '.join(sorted(known - _NOT_LIVE.keys()))}"
            )
    given = [name for name in _OF_A_LOADED_MODEL if options.get(name) is not None]
    if is_loaded and (given or device is not None):
        raise ActivationsError(
            f"the model is loaded already, and {given[0] if given else 'device'} is decided by "
            "that: leave it out"
        )


def live_settings(
    model: str,
    dataset: Any,
    image_dir: Any,
    samples_per_pass: int | None,
    options: Mapping[str, Any],
) -> CaptureSettings:
    """Return what a capture of the same would be asked for, checked as its command line checks it.

    Args:
        dataset: a query file or `hf:` and a name, or a list of several.
        image_dir: folder of the pictures, or a list of one for each dataset.

    Raises:
        ActivationsError: a value is none that the option can have, or two do not go together.
    """
    given: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in options.items()
    }
    settings = CaptureSettings(
        model=model,
        dataset=_each(dataset, str),
        image_dir=_each(image_dir, Path),
        output_dir=_NOWHERE,
        batch_size=samples_per_pass,
        **given,
    )
    for name, choices in (
        ("positions", get_args(Positions)),
        ("always", get_args(Always)),
        ("x_site", X_SITES),
        ("dtype", get_args(DType)),
        ("store_dtype", get_args(DType)),
        ("on_error", ("stop", "skip")),
        ("device_map", ("auto",)),
    ):
        check_choice(name, getattr(settings, name), choices)
    check_number("samples_per_pass", samples_per_pass, 1, INT32_MAX)
    for name in ("n_targets", "sample_positions", "max_new_tokens", "max_samples", "chunk_samples"):
        check_number(name, getattr(settings, name), 1, INT32_MAX)
    for name in ("seed", "num_workers"):
        check_number(name, getattr(settings, name), 0, INT32_MAX)
    _check_together(settings)
    for asked in settings.benchmarks:
        check_dataset_folder(asked)
    return settings


def _check_together(settings: CaptureSettings) -> None:
    generated = settings.positions == "generated"
    if settings.max_new_tokens is not None and not generated:
        raise ActivationsError("max_new_tokens goes with positions='generated': leave it out")
    if generated and any(asked.answer_column is not None for asked in settings.benchmarks):
        raise ActivationsError(
            "answer_column gives the model its answers, and positions='generated' has it write "
            "them: leave one of them out"
        )
    if settings.logprobs and not settings.keeps_answers:
        raise ActivationsError(
            f"logprobs is of the tokens of answers, and positions={settings.positions!r} keeps "
            "none of them here: leave it out"
        )


def _each(given: Any, kind: type[str] | type[Path]) -> Any:
    """Return one name or path, or a tuple of several."""
    if given is None:
        return None
    if isinstance(given, str | Path):
        return kind(given)
    return tuple(None if each is None else kind(each) for each in given)
