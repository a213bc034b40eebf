"""Which families of image-text-to-text models can be captured: the table of docs/models.md.

    python tests/benchmarks/families.py [--family gemma3] [--write docs/models.md]

Of every family that the installed transformers knows, a small random model is made of its default
config, its decoder is searched as `capture` does, and what the taps gather is compared with a pass
over each text alone, with plain hooks on modules that are named by hand.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from family.children import each_in_a_child
from family.page import rewritten, table
from family.verdict import families, judge, lost


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--family", action="append", help="only this one; may be repeated")
    parser.add_argument("--write", type=Path, help="page whose generated part is replaced")
    parser.add_argument("--processes", type=int, default=2, help="families tried at a time")
    asked = parser.parse_args()
    known = list(families())
    wanted = asked.family or known
    if unknown := sorted(set(wanted) - set(known)):
        parser.error(f"no such family: {', '.join(unknown)}. Known: {', '.join(known)}")
    if asked.write and asked.family:
        parser.error("--write takes the whole table: leave out --family")
    verdicts = []
    for verdict in each_in_a_child(judge, wanted, lost, at_once=asked.processes):
        verdicts.append(verdict)
        said = f"{verdict.worst:.1e}" if verdict.worst is not None else ""
        print(verdict.family, verdict.outcome, said, verdict.why, file=sys.stderr, flush=True)
    verdicts.sort(key=lambda verdict: verdict.family)
    print(table(verdicts))
    if asked.write:
        text = asked.write.read_text(encoding="utf-8")
        asked.write.write_text(rewritten(text, verdicts), encoding="utf-8")


if __name__ == "__main__":
    main()
