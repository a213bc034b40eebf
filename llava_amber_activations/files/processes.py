"""Which process something is of, told so that a pid that was given out again is another process."""

from __future__ import annotations

import os
import re
import socket
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

_INITIAL_PID_NAMESPACE = 0xEFFFFFFC  # linux/proc_ns.h; every later namespace has another number
_UNKNOWN_START = "0"
_MOST_HOST_CHARACTERS = 64  # what Linux allows


@dataclass(frozen=True)
class Process:
    """A process.

    Attributes:
        host: the machine's name, and the pid namespace where it is not the machine's own: equal
            pids of two containers are two processes.
        pid: its number on that host.
        start: when it started, by the clock of a boot of the machine; "0" where /proc does not say.
    """

    host: str
    pid: int
    start: str

    def is_dead(self) -> bool:
        """Whether it has surely ended; of another host's processes nothing is known."""
        if self.host != this_host():
            return False
        try:
            os.kill(self.pid, 0)
        except (ProcessLookupError, OverflowError):
            return True
        except PermissionError:
            pass
        now = _stat(self.pid)
        if now is None:
            return False
        # One whose parent has not asked for its exit status does nothing any more.
        state, start = now
        return state in "ZX" or (self.start != _UNKNOWN_START and start != self.start)


def this_process() -> Process:
    """Return the process that calls, which after a fork is another one."""
    return _process(os.getpid())


@lru_cache(maxsize=1)
def _process(pid: int) -> Process:
    now = _stat(pid)
    return Process(this_host(), pid, _UNKNOWN_START if now is None else now[1])


@lru_cache(maxsize=1)
def this_host() -> str:
    """Return this machine's name as a part of a file's name: letters, digits, `-`, `_`."""
    name = re.sub(r"[^A-Za-z0-9-]", "_", socket.gethostname())[:_MOST_HOST_CHARACTERS]
    try:
        namespace = Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        return name
    return name if namespace == _INITIAL_PID_NAMESPACE else f"{name}_{namespace:x}"


@lru_cache(maxsize=1)
def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")[:8]
    except OSError:
        return ""


def _stat(pid: int) -> tuple[str, str] | None:
    """Return a process's state and its start, or None where /proc does not tell.

    https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html: fields 3 and 22; the second is a
    name in parentheses, which may hold anything.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return fields[0].decode("ascii"), f"{_boot()}{int(fields[19]):x}"
    except (OSError, ValueError, IndexError):
        return None
