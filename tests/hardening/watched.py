"""Cases run in a process of their own, which is watched: a crash, a hang and memory are told.

Processes come from multiprocessing's fork server, which has imported everything once.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import pickle
import resource
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from cases import Case, lay_out

HANG_SECONDS = 20
MOST_BYTES = 2 << 30
# What keeps a runaway from taking the machine down; what is judged is MOST_BYTES of real memory.
_MOST_MAPPED = 12 << 30
# A machine that has other things to do is not a hang: till then it must have computed, or longer.
_HANG_CPU_SECONDS = 5
_LONGEST_SECONDS = 120


@dataclass(frozen=True)
class Result:
    """How a case ended: `right`, `refused` or `wrong`; `unseen` where some reader gave others.

    Attributes:
        steps: each as (name, outcome, what was said).
        peak_bytes: most memory of the process meanwhile.
    """

    case: Case
    outcome: str
    unseen: bool
    steps: tuple[tuple[str, str, str], ...]
    peak_bytes: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        return asdict(self)

    @property
    def problem(self) -> str:
        """What was wrong, one line a step."""
        wrong = [f"{name}: {said}" for name, outcome, said in self.steps if outcome == "wrong"]
        return "; ".join(wrong)


def run_cases(cases: Iterable[Case], originals: Path, scratch: Path) -> Iterator[Result]:
    """Run cases one after another; a process that dies or hangs is replaced."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["judging"])
    _start_fork_server()
    worker: _Worker | None = None
    try:
        for case in cases:
            worker = worker or _Worker(context, originals, scratch)
            result = worker.run(case)
            if not worker.alive:
                worker = None
            yield result
    finally:
        if worker is not None:
            worker.end()


def _start_fork_server() -> None:
    """Start it with this process's import path, which Python 3.11 does not tell it."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    try:
        forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


class _Worker:
    """A process that judges one case after another."""

    def __init__(self, context: Any, originals: Path, scratch: Path) -> None:
        self._ours, theirs = context.Pipe()
        self._process = context.Process(
            target=_work, args=(theirs, originals, scratch / f"worker-{os.getpid()}"), daemon=True
        )
        self._process.start()
        theirs.close()
        self.alive = True
        # Until it has imported what the fork server had not.
        if not self._ours.poll(300) or self._ours.recv() != "ready":
            raise RuntimeError("the process that judges did not start")

    def run(self, case: Case) -> Result:
        """Send a case and wait for its steps."""
        began = time.monotonic()
        self._ours.send(case)
        steps: list[tuple[str, str, str]] = []
        step, peak = "copy", 0
        while True:
            problem = self._wait()
            if problem:
                steps.append((step, "wrong", problem))
                break
            try:
                message = self._ours.recv()
            except (EOFError, OSError):
                steps.append((step, "wrong", self._death()))
                break
            if isinstance(message, str):
                step = message
            elif isinstance(message, tuple):
                steps.append(message)
            else:
                peak = message
                break
        if peak > MOST_BYTES:
            steps.append(("memory", "wrong", f"{peak / 2**30:.1f} GiB"))
            self.end()
        outcomes = {outcome for _, outcome, _ in steps}
        outcome = next((each for each in ("wrong", "refused") if each in outcomes), "right")
        seconds = time.monotonic() - began
        return Result(case, outcome, "other" in outcomes, tuple(steps), peak, round(seconds, 2))

    def _wait(self) -> str | None:
        """Wait for the next message; say what came instead."""
        began, cpu = time.monotonic(), self._cpu_seconds()
        while True:
            if self._ours.poll(1):
                return None
            if not self._process.is_alive():
                return self._death()
            waited = time.monotonic() - began
            computed = self._cpu_seconds() - cpu
            hangs = waited > HANG_SECONDS and computed > _HANG_CPU_SECONDS
            if hangs or waited > _LONGEST_SECONDS:
                self.end()
                return f"no end after {waited:.0f} s ({computed:.0f} s of computing)"

    def _death(self) -> str:
        self._process.join()
        self.alive = False
        return f"the process died (exit code {self._process.exitcode})"

    def _cpu_seconds(self) -> float:
        try:
            fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        except OSError:
            return 0.0

    def end(self) -> None:
        """End the process."""
        self.alive = False
        self._process.kill()
        self._process.join()
        self._ours.close()


def _work(connection: Connection, originals: Path, scratch: Path) -> None:
    from judging import Bench, judge

    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    faulthandler.disable()
    resource.setrlimit(resource.RLIMIT_DATA, (_MOST_MAPPED, _MOST_MAPPED))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    expected = pickle.loads((originals / "expected.pickle").read_bytes())
    connection.send("ready")
    while True:
        try:
            case = connection.recv()
        except EOFError:
            return
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        lay_out(case, originals, scratch / "damaged")
        _reset_peak()
        bench = Bench(case, scratch / "damaged", originals, scratch, expected)
        for message in judge(bench):
            said = message
            connection.send(said if isinstance(said, str) else (said.name, said.outcome, said.said))
        connection.send(_peak_bytes())
        shutil.rmtree(scratch, ignore_errors=True)


def _reset_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _peak_bytes() -> int:
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
