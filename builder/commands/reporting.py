"""The command that draws a page of what a dataset looks like."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from builder.asked.report_asked import DEFAULT_MAX_BYTES
from builder.commands.options import Revision, Source
from llava_amber_activations.console.interruption import interruptible
from llava_amber_activations.console.sizes import readable_size


def report(
    source: Source,
    out: Annotated[Path, typer.Argument(help="The page: a file such as report.html.")],
    image_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the pictures, which the page then holds, small.",
            show_default="those in the data set, if any",
        ),
    ] = None,
    max_bytes: Annotated[
        str,
        typer.Option(
            help="Most bytes of vectors that are read; whole samples are drawn that fit, and "
            "where few would, layers evenly apart."
        ),
    ] = DEFAULT_MAX_BYTES,
    revision: Revision = None,
) -> None:
    """Draw what a data set looks like, as one page that asks nobody for anything."""
    from builder.asked.report_asked import check_report
    from llava_amber_activations.sources.fetched import fetched_bytes

    before = fetched_bytes()
    opened, size = check_report(source, out, image_dir, max_bytes, revision)
    from builder.report.report import make_report
    from llava_amber_activations.files.whole import write_text

    with interruptible(lambda: f"{out} is as it was before"):
        made = make_report(opened, max_bytes=size, image_dir=image_dir, fetched_before=before)
        write_text(out, made.text)
    typer.echo(f"{out}: {readable_size(len(made.text.encode()))}. {made.drawn}")
