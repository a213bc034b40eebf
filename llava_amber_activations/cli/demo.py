"""The demo: the commands of the pipeline on a tiny random LLaVA, each printed before it is run."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from pathlib import Path

import typer

from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.files.leftovers import is_empty_or_missing

_FOR_REAL = """
For real, on AMBER with LLaVA-1.5-7B (a GPU with 24 GB):

  llava-amber capture --model llava-hf/llava-1.5-7b-hf --dataset query_generative.json \\
      --image-dir AMBER/image --output-dir store --n-targets 16
  llava-amber build store dataset
  llava-amber verify dataset
  llava-amber report dataset report.html --image-dir AMBER/image
"""


def run_demo(folder: Path, app: typer.Typer) -> None:
    """Run every step into `folder`, and say what each one was told.

    Args:
        app: whose commands are run.

    Raises:
        ActivationsError: `folder` holds something.
    """
    if not is_empty_or_missing(folder):
        raise ActivationsError(f"{folder} already holds something: give a new or an empty folder")
    began = time.perf_counter()
    store, dataset = str(folder / "store"), str(folder / "dataset")
    _run(app, ["demo-input", str(folder)])
    _run(
        app,
        [
            *(
                "capture",
                "--model",
                str(folder / "model"),
                "--dataset",
                str(folder / "queries.json"),
            ),
            *("--image-dir", str(folder / "images"), "--output-dir", store),
        ],
    )
    _run(app, ["build", store, dataset])
    _run(app, ["verify", dataset])
    _read(dataset, folder / "cache")
    layers = ["--format", "layers", "--batch-size", "8"]
    _run(app, ["export", dataset, str(folder / "pt"), *layers])
    _run(app, ["info", dataset])
    page = folder / "report.html"
    _run(app, ["report", dataset, str(page), "--image-dir", str(folder / "images")])
    typer.echo(f"\ndone in {time.perf_counter() - began:.0f} s. To look at what was made: {page}")
    typer.echo(_FOR_REAL)


def _run(app: typer.Typer, arguments: Sequence[str]) -> None:
    typer.echo(f"\n$ llava-amber {shlex.join(arguments)}")
    app(list(arguments), standalone_mode=False)


def _read(dataset: str, cache: Path) -> None:
    """Open the dataset as `datasets` does, and take a batch as a trainer does."""
    import datasets

    from llava_amber_activations.activations import Activations

    datasets.disable_progress_bars()
    typer.echo(f"\n>>> load_dataset({dataset!r})")
    splits = datasets.load_dataset(dataset, cache_dir=str(cache))
    names = list(splits)
    row = splits["L5"][0]
    typer.echo(f"splits {names[0]} … {names[-1]}")
    typer.echo(f"L5[0]: x of {len(row['x'])}, {len(row['targets'])} targets, {row['image']}")
    typer.echo(f"\n>>> acts = Activations({dataset!r})")
    typer.echo(">>> next(iter(acts.batches(layer=5, n_targets=4, batch_size=8, shuffle=True)))")
    batches = Activations(dataset).batches(layer=5, n_targets=4, batch_size=8, shuffle=True)
    batch = next(iter(batches))
    typer.echo(", ".join(f"{name} {list(tensor.shape)}" for name, tensor in batch.items()))
