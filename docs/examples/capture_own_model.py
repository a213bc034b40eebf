"""Capture a model of your own on pictures of your own: one question about each picture.

python capture_own_model.py MODEL my-pictures out --query "What is this?"

The three commands are those that a shell would run; each is printed first.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path

from llava_amber_activations import Activations

PICTURES = {".jpg", ".jpeg", ".png", ".webp"}


def write_queries(image_dir: Path, query: str, path: Path) -> int:
    """Write a query file over every picture of a folder; return how many there are."""
    names = sorted(each.name for each in image_dir.iterdir() if each.suffix.lower() in PICTURES)
    entries = [
        {"id": number, "image": name, "query": query} for number, name in enumerate(names, start=1)
    ]
    path.write_text(json.dumps(entries, indent=2), encoding="utf-8")
    return len(entries)


def llava_amber(*arguments: str | Path) -> None:
    """Run a command of this project, and stop where it fails."""
    words = [str(argument) for argument in arguments]
    print(f"$ llava-amber {shlex.join(words)}", flush=True)
    subprocess.run([sys.executable, "-m", "llava_amber_activations", *words], check=True)


def main() -> None:
    """Capture as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="folder of a LLaVA-type model, or its id on the Hub")
    parser.add_argument("image_dir", type=Path, help="folder of pictures")
    parser.add_argument("out", type=Path, help="folder for the query file, the store, the dataset")
    parser.add_argument("--query", default="Describe this image.")
    parser.add_argument("--positions", default="last", help="which rows to keep of each sample")
    given = parser.parse_args()

    given.out.mkdir(parents=True, exist_ok=True)
    queries, store, dataset = (given.out / name for name in ("queries.json", "store", "dataset"))
    print(f"{write_queries(given.image_dir, given.query, queries)} pictures")
    inputs = ["--model", given.model, "--dataset", queries, "--image-dir", given.image_dir]
    llava_amber("capture", *inputs, "--output-dir", store, "--positions", given.positions)
    llava_amber("build", store, dataset)
    llava_amber("verify", dataset)

    batch = next(iter(Activations(dataset).batches(layer=0, batch_size=4)))
    for name in ("x", "targets"):
        print(name, list(batch[name].shape), batch[name].dtype)


if __name__ == "__main__":
    main()
