"""2 Cold start: from a new process to the first batch of 64 rows of one layer, page cache warm.

    python tests/benchmarks/cold_start.py SCRATCH

Everything that a user waits for is in it: starting Python, imports, opening, reading, touching.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from ground import BATCH, LAYER, Ground
from measuring import Line, alternate, run_section

SECTION = "2 Cold start"

_OBJECT = """
from llava_amber_activations import Activations
batch = next(iter(Activations("{folder}").batches({layer}, batch_size={size}, shuffle=True)))
batch["x"].sum(), batch["targets"].sum()
"""

_OURS = """
from llava_amber_activations import activation_batches, {function}
batch = next(iter(activation_batches({call}, batch_size={size}, shuffle=True)))
batch["x"].sum(), batch["targets"].sum()
"""

_TORCH_LOAD = """
import torch
x = torch.load("{pt}/batch_3_x.pt", weights_only=True)["x"]
targets = torch.load("{pt}/batch_3_y.pt", weights_only=True)["targets"]
x.sum(), [target.sum() for target in targets]
"""

_SAFETENSORS = """
import torch
from safetensors.torch import load_file
tensors = load_file("{file}")
rows = torch.randperm(len(tensors["x"]))[:{size}]
tensors["x"][rows].sum(), tensors["targets"][rows].sum()
"""

_WITH_FORMAT = """
import datasets
dataset = datasets.load_dataset("{folder}", "L{layer}", split="L{layer}", cache_dir="{cache}")
batch = dataset.with_format("torch").shuffle(seed=0)[:{size}]
batch["x"].sum(), batch["targets"].sum()
"""


def measure(scratch: Path, repeats: int) -> list[Line]:
    """Measure ours, with and without anything prepared, against the others."""
    ground = Ground(scratch)
    folder = ground.dataset()
    own_split = ground.dataset(configs=("default",))
    cache = scratch / "cache"
    load = f'load_activations("{folder}", layer={LAYER}'
    programs = {
        "object": _OBJECT.format(folder=folder, layer=LAYER, size=BATCH),
        "streaming": _OURS.format(
            function="load_activations", call=f"{load}, streaming=True)", size=BATCH
        ),
        "prepared": _OURS.format(
            function="load_activations", call=f'{load}, cache_dir="{cache}")', size=BATCH
        ),
        "torch.load": _TORCH_LOAD.format(pt=ground.layers(BATCH) / f"L{LAYER}"),
        "safetensors": _SAFETENSORS.format(file=ground.safetensors(), size=BATCH),
        "with_format": _WITH_FORMAT.format(folder=own_split, cache=cache, layer=LAYER, size=BATCH),
    }

    def run(program: str) -> None:
        subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)

    seconds = alternate(
        {name: lambda program=program: run(program) for name, program in programs.items()},
        max(repeats, 9),
    )
    ours, torch_load = seconds["object"], seconds["torch.load"]
    work = "to the first batch of a layer"
    return [
        Line(SECTION, work, "torch.load", "s", ours, torch_load, "<= 1"),
        Line(SECTION, work, "safetensors", "s", ours, seconds["safetensors"]),
        Line(SECTION, work, "with_format, prepared", "s", ours, seconds["with_format"]),
        Line(
            SECTION,
            "the same by load_activations(streaming=True)",
            "torch.load",
            "s",
            seconds["streaming"],
            torch_load,
            note="imports datasets",
        ),
        Line(
            SECTION,
            "the same by load_activations, prepared",
            "with_format, prepared",
            "s",
            seconds["prepared"],
            seconds["with_format"],
            note="both after an earlier run prepared it",
        ),
    ]


if __name__ == "__main__":
    run_section(measure, __doc__)
