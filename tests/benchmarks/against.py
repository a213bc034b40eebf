"""This version beside another one: what ours takes in sections 1 to 6, the two in turn.

    python tests/benchmarks/against.py REVISION

The other revision is checked out below the scratch folder. Each program below then runs in a
process of its own with the packages of one version, in this environment, then with those of the
other, round after round; each version reads what it has written itself. The ratios are of figures
that were measured next to each other. What each figure means stands in the section's own script.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from bench import machine
from measuring import Line, table

HERE = Path(__file__).parent
ROOT = HERE.parent.parent

_HEAD = """
import json, os, shutil, sys, time
from pathlib import Path
scratch = Path(sys.argv[1])

def rate(amount, call, repeats, before=lambda: None):
    figures = []
    for _ in range(repeats):
        before()
        start = time.perf_counter()
        call()
        figures.append(amount / (time.perf_counter() - start))
    return figures
"""

_GROUND = """
from ground import BATCH, Ground
from made_store import Shape
import datasets
datasets.disable_progress_bars()
ground, few = Ground(scratch), Shape(rows=128)
out = scratch / "out"

def clear():
    shutil.rmtree(out, ignore_errors=True)
"""

# By section: what is run, and which works it prints the figures of.
PROGRAMS = {
    "1 Training batches": f"""{_GROUND}
from ground import LAYER, all_names
from measuring import touch
from llava_amber_activations import activation_batches, load_activations, open_layer

def epoch(batches):
    def run():
        for batch in batches:
            for name, tensor in batch.items():
                if tensor.ndim > 1:
                    touch(tensor)
    run()
    return run

folder, cache = ground.dataset(), scratch / "cache"
one, every = (Shape().rows * size / 1e6 for size in (Shape().layer_row_bytes, Shape().row_bytes))
prepared = load_activations(folder, layer=LAYER, cache_dir=cache)
both = datasets.load_dataset(str(folder), "all_layers", split="train", cache_dir=cache)
figures = {{
    f"one layer, prepared, batches of {{size}}": rate(
        one, epoch(activation_batches(prepared, size, shuffle=True)), 5
    )
    for size in (64, 4096)
}}
for size in (64, 4096):
    batches = activation_batches(open_layer(folder, LAYER), size, shuffle=True)
    figures[f"one layer, from the shards, batches of {{size}}"] = rate(one, epoch(batches), 3)
batches = activation_batches(both, BATCH, shuffle=True)
figures["all layers, prepared, batches of 64"] = rate(every, epoch(batches), 3)
print(json.dumps(["MB/s", figures]))
""",
    "3 Streaming": f"""
from streaming import Hub
hub = Hub(scratch)
os.environ.update(hub.env)
{_GROUND}
from ground import LAYER
from streaming_from import REPO, push, reader
from llava_amber_activations import open_layer
push(ground.dataset(), REPO)
layer, figures = open_layer(REPO, LAYER), {{}}
for shuffle, order in ((False, "in order"), (True, "mixed")):
    run = reader(layer, shuffle=shuffle)
    run()
    figures[f"one layer from a Hub on loopback, {{order}}"] = rate(Shape().rows, run, 3)
hub.close()
print(json.dumps(["rows/s", figures]))
""",
    "4 Build": f"""{_GROUND}
from builder.build import build
figures = {{}}
for config, shape, repeats in (("all_layers", Shape(), 2), ("default", few, 2)):
    store = ground.store(shape)
    vectors = 2 * 32 if config == "all_layers" else 407
    size = shape.rows * vectors * shape.width * 2 / 1e6
    figures[f"{{config}}, num_proc=1"] = rate(
        size, lambda: build(store, out, configs=(config,)), repeats, clear
    )
print(json.dumps(["MB/s", figures]))
""",
    "5 Export, import": f"""{_GROUND}
from ground import LAYER
from builder.export import export
from builder.import_pt import import_pt
folder, layers = ground.dataset(), ground.layers(BATCH)
size = Shape().rows * Shape().layer_row_bytes / 1e6
print(json.dumps(["MB/s", {{
    "export of one layer": rate(
        size, lambda: export(folder, out, layout="layers", layers=str(LAYER)), 3, clear
    ),
    "import of one layer": rate(size, lambda: import_pt(layers, out), 3, clear),
}}]))
""",
    "6 Bytes a row": f"""{_GROUND}
