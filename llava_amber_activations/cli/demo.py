"""The demo: every step of the pipeline on a tiny random LLaVA, with what to run for real."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import datasets
import torch
import transformers
from PIL import Image, ImageDraw

from builder.build import build
from builder.export import export
from builder.info import info
from builder.verify import verify
from capture.model.tiny_model import make_tiny_llava
from capture.run import capture
from capture.settings import CaptureSettings
from llava_amber_activations.batches.activation_batches import activation_batches
from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.files.leftovers import is_empty_or_missing
from llava_amber_activations.loading import load_activations

_QUERIES = ("Describe this image.", "What colour is the shape?")
_SHAPES = ("red", "orange", "gold", "green", "teal", "blue", "purple", "black")

_FOR_REAL = """
For real, on AMBER with LLaVA-1.5-7B (a GPU with 24 GB):

  llava-amber capture --model llava-hf/llava-1.5-7b-hf --dataset query_generative.json \\
      --image-dir AMBER/image --output-dir store --n-targets 16
  llava-amber build store dataset
  llava-amber verify dataset
"""


def run_demo(folder: Path, say: Callable[[str], object]) -> None:
    """Run every step into `folder` and say what each one made.

    Raises:
        ActivationsError: `folder` holds something.
    """
    if not is_empty_or_missing(folder):
        raise ActivationsError(f"{folder} already holds something: give a new or an empty folder")
    began = time.perf_counter()
    # The demo's own account is what is to be read, not a bar for each of many small steps.
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    model = make_tiny_llava(folder / "model")
    queries = _draw_pictures(folder / "images")
    (folder / "queries.json").write_text(json.dumps(queries, indent=2), encoding="utf-8")
    say(f"model     {model}: a random LLaVA of 32 layers, 64 wide")
    say(f"pictures  {folder / 'images'}: {len(_SHAPES)}, with {len(queries)} queries on them")

    settings = CaptureSettings(
        model=str(model),
        dataset=folder / "queries.json",
        image_dir=folder / "images",
        output_dir=folder / "store",
    )
    result = capture(settings, device=torch.device("cpu"))
    n_rows = sum(record.n_rows for record in result.records or [])
    say(f"capture   {folder / 'store'}: {n_rows} rows, 64 vectors each")

    dataset = folder / "dataset"
    build(folder / "store", dataset)
    found = verify(dataset)
    say(f"build     {dataset}: {found.n_files} files. verify: {found.checks}")

    splits = datasets.load_dataset(str(dataset), cache_dir=str(folder / "cache"))
    names = list(splits)
    say(f"load      load_dataset({str(dataset)!r}): splits {names[0]} … {names[-1]}")
    row = splits["L5"][0]
    say(f"          L5[0]: x of {len(row['x'])}, {len(row['targets'])} targets, {row['image']}")

    layer = load_activations(dataset, layer=5, n_targets=4, streaming=True)
    batch = next(iter(activation_batches(layer, batch_size=8, shuffle=True, seed=0)))
    shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in batch.items())
    say(f"batch     {shapes}")

    written = export(dataset, folder / "pt", layout="layers", batch_size=8)
    say(f"export    {folder / 'pt'}: {written.n_files} files such as L5/batch_0_x.pt")
    say("info")
    for name, value in info(dataset):
        say(f"          {name}: {value}")
    say(f"done in {time.perf_counter() - began:.0f} s")
    say(_FOR_REAL)


def _draw_pictures(folder: Path) -> list[dict[str, object]]:
    """Draw one shape a picture, and ask every query of each."""
    folder.mkdir(parents=True)
    queries: list[dict[str, object]] = []
    for number, colour in enumerate(_SHAPES):
        picture = Image.new("RGB", (96, 64 + 8 * number), "white")
        draw = ImageDraw.Draw(picture)
        draw.regular_polygon((48, 32, 28), n_sides=3 + number, fill=colour)
        picture.save(folder / f"DEMO_{number}.png")
        for query in _QUERIES:
            image = f"DEMO_{number}.png"
            queries.append({"id": len(queries) + 1, "image": image, "query": query})
    return queries
