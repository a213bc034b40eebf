"""Run the campaign and print its table; at full size, write it into docs/hardening.md.

    python tests/hardening/campaign.py [--size small|full] [--seed N] [--processes N]
                                       [--tree CHECKOUT] [-- pytest's own arguments]

`--tree` tries the packages of another checkout, such as an older commit, with these tests.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
REPORT = ROOT / "docs" / "hardening.md"
BEGIN, END = "<!-- table: made by make harden -->", "<!-- end of the table -->"
LIBRARIES = ("torch", "numpy", "pyarrow", "safetensors", "datasets", "huggingface_hub")
LIBRARIES += ("transformers", "pillow")


def main() -> int:
    options = _options()
    tree = options.tree.resolve()
    with tempfile.TemporaryDirectory() as scratch:
        tally = Path(scratch) / "tally.jsonl"
        tally.touch()
        environment = {
            **os.environ,
            "CAMPAIGN": options.size,
            "CAMPAIGN_SEED": str(options.seed),
            "CAMPAIGN_TALLY": str(tally),
            "PYTHONPATH": str(tree),
            # So that the packages come from `tree` alone, not from the folder it is run in.
            "PYTHONSAFEPATH": "1",
        }
        command = [sys.executable, "-m", "pytest", str(HERE), "--tb=short", *options.pytest]
        if options.processes > 1:
            command += ["-n", str(options.processes), "--dist", "worksteal"]
        began = time.monotonic()
        done = subprocess.run(command, cwd=ROOT, env=environment, check=False)
        seconds = time.monotonic() - began
        lines = [json.loads(line) for line in tally.read_text(encoding="utf-8").splitlines()]
    said = [*_made(options, tree, seconds, done.returncode), "", *_table(lines)]
    print("\n".join(["", *said]))
    whole = options.size == "full" and tree == ROOT and not options.pytest
    if whole:
        _write(said)
        print(f"\nwritten into {REPORT.relative_to(ROOT)}")
    return done.returncode


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=("small", "full"), default="full")
    parser.add_argument("--seed", type=int, default=20250)
    parser.add_argument("--processes", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--tree", type=Path, default=ROOT)
    parser.add_argument("pytest", nargs="*", help="passed on to pytest, after --")
    return parser.parse_args()


def _made(options: argparse.Namespace, tree: Path, seconds: float, status: int) -> list[str]:
    """Say when, of what and on which machine the table was made."""
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    libraries = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    verdict = "every test passed" if status == 0 else "TESTS FAILED"
    return [
        f"Made on {today} of commit {_commit(tree)}, size {options.size}, seed {options.seed}, "
        f"in {seconds / 60:.1f} minutes by {options.processes} processes: {verdict}.",
        "",
        f"Machine: {_processor()}, {os.cpu_count()} cores, {_memory()}, {platform.system()} "
        f"{platform.release()}. Python {platform.python_version()}, {libraries}.",
    ]


def _commit(tree: Path) -> str:
    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(tree), *arguments], capture_output=True, text=True, check=False
        )
        return done.stdout.strip()

    changed = " with changes" if git("status", "--porcelain", "--untracked-files=no") else ""
    return (git("rev-parse", "--short=7", "HEAD") or "unknown") + changed


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory() -> str:
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return f"{pages / 2**30:.0f} GiB of memory"


def _table(lines: list[dict]) -> list[str]:
    """Add up the counts by the names of their lines, in the order of the names."""
    table = [
        "| what was tried | tried | right result | refused in a sentence | anything else | "
        "other values to a reader that checks nothing | seconds |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    counts = ("tried", "right", "refused", "wrong", "unseen", "seconds")
    names = sorted({line["line"] for line in lines})
    for name in [*names, None]:
        mine = [line for line in lines if name is None or line["line"] == name]
        cells = []
        for key in counts:
            values = [line[key] for line in mine if line[key] is not None]
            cells.append(f"{sum(values):.0f}" if values else "")
        table.append(f"| {name or '**all**'} | " + " | ".join(cells) + " |")
    return table


def _write(said: list[str]) -> None:
    text = REPORT.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{REPORT} has no place for the table: {BEGIN} … {END}")
    table = "\n".join(["", *said, ""])
    REPORT.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
