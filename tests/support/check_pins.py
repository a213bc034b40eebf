"""Fails where something is installed that a constraints file does not pin at that version.

python tests/support/check_pins.py tests/constraints.txt
"""

import re
import sys
from importlib.metadata import distributions
from pathlib import Path

PIN = re.compile(r"^([\w.-]+)==([\w.!+-]+)", re.MULTILINE)
OURS = "llava-amber-activations"


def canonical(name: str) -> str:
    """Spell a package's name as an index does."""
    return re.sub(r"[-_.]+", "-", name).lower()


def unpinned(constraints: str) -> list[str]:
    """Return what is installed here at no version that `constraints` names."""
    pins = {(canonical(name), version) for name, version in PIN.findall(constraints)}
    installed = {(canonical(each.name), each.version.partition("+")[0]) for each in distributions()}
    return sorted(f"{name} {version}" for name, version in installed - pins if name != OURS)


if __name__ == "__main__":
    if found := unpinned(Path(sys.argv[1]).read_text(encoding="utf-8")):
        sys.exit(f"{sys.argv[1]} does not pin {', '.join(found)}: run make lock")
