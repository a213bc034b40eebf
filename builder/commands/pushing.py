"""The command that publishes a dataset folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llava_amber_activations.console.interruption import interruptible
from llava_amber_activations.extras import need_extras


def push(
    repo_id: Annotated[
        str, typer.Option(help="OWNER/NAME on the Hub; made where it does not exist.")
    ],
    dataset: Annotated[
        Path | None, typer.Argument(help="Dataset folder, or a folder of .pt files.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repo private.")] = False,
    token: Annotated[
        str | None,
        typer.Option(help="Access token.", show_default="of `hf auth login`, or HF_TOKEN"),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite", help="Push to a repo that is not a dataset of this project, too."
        ),
    ] = False,
    report: Annotated[
        bool,
        typer.Option(
            "--report",
            help="Upload the report, too, as report.html; pictures are in it where the data set "
            "holds them.",
        ),
    ] = False,
    activations_dir: Annotated[
        Path | None,
        typer.Option(
            help="DATASET, as the original upload script spells it.", show_default="DATASET"
        ),
    ] = None,
) -> None:
    """Verify a dataset folder and upload it to the Hub, with its card and its format's tag."""
    if (dataset is None) == (activations_dir is None):
        raise typer.BadParameter("give the dataset folder once: DATASET or --activations-dir")
    folder = dataset or activations_dir
    assert folder is not None
    from builder.asked.files_to_take import check_push

    check_push(folder, repo_id, token)
    if report:
        need_extras("--report", "report")
    if token is not None:
        typer.echo(
            "warning: other users and your shell's history can see a token on the command line; "
            "`hf auth login` or HF_TOKEN keeps it to yourself",
            err=True,
        )
    from builder.conversion import dataset_to_push
    from builder.push import push as push_folder

    with interruptible(
        lambda: (
            f"{repo_id} shows what it showed before, unless the push was all but done; what "
            "was sent is not sent again by the same command, which goes on with the rest"
        )
    ):
        to_push, converted = dataset_to_push(folder)
        if converted:
            typer.echo(f"{folder} holds .pt files: pushing {to_push}, which they were converted to")
        pushed = push_folder(
            to_push,
            repo_id,
            private=private or None,
            token=token,
            overwrite=overwrite,
            report=report,
            announce=typer.echo,
        )
    typer.echo(f"{pushed.url} (tag {pushed.tag}, commit {pushed.commit[:8]})")
