"""What the demo begins with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llava_amber_activations.extras import need_extras


def demo_input(
    folder: Annotated[Path, typer.Argument(help="Folder for the model, pictures and queries.")],
) -> None:
    """Make a tiny random LLaVA, a few pictures and a query file, to try things on."""
    need_extras("demo-input", "capture")
    from capture.model.tiny_model import make_tiny_llava
    from capture.samples.drawn import draw_benchmark

    model = make_tiny_llava(folder / "model")
    n_pictures, n_queries = draw_benchmark(folder)
    typer.echo(f"{model}: a random LLaVA of 32 layers, 64 wide")
    typer.echo(f"{folder}: {n_pictures} pictures in images, {n_queries} queries in queries.json")
