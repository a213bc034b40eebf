"""3 Streaming: one layer from a Hub on loopback, against pyarrow on the same files on the disk.

    python tests/benchmarks/streaming.py SCRATCH

The Hub is a process of its own, on the same machine, so that what it takes to serve is taken from
the reader. pyarrow decodes the layer's columns row group by row group, with all its threads, into
Arrow; ours end as batches of tensors.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

_SUPPORT = Path(__file__).parents[1] / "support"

_HUB = """
import sys
from pathlib import Path
sys.path.insert(0, {support!r})
from loopback_hub import LoopbackHub
import json
with LoopbackHub(Path({root!r})) as hub:
    print(json.dumps(hub.client_env(Path({home!r}))), flush=True)
    for command in sys.stdin:
        if command.strip() == "reset":
            hub.reset_counts()
        print(hub.bytes_sent("all_layers"), flush=True)
"""


class Hub:
    """The Hub's process, and how many bytes of shards it has sent."""

    def __init__(self, scratch: Path) -> None:
        program = _HUB.format(
            support=str(_SUPPORT), root=str(scratch / "hub"), home=str(scratch / "hub-home")
        )
        self._process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.env: dict[str, str] = json.loads(self._answer())

    def bytes_sent(self, *, reset: bool = False) -> int:
        """Return the bytes of shards sent since the last reset."""
        assert self._process.stdin is not None
        self._process.stdin.write("reset\n" if reset else "count\n")
        self._process.stdin.flush()
        return int(self._answer())

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()


def main() -> None:
    """Start the Hub before anything reads where it is, then measure."""
    hub = Hub(Path(sys.argv[1]))
    os.environ.update(hub.env)
    try:
        from measuring import run_section
        from streaming_from import measure_from

        run_section(lambda scratch, repeats: measure_from(hub, scratch, repeats), __doc__)
    finally:
        hub.close()


if __name__ == "__main__":
    main()
