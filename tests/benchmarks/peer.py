"""A peer in a virtual environment of its own: made once, asked line by line, answering in JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


class Peer:
    """A script that runs in the peer's Python."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask(self, *words: object) -> Any:
        """Send a line, and return what the answer says."""
        assert self._process.stdin is not None
        self._process.stdin.write(" ".join(map(str, words)) + "\n")
        self._process.stdin.flush()
        return self.answer()

    def answer(self) -> Any:
        """Wait for a line.

        Raises:
            RuntimeError: the peer's process ended.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the peer's process ended")
        return json.loads(line)


@contextmanager
def sae_lens(folder: Path, script: str, arguments: Sequence[object]) -> Iterator[Peer]:
    """Run a script of this folder in the environment of SAELens, until the end of the block."""
    process = subprocess.Popen(
        [_environment(folder), str(HERE / script), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    try:
        peer = Peer(process)
        peer.answer()
        yield peer
    finally:
        process.kill()
        process.wait()


def _environment(folder: Path) -> Path:
    """Make the peer's virtual environment, torch first, so that its version is ours."""
    python = folder / "venv" / "bin" / "python"
    if not (folder / "installed").exists():
        constraints = HERE.parent / "constraints.txt"
        subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
        for package in ("torch", "sae-lens"):
            install = [python, "-m", "pip", "install", "--quiet", "--constraint", constraints]
            subprocess.run([*install, package], check=True)
        (folder / "installed").touch()
    return python