def row_bytes(folder):
    return sum(path.stat().st_size for path in folder.rglob("*.parquet")) / 1024
print(json.dumps(["KiB", {{
    "all_layers: 64 vectors": [row_bytes(ground.dataset()) / Shape().rows],
    "default, all layers": [row_bytes(ground.dataset(few, ("default",))) / few.rows],
}}]))
""",
}

_COLD = "2 Cold start"
_FIRST_BATCH = """
from llava_amber_activations import activation_batches, {function}
batch = next(iter(activation_batches({function}("{folder}", 5{more}), batch_size=64, shuffle=True)))
batch["x"].sum(), batch["targets"].sum()
"""

Figures = Mapping[str, tuple[str, list[float]]]


def main() -> None:
    """Check the other revision out, run the programs with both, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("revision", help="what to compare with: a commit, a tag or a branch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()) / "amber-bench")
    parser.add_argument("--out", type=Path, help="write the table there as well")
    arguments = parser.parse_args()
    commit = _git("rev-parse", "--short", arguments.revision)
    scratch: Path = arguments.scratch / f"against-{commit}"
    other = scratch / "checkout"
    shutil.rmtree(scratch, ignore_errors=True)
    _git("worktree", "prune")
    _git("worktree", "add", "--detach", str(other), commit)
    sides = {"this": ROOT, "other": other}
    lines: list[Line] = []
    for section in sorted([*PROGRAMS, _COLD]):
        rounds: dict[str, list[Figures]] = {name: [] for name in sides}
        # The first round of each makes what is read, and is not counted.
        for number in range(arguments.rounds + 1):
            # Which one runs first changes from round to round.
            for name in sorted(sides, reverse=bool(number % 2)):
                print(f"{section}, round {number}, {name} version", file=sys.stderr, flush=True)
                figures = _run(section, sides[name], scratch / name)
                if number:
                    rounds[name].append(figures)
        for work, (unit, _) in rounds["this"][0].items():
            ours, theirs = (
                [figure for one in rounds[name] for figure in one[work][1]] for name in sides
            )
            lines.append(Line(section, work, commit, unit, ours, theirs))
    _git("worktree", "remove", "--force", str(other))
    report = (
        f"{machine()}\n\nThis version ({_git('rev-parse', '--short', 'HEAD')}) against {commit}: "
        f"{arguments.rounds} rounds, the two in turn. Medians (lowest–highest).\n\n{table(lines)}"
    )
    print(report)
    if arguments.out is not None:
        arguments.out.write_text(f"# Against {commit}\n\n{report}", encoding="utf-8")


def _run(section: str, checkout: Path, scratch: Path) -> Figures:
    """Run one section with one version, and return its figures by what was done."""
    scratch.mkdir(parents=True, exist_ok=True)
    if section == _COLD:
        folder = scratch / "dataset-1004x4096-all_layers"
        return {
            f"to the first batch of a layer, {function}{more}": (
                "s",
                [_seconds(checkout, _FIRST_BATCH.format(function=function, folder=folder, more=m))],
            )
            for function, more, m in (
                ("open_layer", "", ""),
                ("load_activations", " (streaming)", ", streaming=True"),
            )
        }
    unit, figures = json.loads(_python(checkout, _HEAD + PROGRAMS[section], scratch))
    return {work: (unit, values) for work, values in figures.items()}


def _seconds(checkout: Path, program: str) -> float:
    start = time.perf_counter()
    _python(checkout, program, Path())
    return time.perf_counter() - start


def _python(checkout: Path, program: str, scratch: Path) -> str:
    """Run a program with a version's packages and benchmark scripts; return its last line."""
    path = os.pathsep.join([str(checkout), str(checkout / "tests" / "benchmarks")])
    done = subprocess.run(
        [sys.executable, "-c", program, str(scratch)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        cwd=checkout.anchor,
        env={**os.environ, "PYTHONPATH": path, "TQDM_DISABLE": "1"},
    )
    return done.stdout.splitlines()[-1] if done.stdout else ""


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(ROOT), *arguments], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


if __name__ == "__main__":
    main()
