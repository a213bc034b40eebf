"""This version beside another one: each section of both, in turn, and our figures line by line.

    python tests/benchmarks/against.py REVISION --sections reading cold_start building

The other revision is checked out below the scratch folder, and runs its own scripts with its own
packages in this environment; so does this one. A line of the table is one figure of ours (the
others of a section are only timed along): its median here, there, and this version's over the other
version's, round by round. A line that only one of the versions measures is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from bench import SECTIONS, machine
from measuring import Line, table

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
Figures = dict[tuple[str, str], tuple[str, list[float]]]


def main() -> None:
    """Check the other revision out, run the sections of both, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("revision", help="what to compare with: a commit, a tag or a branch")
    parser.add_argument("--sections", nargs="*", default=list(SECTIONS[:6]), choices=SECTIONS)
    parser.add_argument("--rounds", type=int, default=3, help="times that each side runs a section")
    parser.add_argument("--repeats", type=int, default=3, help="repeats within a section")
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()) / "amber-bench")
    parser.add_argument("--out", type=Path, help="write the table there as well")
    arguments = parser.parse_args()
    commit = _git("rev-parse", "--short", arguments.revision)
    other = arguments.scratch / f"checkout-{commit}"
    if not other.exists():
        _git("worktree", "add", "--detach", str(other), commit)
    sides = {"this": ROOT, "other": other}
    lines: list[Line] = []
    for section in arguments.sections:
        figures: dict[str, list[Figures]] = {name: [] for name in sides}
        for number in range(arguments.rounds):
            # Whichever runs first finds a colder page cache: each does so in turn.
            for name in sorted(sides, reverse=bool(number % 2)):
                print(f"{section}, round {number + 1}, {name} version …", file=sys.stderr)
                scratch = arguments.scratch / f"ground-{name}-{commit}"
                figures[name].append(_run(section, sides[name], scratch, arguments.repeats))
        lines += _compared(figures["this"], figures["other"], commit)
    this = _git("rev-parse", "--short", "HEAD")
    report = (
        f"{machine()}\n\nThis version ({this}) against {commit}: {arguments.rounds} rounds in "
        f"turn, each of {arguments.repeats} repeats (the cold start of at least 9).\n\n"
        f"{table(lines)}"
    )
    print(report)
    if arguments.out is not None:
        arguments.out.write_text(f"# {this} against {commit}\n\n{report}", encoding="utf-8")


def _run(section: str, checkout: Path, scratch: Path, repeats: int) -> Figures:
    """Run one section of one version, and return our figures by section and work."""
    scratch.mkdir(parents=True, exist_ok=True)
    found = scratch / f"{section}.json"
    subprocess.run(
        [
            sys.executable,
            str(checkout / "tests" / "benchmarks" / f"{section}.py"),
            str(scratch),
            *("--repeats", str(repeats), "--json", str(found)),
        ],
        check=True,
        stdout=subprocess.DEVNULL,
        cwd=scratch,
        env={**os.environ, "PYTHONPATH": str(checkout)},
    )
    figures: Figures = {}
    for value in json.loads(found.read_text()):
        line = Line(**value)
        figures.setdefault((line.section, line.work), (line.unit, list(line.ours)))
    return figures


def _compared(this: list[Figures], other: list[Figures], commit: str) -> list[Line]:
    """Set the rounds of both versions side by side, a line for each figure that both have."""
    lines = []
    for section, work in this[0]:
        if (section, work) not in other[0]:
            continue
        unit = this[0][section, work][0]
        ours = [figure for figures in this for figure in figures[section, work][1]]
        theirs = [figure for figures in other for figure in figures[section, work][1]]
        lines.append(Line(section, work, commit, unit, ours, theirs))
    return lines


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(ROOT), *arguments], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


if __name__ == "__main__":
    main()
