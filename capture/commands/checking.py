"""`recapture`, which holds a store against the model."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from capture.settings import NOT_GIVEN
from llava_amber_activations.cli.command_line import AsJson
from llava_amber_activations.extras import need_extras


def recapture_command(
    store: Annotated[Path, typer.Argument(help="Finished capture store.")],
    model: Annotated[str, typer.Option(help="Model: an id on the Hub, or a folder.")],
    image_dir: Annotated[
        list[str] | None,
        typer.Option(
            help="Folder that holds the samples' pictures, if they have any; of a mixture, one for "
            f"all, or one for each dataset in the order of the capture, {NOT_GIVEN} where one has "
            "none.",
            show_default="none",
            metavar="<path>",
        ),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="How many, drawn at random.")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="Of the draw.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Capture some samples of a store again, and compare every vector."""
    need_extras("recapture", "capture")
    from capture.beforehand import check_recapture

    folders = tuple(None if each == NOT_GIVEN else Path(each) for each in image_dir or ())
    check_recapture(store, model, folders)
    from accelerate import PartialState

    from capture.recapture import recapture

    again = recapture(
        store,
        model=model,
        image_dir=folders[0] if len(folders) == 1 else folders or None,
        n_samples=samples,
        seed=seed,
        device=PartialState().device,
    )
    if as_json:
        typer.echo(json.dumps({"path": str(store), "right": True, **asdict(again)}))
        return
    typer.echo(
        f"{store}: samples {', '.join(map(str, again.samples))} captured again; the largest "
        f"relative error is {again.largest_error:.1e}, {again.tolerance:.0e} is allowed"
    )
