"""The commands that look at a store or a dataset folder: check it, and say what it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from builder.commands.options import Revision
from llava_amber_activations.cli.command_line import AsJson
from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.extras import need_extras


def verify(
    context: typer.Context,
    path: Annotated[Path, typer.Argument(help="Capture store or dataset folder.")],
    recapture: Annotated[
        int,
        typer.Option(min=0, help="Then run `recapture` on so many random samples of a store."),
    ] = 0,
    model: Annotated[
        str | None,
        typer.Option(help="With --recapture, which needs it: the model.", show_default="none"),
    ] = None,
    image_dir: Annotated[
        list[str] | None,
        typer.Option(
            help="With --recapture: folder of the pictures, if there are any, as it takes it.",
            show_default="none",
            metavar="<path>",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="With --recapture: of the draw.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Check every checksum, row count and value; exit 1 naming the first thing wrong."""
    if recapture and model is None:
        raise typer.BadParameter("--recapture needs --model, and --image-dir if there are pictures")
    if not recapture and (model is not None or image_dir):
        raise typer.BadParameter("--model and --image-dir go with --recapture")
    if recapture:
        need_extras("--recapture", "capture")
    from builder.asked.dataset_to_read import check_verify

    try:
        check_verify(path, store_only=recapture > 0)
        from builder.verify import verify as verify_path

        found = verify_path(path)
    except ActivationsError as error:
        if as_json:
            typer.echo(json.dumps({"path": str(path), "right": False, "error": str(error)}))
        raise
    if as_json:
        typer.echo(json.dumps({"path": str(path), "right": True, **found.to_json()}))
    else:
        typer.echo(
            f"{path}: {found.kind}, {found.n_files} files, {found.n_rows} rows. "
            f"Right: {', '.join(found.checks)}"
        )
    if recapture:
        # Another package's command: known by its name alone.
        commands: Any = context.find_root().command
        again = commands.get_command(context, "recapture")
        again.callback(
            store=path,
            model=model,
            image_dir=image_dir,
            samples=recapture,
            seed=seed,
            as_json=as_json,
        )


def info(
    source: Annotated[
        str, typer.Argument(help="Capture store, dataset folder, or a dataset's id on the Hub.")
    ],
    revision: Revision = None,
    as_json: AsJson = False,
) -> None:
    """Say what a store or a dataset is: recipe, layers, rows, bytes, dtypes."""
    from builder.info import describe

    described = describe(source, revision)
    if as_json:
        typer.echo(json.dumps({"source": source, **described.to_json()}))
        return
    pairs = described.table()
    width = max(len(name) for name, _ in pairs)
    for name, value in pairs:
        typer.echo(f"{name:<{width}}  {value}")
