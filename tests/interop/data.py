"""A tiny data set, made as anybody's is: captured from a random LLaVA, built, exported.

ROOT/
  model, images, queries.json     a LLaVA of 4 layers, 32 wide; queries on four pictures
  store                           all positions of them, in float16
  dataset                         built of it
  PEER/export, PEER/code.py       what a trainer reads, and the code that `export` printed for it
  PEER/mlp_in                     the same with `--x-site mlp_in`
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch
from photographs import save_photographs
from safetensors.torch import load_file, save_file

from capture.model.tiny_model import make_tiny_llava

N_LAYERS, WIDTH = 4, 32
QUERIES = (
    "Describe this image.",
    "What is in the foreground, and what is behind it?",
    "Is there a {thing} in this image? Answer yes or no.",
    "How many {thing}s can you count, from the left to the right?",
)
THINGS = ("cat", "car", "cup", "door", "tree", "bird", "cloud", "lamp", "boat", "stone")
BEFORE_CODE = "To train on it:\n\n"


def make_data(root: Path, n_things: int = len(THINGS)) -> None:
    """Make the model, the store and the dataset folder."""
    make_tiny_llava(root / "model", n_layers=N_LAYERS, hidden_size=WIDTH)
    _draw_norms(root / "model" / "model.safetensors")
    pictures = save_photographs(root / "images", 4)
    queries = [
        {"id": number, "image": image, "query": query.format(thing=thing)}
        for number, (thing, query, image) in enumerate(
            (thing, query, image)
            for thing in THINGS[:n_things]
            for query, image in zip(QUERIES, pictures, strict=True)
        )
    ]
    (root / "queries.json").write_text(json.dumps(queries), encoding="utf-8")
    inputs = ("--dataset", root / "queries.json", "--image-dir", root / "images")
    how = ("--positions", "all", "--dtype", "float16", "--n-targets", 2)
    llava_amber(
        *("capture", "--model", root / "model", *inputs, "--output-dir", root / "store", *how)
    )
    llava_amber("build", root / "store", root / "dataset")


def _draw_norms(weights: Path) -> None:
    """Give every layer a norm of its own before its MLP: a model that is made anew has all ones."""
    generator = torch.Generator().manual_seed(0)
    tensors = load_file(weights)
    for name, weight in tensors.items():
        if name.endswith("post_attention_layernorm.weight"):
            tensors[name] = weight + 0.3 * torch.randn(weight.shape, generator=generator)
    save_file(tensors, weights, metadata={"format": "pt"})


def export_for(root: Path, format_: str) -> None:
    """Export the data set in a trainer's layout, of both sites, and keep the code of the first."""
    folder = root / format_
    options = ("--format", format_, "--skip-first", "--chunk-rows", 400)
    llava_amber("export", root / "dataset", folder / "mlp_in", *options, "--x-site", "mlp_in")
    printed = llava_amber("export", root / "dataset", folder / "export", *options)
    _, _, code = printed.partition(BEFORE_CODE)
    (folder / "code.py").write_text(code, encoding="utf-8")


def llava_amber(*arguments: object) -> str:
    """Run a command of this project; return what it printed.

    Raises:
        SystemExit: it failed.
    """
    words = [str(argument) for argument in arguments]
    print(f"$ llava-amber {' '.join(words)}", flush=True)
    command = [sys.executable, "-m", "llava_amber_activations", "-q", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"llava-amber {words[0]} failed: {done.stderr.strip()}")
    return done.stdout
