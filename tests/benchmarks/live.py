"""Batches straight from the model, against its bare forward pass and against SAELens' own store.

    python tests/benchmarks/live.py SCRATCH --repeats 5

A LLaVA with random weights of SmolLM2-135M's depth and width (30 layers, 576 wide), pictures of 64
patches, all positions, float32 on a CPU. The bare pass is the model without its head over inputs
that were prepared before, eight samples at once, as live passes have them: no hook, no picture
read, no prompt made. Live reads the pictures, makes the prompts, taps, checks, mixes and cuts
batches of 256 rows, in the same process and with the same threads, and its batches are touched as a
trainer would. A pass of ours ends behind the last layer that is asked for; the bare one is whole.

SAELens' `ActivationsStore`, in a virtual environment of its own (`peer.py`), runs the same language
model over texts; `live_peer.py` says what is compared.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch
import transformers
from capture_cpu import make_input, processor
from live_peer import saelens_lines
from measuring import Line, alternate, rates, table, touched

from capture import CaptureModel, LiveActivations, load_model
from capture.model.tiny_model import make_tiny_llava
from capture.passes.preparation import plan_batches, prepared_batches
from capture.pipeline import PassSetup
from llava_amber_activations.store.layout import recipe_chunks

N_LAYERS, WIDTH, IMAGE_SIZE = 30, 576, 112
N_SAMPLES, PER_PASS, BATCH = 24, 8, 256
N_TARGETS = 4
# The last layer that has so many targets: its passes are whole. Those of an early one end sooner.
LAYER, EARLY_LAYER = N_LAYERS - 1 - N_TARGETS, 5
MIX_ROWS = 1024


def bare(setup: PassSetup, chunks: list[range], queries: list) -> tuple[Callable[[], None], int]:
    """Return the bare pass over what live runs, prepared, and how many positions that is."""
    model = setup.model
    plans = [
        plan
        for number, chunk in enumerate(chunks)
        for plan in plan_batches(number, [queries[s] for s in chunk], setup.prompts, PER_PASS)
    ]
    prepared = prepared_batches(
        plans,
        model.processor,
        setup.source,
        for_generation=False,
        num_workers=0,
        image_token_id=model.image_token_id,
    )
    inputs = [model.on_device(batch.inputs) for batch in prepared if batch.inputs is not None]

    @torch.inference_mode()
    def run() -> None:
        for each in inputs:
            model.body(**each, use_cache=False)

    return run, sum(int(each["attention_mask"].sum()) for each in inputs)


def live_lines(model: CaptureModel, folder: Path, repeats: int) -> list[Line]:
    """Measure the ways of taking batches beside the bare pass."""
    live = LiveActivations(
        model,
        make_input(folder, N_SAMPLES),
        image_dir=folder / "images",
        positions="all",
        samples_per_pass=PER_PASS,
        mix_rows=MIX_ROWS,
    )
    opened = live._live.opened
    run_bare, n_positions = bare(
        opened.setup, recipe_chunks(opened.recipe), opened.benchmark.queries
    )
    options = {"batch_size": BATCH}
    layer = {"layer": LAYER, "n_targets": N_TARGETS, **options}
    early = layer | {"layer": EARLY_LAYER}
    asked, mixed = f"and {N_TARGETS} targets", f"{MIX_ROWS} rows mixed"
    ways = {
        f"layer {LAYER} {asked}, in order": live.batches(**layer),
        f"layer {LAYER} {asked}, {mixed}": live.batches(**layer, shuffle=True),
        f"layer {EARLY_LAYER} {asked}, {mixed}": live.batches(**early, shuffle=True),
        f"x and mlp_out of all {N_LAYERS} layers, {mixed}": live.hook_batches(
            **options, shuffle=True
        ),
    }
    candidates: dict[str, Callable[[], object]] = {"bare": run_bare}
    candidates |= {name: touched(batches) for name, batches in ways.items()}
    seconds = alternate(candidates, repeats)
    bare_rates = rates(n_positions, seconds.pop("bare"))
    return [
        Line(
            "Live",
            name,
            "the bare forward pass",
            "positions/s",
            rates(n_positions, taken),
            bare_rates,
            ">= 0.9",
        )
        for name, taken in seconds.items()
    ]


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--beside", choices=("bare", "saelens"), help="one of the two alone")
    arguments = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    folder: Path = arguments.scratch
    folder.mkdir(parents=True, exist_ok=True)
    path = make_tiny_llava(
        folder / "model", n_layers=N_LAYERS, hidden_size=WIDTH, image_size=IMAGE_SIZE
    )
    model = load_model(str(path), dtype="float32", device=torch.device("cpu"))
    began = time.perf_counter()
    lines: list[Line] = []
    if arguments.beside != "saelens":
        lines += live_lines(model, folder, arguments.repeats)
    if arguments.beside != "bare":
        lines += saelens_lines(model, folder, arguments.repeats)
    print(f"{date.today()}, {processor()}, {torch.get_num_threads()} threads, ", end="")
    print(f"Python {platform.python_version()}, torch {torch.__version__}, transformers ", end="")
    print(f"{transformers.__version__}; medians of {arguments.repeats} (lowest–highest), ", end="")
    print(f"{time.perf_counter() - began:.0f} s in all\n")
    print(table(lines))


if __name__ == "__main__":
    main()
