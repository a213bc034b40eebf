"""Options and arguments that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

MaxShardSize = Annotated[str, typer.Option(help="Most bytes of a Parquet file, uncompressed.")]
NTargets = Annotated[
    int | None, typer.Option(min=1, help="Targets of a layer.", show_default="as captured")
]
Revision = Annotated[
    str | None,
    typer.Option(help="Branch, tag or commit of the dataset on the Hub.", show_default="main"),
]
Source = Annotated[str, typer.Argument(help="Dataset folder, or a dataset's id on the Hub.")]


def nothing_kept(dataset: Path) -> str:
    """Return what an interrupted command says where it keeps nothing of what it made."""
    return f"nothing of {dataset} is kept, and the same command makes it from the beginning"
