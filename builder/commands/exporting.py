"""The command that writes `.pt` files, and what other trainers read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import typer

from builder.asked.handover_asked import HandoverAsked
from builder.commands.options import NTargets, Revision, Source
from llava_amber_activations.console.interruption import interruptible
from llava_amber_activations.formats.recipe import X_SITES, XSite


def export(
    source: Source,
    out: Annotated[Path, typer.Argument(help="Folder for the .pt files.")],
    format_: Annotated[
        Literal["layers", "samples", "llamascopium", "saelens", "crosslayer-coding"],
        typer.Option(
            "--format",
            help="L0/batch_0_x.pt and batch_0_y.pt, or sample_0000.pt; or what that trainer reads.",
        ),
    ],
    layers: Annotated[
        str | None, typer.Option(help="Such as 0-30 or 0,5,10-12.", show_default="all")
    ] = None,
    n_targets: NTargets = None,
    first_target: Annotated[
        int, typer.Option(min=0, max=1, help="Targets start at the next layer (1) or at L (0).")
    ] = 1,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Most samples of a batch file; all of equal length.")
    ] = 64,
    pad_targets: Annotated[
        bool, typer.Option(help="Append zero tensors up to --n-targets.")
    ] = False,
    x_site: Annotated[
        XSite | None,
        typer.Option(
            help="Where x is read: as captured; or, of a resid_mid capture, mlp_in, computed by "
            "the model's norms.",
            show_default="as captured",
            # As they are written down, where the names of options have hyphens.
            metavar=f"<{'|'.join(X_SITES)}>",
        ),
    ] = None,
    dtype: Annotated[
        Literal["float16", "bfloat16", "float32"] | None,
        typer.Option(
            help="Of the vectors; another than they were captured in may round.",
            show_default="as captured; for a trainer as the data set holds them",
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="For a trainer: of the order.", show_default="0")
    ] = None,
    chunk_rows: Annotated[
        int | None,
        typer.Option(
            min=1, help="For a trainer: fewest rows of a file.", show_default="4096 or 16384"
        ),
    ] = None,
    skip_first: Annotated[
        bool, typer.Option("--skip-first", help="For a trainer: leave out each position 0.")
    ] = False,
    revision: Revision = None,
) -> None:
    """Write the files that existing trainers read."""
    of_trainer = {
        "--seed": seed,
        "--chunk-rows": chunk_rows,
        "--skip-first": skip_first or None,
    }
    if format_ != "layers" and format_ != "samples":
        of_pt = {
            "--n-targets": n_targets,
            "--first-target": first_target if first_target != 1 else None,
            "--batch-size": batch_size if batch_size != 64 else None,
            "--pad-targets": pad_targets or None,
        }
        _refuse(of_pt, f"--format {format_}")
        asked = HandoverAsked(
            format_, layers, x_site, dtype, seed or 0, chunk_rows, skip_first=skip_first
        )
        _hand_over(source, out, asked, revision)
        return
    _refuse(of_trainer, f"--format {format_}")
    from builder.asked.dataset_to_read import check_export

    check_export(
        *(source, out, format_, layers, n_targets, first_target, pad_targets, revision),
        *(x_site, dtype),
    )
    from builder.export import export as export_files

    with interruptible(
        lambda: f"the files that are whole are kept in {out}, and the same command writes the rest"
    ):
        result = export_files(
            source,
            out,
            layout=format_,
            layers=layers,
            n_targets=n_targets,
            first_target=first_target,
            batch_size=batch_size,
            pad_targets=pad_targets,
            x_site=x_site,
            dtype=dtype,
            revision=revision,
        )
    typer.echo(f"{out}: {result.n_files} files of {result.contents}, {result.n_written} new")


def _refuse(options: Mapping[str, object], with_what: str) -> None:
    """Refuse options that a format does not have.

    Raises:
        typer.BadParameter: one was given.
    """
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise typer.BadParameter(f"{', '.join(given)} cannot go with {with_what}")


def _hand_over(source: str, out: Path, asked: HandoverAsked, revision: str | None) -> None:
    from builder.asked.dataset_to_read import check_hand_over

    check_hand_over(source, out, asked, revision)
    from builder.handover.hand_over import hand_over

    with interruptible(
        lambda: f"the chunks that are whole are kept in {out}, and the same command goes on"
    ):
        result = hand_over(source, out, asked, revision=revision)
    left_out = [
        f"{count} {why}"
        for count, why in (
            (result.n_skipped, "first positions left out"),
            (result.n_left_out, "rows left out, so that all chunks are of one size"),
        )
        if count
    ]
    typer.echo(
        f"{out}: {result.n_rows} rows of {len(result.note.layers)} layers in {result.n_chunks} "
        f"chunks, {result.n_written} new{''.join(f'; {each}' for each in left_out)}\n"
        f"To train on it:\n\n{result.code}"
    )
