"""Capture of this checkout against another one of the project, such as an older commit.

    git worktree add ../before 57c21f4
    python tests/benchmarks/before_and_now.py ../before           (about 10 minutes)

The two run in processes of their own, in turn, with the same libraries, on the same files: a random
LLaVA of 32 layers of 512 that sees 576 patches. A time is that of a whole `capture`, the model's
loading and the proof of its structure included; the model is loaded alone as well, to tell the two
apart. What both wrote is compared byte by byte, but for the recipe.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

import torch
import transformers
from capture_cpu import make_input, processor, spread

from capture.model.tiny_model import make_tiny_llava

# Reads "all OUT" or "load -", and answers with seconds.
_SIDE = """
import sys, time
from pathlib import Path
import torch
from transformers.utils import logging
from capture.model.load import load_model
from capture.run import capture
from capture.settings import CaptureSettings

logging.disable_progress_bar()
model, dataset, images, batch_size = sys.argv[1:]
cpu = torch.device("cpu")
for line in sys.stdin:
    positions, out = line.split()
    began = time.perf_counter()
    if positions == "load":
        load_model(model, dtype="float32", device=cpu, shown=False)
    else:
        capture(
            CaptureSettings(
                model=model, dataset=dataset, image_dir=Path(images), output_dir=Path(out),
                positions=positions, batch_size=int(batch_size), chunk_samples=int(batch_size),
            ),
            device=cpu,
        )
    print("took", time.perf_counter() - began, flush=True)
"""


class Side:
    """One checkout, in a process of its own that waits for what it is to measure."""

    def __init__(self, checkout: Path, *arguments: object) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SIDE, *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": str(checkout.resolve()), "PYTHONSAFEPATH": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def seconds(self, what: str, out: object = "-") -> float:
        """Have it measure one thing."""
        assert self._process.stdin is not None and self._process.stdout is not None
        print(what, out, file=self._process.stdin, flush=True)
        for line in self._process.stdout:
            if line.startswith("took "):
                return float(line.removeprefix("took "))
        raise SystemExit(f"a side ended with {self._process.wait()} before it had measured")


def chunks_of(store: Path) -> dict[str, str]:
    """Return the checksum of every chunk of a store."""
    paths = sorted(store.glob("chunks/*"))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("before", type=Path, help="checkout to compare with")
    parser.add_argument("--samples", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    folder = Path(tempfile.mkdtemp(prefix="before-and-now-"))
    try:
        measure(folder, arguments)
    finally:
        shutil.rmtree(folder)


def measure(folder: Path, arguments: argparse.Namespace) -> None:
    """Measure the two in turn; the first run of each is not counted."""
    model = make_tiny_llava(folder / "model", hidden_size=512, image_size=336)
    dataset = make_input(folder, arguments.samples)
    given = (model, dataset, folder / "images", arguments.batch_size)
    now = Path(__file__).resolve().parents[2]
    sides = {"before": Side(arguments.before, *given), "now": Side(now, *given)}
    commits = {
        name: subprocess.check_output(
            ["git", "-C", path, "rev-parse", "--short", "HEAD"], text=True
        ).strip()
        for name, path in (("before", arguments.before), ("now", now))
    }
    print(f"{date.today()}, {processor()}, torch {torch.__version__}, transformers ", end="")
    print(f"{transformers.__version__}; {arguments.samples} samples in batches of ", end="")
    print(f"{arguments.batch_size}, medians of {arguments.repeats} (lowest–highest)\n")
    print(f"| seconds | before ({commits['before']}) | now ({commits['now']}) | now / before |")
    print("|---|---|---|---|")
    for what in ("load", "last", "all"):
        times: dict[str, list[float]] = {"before": [], "now": []}
        digests: dict[str, dict[str, str]] = {}
        for repeat in range(arguments.repeats + 1):
            # Which one comes first takes turns, too.
            for name in sorted(sides, reverse=bool(repeat % 2)):
                out = folder / f"out-{name}"
                taken = sides[name].seconds(what, out)
                if repeat:
                    times[name].append(taken)
                if out.exists():
                    digests[name] = chunks_of(out)
                    shutil.rmtree(out)
        ratios = [b / a for a, b in zip(times["before"], times["now"], strict=True)]
        shown = " | ".join(spread(values) for values in (*times.values(), ratios))
        print(f"| {what} | {shown} |", flush=True)
        if digests:
            same = digests["before"] == digests["now"]
            print(f"|  | | chunks {'equal byte by byte' if same else 'DIFFER'} | |", flush=True)


if __name__ == "__main__":
    main()
