"""All sections of the benchmark, one after the other; one table and one plot.

    python tests/benchmarks/bench.py            (`make bench`)

Each section runs in a process of its own. What they make is kept in the scratch folder, and found
there by the next run; about 25 GB. The table goes to the end of
`benchmarks.md` in the folder that `--out` names, and the plot of the README to its
`images/benchmarks.svg`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from datetime import date
from importlib.metadata import version
from pathlib import Path

from figures_that_decide import draw
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
    "peer_reading",
    "growth",
    "page_decoding",
    "sink",
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
    parser.add_argument("--out", type=Path, default=HERE.parents[1] / "docs")
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
    lines.sort(key=lambda line: int(line.section.partition(" ")[0]))
    report = f"{machine()}\n\n{_LEGEND.format(repeats=arguments.repeats)}\n\n{table(lines)}"
    print(report)
    page = arguments.out / "benchmarks.md"
    above, mark, _ = page.read_text(encoding="utf-8").partition(_MARK)
    page.write_text(f"{above}{mark}\n\n{report}", encoding="utf-8")
    (arguments.out / "images").mkdir(exist_ok=True)
    draw(report, arguments.out / "images" / "benchmarks.svg")


# What stands above it in the page was written by a person.
_MARK = "<!-- table: made by make bench -->"
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


if __name__ == "__main__":
    main()
