"""All sections of the benchmark, one after the other; one table and one plot.

    python tests/benchmarks/bench.py            (`make bench`)

Each section runs in a process of its own. What they make is kept in the scratch folder, and found
there by the next run; about 25 GB. The table and the plot go where `--out` says: `bench.md` and
`bench.png` beside this file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path

from measuring import REPEATS, Line, table

HERE = Path(__file__).parent
SECTIONS = (
    "reading",
    "cold_start",
    "streaming",
    "building",
    "pt_layouts",
    "bytes_on_disk",
    "peer_sae_lens",
    "growth",
    "page_decoding",
)
_VERSIONS = ("torch", "pyarrow", "datasets", "huggingface_hub", "safetensors")


def main() -> None:
    """Run the sections, print the table, and write it and the plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()) / "amber-bench")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument(
        "--sections",
        nargs="*",
        default=list(SECTIONS),
        choices=SECTIONS,
        help="measure these anew: the others as they were measured last",
    )
    parser.add_argument("--out", type=Path, default=HERE)
    arguments = parser.parse_args()
    arguments.scratch.mkdir(parents=True, exist_ok=True)
    lines: list[Line] = []
    for section in SECTIONS:
        found = arguments.scratch / f"{section}.json"
        if section not in arguments.sections:
            if found.exists():
                lines += [Line(**line) for line in json.loads(found.read_text())]
            continue
        command = [sys.executable, str(HERE / f"{section}.py"), str(arguments.scratch)]
        command += ["--repeats", str(arguments.repeats), "--json", str(found)]
        print(f"{section} …", file=sys.stderr, flush=True)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        lines += [Line(**line) for line in json.loads(found.read_text())]
    lines.sort(key=lambda line: line.section)
    report = f"{machine()}\n\n{_LEGEND.format(repeats=arguments.repeats)}\n\n{table(lines)}"
    print(report)
    (arguments.out / "bench.md").write_text(f"# The benchmark\n\n{report}")
    plot(lines, arguments.out / "bench.png")


_LEGEND = """\
Medians of {repeats} (lowest–highest), measured in turn in one run of the section. 1004 rows,
width 4096, 32 layers, 16 targets, float16 unless a line says otherwise; MB/s are of raw float16.
What each line measures exactly, and what is not the same work, stands in the script of its
section."""


def machine() -> str:
    """Name the machine, the date and the versions in one line."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    versions = ", ".join(f"{name} {version(name)}" for name in _VERSIONS)
    return (
        f"{date.today()}, {cpu}, {os.cpu_count()} cores, {memory:.0f} GiB; "
        f"Python {platform.python_version()}, {versions}"
    )


def plot(lines: Sequence[Line], path: Path) -> None:
    """Draw every ratio on a logarithmic scale, with its spread and its aim."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    drawn = list(reversed(lines))
    figure, axes = plt.subplots(figsize=(11, 1.2 + 0.27 * len(drawn)), layout="constrained")
    for height, line in enumerate(drawn):
        ratios = line.ratios
        middle = statistics.median(ratios)
        colour = {None: "tab:gray", True: "tab:green", False: "tab:orange"}[line.met]
        reach = [[middle - min(ratios)], [max(ratios) - middle]]
        axes.errorbar(middle, height, xerr=reach, fmt="o", color=colour, capsize=3, markersize=5)
        if line.aim:
            axes.plot(float(line.aim.split()[1]), height, "|", color="black", markersize=12)
    axes.axvline(1, color="black", linewidth=0.7)
    axes.set_xscale("log")
    axes.set_yticks(range(len(drawn)))
    axes.set_yticklabels(
        [f"{line.section.split()[0]}  {line.work}  /  {line.other}" for line in drawn], fontsize=7
    )
    axes.set_ylim(-0.7, len(drawn) - 0.3)
    axes.set_xlabel("ours / the other (speeds: right is better; seconds and bytes: left is better)")
    axes.set_title(
        "green: aim met; orange: missed; grey: no aim; black stroke: the aim", fontsize=9
    )
    axes.grid(axis="x", which="both", alpha=0.25)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
