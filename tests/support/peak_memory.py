"""How much memory a piece of work takes at its peak, in a process of its own."""

import subprocess
import sys

_PROGRAM = """
import sys
from pathlib import Path
import torch
{imports}

def peak():
    # Not ru_maxrss, which begins with what the parent had when it started this process.
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmHWM"].split()[0])

torch.empty(2**24, dtype=torch.uint8).fill_(1)
before = peak()
{work}
print((peak() - before) // 1024)
"""


def mib_taken(imports, work, *arguments):
    """Return the MiB that `work` adds to the peak of a process that has done its `imports`.

    The arguments are `sys.argv[1:]`.
    """
    program = _PROGRAM.format(imports=imports, work=work)
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return int(done.stdout)
