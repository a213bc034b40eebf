"""What `mlp_in` of a `resid_mid` data set costs: reading it, and the proof of it at capture.

    python tests/benchmarks/both_sites.py SCRATCH

Reading: one epoch in random order, of vectors that are all touched, beside the same at the data's
own site. Capture: `capture_cpu.py`'s model of middle size, beside the same model without norms, in
which nothing is looked at.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import datasets
import torch
import transformers
from capture_cpu import BATCH_SIZE, N_SAMPLES, make_input, ours
from ground import BATCH, LAYER, Ground
from made_store import Shape
from measuring import Line, alternate, rates, run_section, touched

from builder.build import build
from capture.model.load import CaptureModel, load_model
from capture.model.tiny_model import make_tiny_llava
from llava_amber_activations import Activations, activation_batches
from llava_amber_activations.store.norms_file import write_norms
from llava_amber_activations.store.sums import write_sums
from llava_amber_activations.vectors.norms import Norms

READING, CAPTURE = "Reading mlp_in", "Proving it at capture"
SITES = ("resid_mid", "mlp_in")


def measure(scratch: Path, repeats: int) -> list[Line]:
    """Measure both."""
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    return [*_reading(Ground(scratch), repeats), *_capture(scratch, repeats)]


def _with_norms(ground: Ground, shape: Shape) -> Path:
    """A data set beside the norms of a model that computes in float16, as its store says."""
    folder = ground.scratch / "dataset-with-norms"
    if not folder.exists():
        store = ground.store(shape)
        draw = torch.Generator().manual_seed(0)
        weight = torch.rand(shape.n_layers, shape.width, generator=draw).add(0.5).half()
        write_norms(store, Norms("rms", (1e-5,) * shape.n_layers, "float16", weight))
        write_sums(store)
        build(store, folder, configs=("all_layers",))
    return folder


def _reading(ground: Ground, repeats: int) -> list[Line]:
    shape = Shape()
    acts = Activations(_with_norms(ground, shape))
    cache = ground.scratch / "cache"
    options = {"batch_size": BATCH, "shuffle": True, "seed": 0}
    layer, hooks = shape.layer_row_bytes, shape.row_bytes
    lines = []
    for work, row_bytes, open_at in (
        (
            "one layer and 16 targets, from the shards",
            layer,
            lambda site: acts.batches(LAYER, x_site=site, **options),
        ),
        (
            "one layer and 16 targets, prepared",
            layer,
            lambda site: activation_batches(
                acts.dataset(LAYER, x_site=site, cache_dir=cache), **options
            ),
        ),
        (
            "hook_batches of all layers, from the shards",
            hooks,
            lambda site: acts.hook_batches(x_site=site, **options),
        ),
        (
            "hook_batches of all layers, prepared",
            hooks,
            lambda site: acts.hook_batches(x_site=site, prepared=True, cache_dir=cache, **options),
        ),
    ):
        seconds = alternate({site: touched(open_at(site)) for site in SITES}, repeats)
        own, computed = (rates(shape.rows * row_bytes / 1e6, seconds[site]) for site in SITES)
        lines.append(Line(READING, work, "reading resid_mid", "MB/s", computed, own))
    return lines


def _capture(scratch: Path, repeats: int) -> list[Line]:
    path = make_tiny_llava(scratch / "model", hidden_size=512, image_size=336)
    queries = make_input(scratch, N_SAMPLES)
    model = load_model(str(path), dtype="float32", device=torch.device("cpu"))
    assert model.norms is not None
    lines = []
    for positions in ("last", "all"):

        def captured(by: CaptureModel, positions: str = positions) -> Callable[[], None]:
            return ours(by, queries, scratch / "images", scratch / "out", positions, BATCH_SIZE)

        seconds = alternate(
            {"with": captured(model), "without": captured(dataclasses.replace(model, norms=None))},
            repeats,
            before=lambda: shutil.rmtree(scratch / "out", ignore_errors=True),
        )
        work = f"{N_SAMPLES} samples, {positions}, chunks of {BATCH_SIZE}"
        figures = (rates(N_SAMPLES, seconds[name]) for name in ("with", "without"))
        lines.append(Line(CAPTURE, work, "capture without it", "samples/s", *figures))
    return lines


if __name__ == "__main__":
    run_section(measure, __doc__)
