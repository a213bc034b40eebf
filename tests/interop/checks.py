"""What a trainer's loader must give, read from the capture store by safetensors alone, and checks.

Imported in the trainers' own environments, where this project is not.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

N_LAYERS = 4
# Before what was found to hold, among what the trainers' libraries say.
HOLDS = "  holds: "
# By the names of their folders, the sites of `x` that are exported.
EXPORTS = {"export": "hook_resid_mid", "mlp_in": "mlp.hook_in"}


@dataclass(frozen=True)
class Expected:
    """Every row of the store.

    Attributes:
        hooks: [rows, H] float16, by TransformerLens' names; what the MLP gets, too.
        token_id, position: int32 [rows].
        row_of: number of a row, by (sample, position).
    """

    hooks: dict[str, torch.Tensor]
    token_id: torch.Tensor
    position: torch.Tensor
    row_of: dict[tuple[int, int], int]


def read_expected(root: Path) -> Expected:
    """Read the store."""
    chunks = [load_file(path) for path in sorted((root / "store" / "chunks").glob("*.safetensors"))]
    tensors = {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]}
    names = {"hook_resid_mid": "x", "hook_mlp_out": "mlp_out"}
    hooks = {
        f"blocks.{layer}.{hook}": tensors[f"{name}_{layer:02d}"]
        for hook, name in names.items()
        for layer in range(N_LAYERS)
    }
    weights = load_file(root / "store" / "norms.safetensors")["weight"]
    for layer in range(N_LAYERS):
        x = hooks[f"blocks.{layer}.hook_resid_mid"]
        hooks[f"blocks.{layer}.mlp.hook_in"] = _llama_norm(x, weights[layer])
    places = zip(tensors["sample"].tolist(), tensors["position"].tolist(), strict=True)
    row_of = {place: row for row, place in enumerate(places)}
    return Expected(hooks, tensors["token_id"], tensors["position"], row_of)


def _llama_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return what transformers' LlamaRMSNorm gives for [rows, H]: modeling_llama.py."""
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
    return weight * wide.to(x.dtype)


def hooks_of(export: Path) -> list[str]:
    """Return the hooks of an export: `x` of each layer, then the MLP output of each."""
    names = (EXPORTS[export.name], "hook_mlp_out")
    return [f"blocks.{layer}.{name}" for name in names for layer in range(N_LAYERS)]


def exported_rows(export: Path, expected: Expected) -> list[list[int]]:
    """Return which rows each chunk of an export has, by its `rows/`."""
    chunks = [load_file(path) for path in sorted((export / "rows").glob("*.safetensors"))]
    return [
        [
            expected.row_of[place]
            for place in zip(chunk["sample"].tolist(), chunk["position"].tolist(), strict=True)
        ]
        for chunk in chunks
    ]


def check(holds: bool, sentence: str) -> None:
    """End with 1 and a sentence where something does not hold.

    Raises:
        SystemExit: it does not.
    """
    if not holds:
        sys.exit(f"error: {sentence}")


def check_same_bits(found: torch.Tensor, wanted: torch.Tensor, what: str) -> None:
    """Check that a tensor has a dtype, a shape and every bit of another."""
    same = found.dtype == wanted.dtype and found.shape == wanted.shape
    check(
        same and torch.equal(found.view(torch.int16), wanted.view(torch.int16)),
        f"{what} is not what the data set holds",
    )


def check_each_row_once(
    rows: Sequence[int], expected: Expected, what: str, most_left_out: int
) -> None:
    """Check that rows are all but the first positions, once each.

    Args:
        what: they are the rows of.
        most_left_out: how many others may be missing.
    """
    wanted = set(torch.nonzero(expected.position > 0).flatten().tolist())
    check(len(set(rows)) == len(rows), "a row came twice")
    check(set(rows) <= wanted, "a first position came, which was to be left out")
    missing = len(wanted) - len(rows)
    check(missing <= most_left_out, f"{missing} rows are missing, where {most_left_out} may be")
    print(f"{HOLDS}{what}: {len(rows)} rows equal to the data set's, {missing} left out")


def check_falls(losses: Sequence[float], what: str, *, to: float) -> None:
    """Check that what a training said last is below a share of what it said first.

    Each is the mean of three, where there are so many.
    """
    check(len(losses) > 1, f"{what}: no loss was said")
    n = min(3, len(losses) // 2)
    first, last = sum(losses[:n]) / n, sum(losses[-n:]) / n
    check(last < to * first, f"{what}: the loss went from {first:.4g} to {last:.4g}")
    print(f"{HOLDS}{what}: the loss fell from {first:.4g} to {last:.4g} in {len(losses)} values")


def run_python(script: Path, *arguments: object, within: Path, beside: Path | None = None) -> str:
    """Run a program in this environment; return all that it said.

    Progress bars say every step.

    Args:
        within: the folder that it is run in.
        beside: a folder of modules that it may import, too.

    Raises:
        SystemExit: it failed.
    """
    command = [sys.executable, str(script), *map(str, arguments)]
    environment = {**os.environ, "TQDM_MININTERVAL": "0", "WANDB_MODE": "disabled"}
    if beside is not None:
        environment["PYTHONPATH"] = str(beside)
    within.mkdir(exist_ok=True)
    done = subprocess.run(
        command,
        cwd=within,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    (within / f"{script.stem}.log").write_text(done.stdout, encoding="utf-8")
    check(done.returncode == 0, f"{script.name} failed:\n{done.stdout[-3000:]}")
    return done.stdout


def run_example(repository: Path, name: str, dataset: Path, within: Path) -> str:
    """Run a program of docs/examples on the data set, with this project where it finds it."""
    example = repository / "docs" / "examples" / name
    return run_python(example, dataset, within=within, beside=repository)


def numbers_after(said: str, before: str) -> list[float]:
    """Return every number that follows some words, repetitions of a progress bar left out."""
    found = [float(number) for number in re.findall(rf"{before}(-?\d+\.\d+|nan|inf)", said)]
    return [value for at, value in enumerate(found) if not at or value != found[at - 1]]


def check_explains(said: str, least: float) -> None:
    """Check what an example says of the variance of held-out samples that it explains."""
    shares = [float(share) for share in re.findall(r"^explained .*: (-?\d\.\d+) of", said, re.M)]
    check(bool(shares), "the example says of no held-out sample what it explains")
    check(min(shares) > least, f"the example explains only {min(shares)} of held-out samples")
    print(f"{HOLDS}the example explains {', '.join(map(str, shares))} of held-out samples")
