"""Measuring side by side: candidates in turn, medians with their spread, ratios pair by pair."""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

REPEATS = 5


@dataclass(frozen=True)
class Line:
    """One row of the table: ours beside one other way of doing the same work.

    Attributes:
        section: of the table, such as `1 Training batches`.
        work: what was done.
        other: what it was compared with.
        unit: of both figures, such as `MB/s` or `s`.
        ours, others: one figure a repeat; the two of a repeat were measured next to each other.
        aim: what the ratio ours / other should be: `>= 5`, `<= 0.88`, or empty.
        note: what is not the same work, in few words.
    """

    section: str
    work: str
    other: str
    unit: str
    ours: Sequence[float]
    others: Sequence[float]
    aim: str = ""
    note: str = ""

    @property
    def ratios(self) -> list[float]:
        """Ours / other, repeat by repeat."""
        return [mine / other for mine, other in zip(self.ours, self.others, strict=True)]

    @property
    def met(self) -> bool | None:
        """Whether the median ratio is what was aimed at; None where nothing was."""
        if not self.aim:
            return None
        sign, _, bound = self.aim.partition(" ")
        ratio = statistics.median(self.ratios)
        return ratio >= float(bound) if sign == ">=" else ratio <= float(bound)


def alternate(
    candidates: Mapping[str, Callable[[], object]],
    repeats: int,
    *,
    before: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """Time candidates in turn, so that whatever else the machine does falls on all of them.

    Each is called once beforehand, untimed. The order turns by one at every repeat.

    Args:
        before: called before each timed call, untimed.

    Returns:
        Of each candidate, the seconds of every repeat.
    """
    names = list(candidates)
    for name in names:
        before()
        candidates[name]()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for repeat in range(repeats):
        turn = repeat % len(names)
        for name in names[turn:] + names[:turn]:
            before()
            gc.collect()
            start = time.perf_counter()
            candidates[name]()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def touch(tensor: torch.Tensor) -> None:
    """Read a value of every page, as whoever uses the tensor would."""
    tensor.contiguous().view(torch.uint8).view(-1)[::4096].sum()


def touched(batches: Iterable[Mapping[str, torch.Tensor]]) -> Callable[[], None]:
    """Return a pass over batches that touches all their vectors."""

    def run() -> None:
        for batch in batches:
            for tensor in batch.values():
                if tensor.ndim > 1:
                    touch(tensor)

    return run


def run_section(measure: Callable[[Path, int], list[Line]], about: str | None) -> None:
    """Be a section's command line: measure in a scratch folder, and print the table, or JSON."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("scratch", type=Path, help="folder for what is made; made where missing")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--json", type=Path, help="write the lines there")
    arguments = parser.parse_args()
    arguments.scratch.mkdir(parents=True, exist_ok=True)
    lines = measure(arguments.scratch, arguments.repeats)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps([dataclasses.asdict(line) for line in lines]))
    print(table(lines))


def rates(amount: float, seconds: Sequence[float]) -> list[float]:
    """Return amount per second, for each time."""
    return [amount / one for one in seconds]


def spread(figures: Sequence[float]) -> str:
    """Write figures as their median and, in brackets, the lowest and the highest."""
    middle, low, high = statistics.median(figures), min(figures), max(figures)
    if low == high:
        return _short(middle)
    return f"{_short(middle)} ({_short(low)}–{_short(high)})"


def _short(figure: float) -> str:
    if figure >= 100:
        return f"{figure:,.0f}"
    return f"{figure:.1f}" if figure >= 10 else f"{figure:.2f}"


def table(lines: Sequence[Line]) -> str:
    """Write lines as a Markdown table."""
    rows = [
        "| | work | against | unit | ours | the other | ours / other | aim | |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    section = ""
    for line in lines:
        shown = "" if line.section == section else line.section
        section = line.section
        met = {None: "", True: "met", False: "missed"}[line.met]
        rows.append(
            f"| {shown} | {line.work} | {line.other} | {line.unit} | {spread(line.ours)} "
            f"| {spread(line.others)} | {spread(line.ratios)} | {line.aim} | "
            f"{', '.join(filter(None, (met, line.note)))} |"
        )
    return "\n".join(rows) + "\n"
