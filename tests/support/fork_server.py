"""Runs of the command line by a process that has imported everything, so that one takes little.

The server starts no thread and computes nothing before it forks, so that a run is as good as new.
Each is a process group of its own.
"""

import errno
import fcntl
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

IMPORTS = (
    "accelerate",
    "builder.build",
    "builder.commands",
    "builder.conversion",
    "builder.export",
    "builder.folder.figures",
    "builder.handover.crosslayer_coding",
    "builder.handover.hand_over",
    "builder.handover.llamascopium",
    "builder.handover.saelens",
    "builder.import_pt",
    "builder.push",
    "builder.verify",
    "capture.run",
    "capture.commands",
    "datasets",
    "huggingface_hub",
    "llava_amber_activations.cli.app",
    "matplotlib.backends.backend_agg",
    "pyarrow.parquet",
    "torch",
    "torch.distributed",
    "transformers",
    "transformers.models.llava.modeling_llava",
    "transformers.models.llama.modeling_llama",
    "transformers.models.clip.modeling_clip",
    "transformers.models.llava.processing_llava",
)
# Of numpy, and of the allocator that pyarrow brings.
NO_THREADS = {"OPENBLAS_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}

# Before their number, at the end of what a run said.
DEEDS = "\x1edeeds "


@dataclass(frozen=True)
class Ended:
    """How a run ended.

    Attributes:
        status: its exit status; minus the signal, where it was killed.
        said: on stdout, and on stderr where that was not kept apart.
        said_apart: on stderr, where it was.
        n_deeds: what it did to files, where it was not killed; see `ForkServer.start`.
    """

    status: int
    said: str
    said_apart: str
    seconds: float
    n_deeds: int


class Run:
    """A run that has been started."""

    def __init__(self, server, pid):
        self._server = server
        self._began = time.monotonic()
        self.pid = pid

    def kill(self):
        """`kill -9` its whole group, whether it has ended or not."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def wait(self, within=120):
        """Wait for its end, end it with -9 after so many seconds, and end what it left running."""
        answer = self._server.ask({"wait": self.pid, "within": within})
        seconds = time.monotonic() - self._began
        self.kill()
        said, _, n_deeds = answer["said"].partition(DEEDS)
        status = os.waitstatus_to_exitcode(answer["status"])
        return Ended(status, said, answer["apart"], seconds, int(n_deeds or 0))


class ForkServer:
    """The process that has imported everything."""

    def __init__(self):
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **NO_THREADS},
        )
        assert self._process.stdout.readline() == '"ready"\n', "the fork server did not start"

    def ask(self, request):
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def start(
        self,
        arguments,
        *,
        under=None,
        kill_at=0,
        full_at=0,
        most_bytes=None,
        cwd=None,
        apart=False,
        **environment,
    ):
        """Start `llava-amber ARGUMENTS`.

        What Python does to files in the folder `under` is counted from 1: it opens, renames, links
        or removes one, makes or removes a folder, changes who may read it.

        Args:
            under: nothing is counted where it is None.
            cwd: the folder that it runs in.
            apart: keep what it says on stderr apart.
            kill_at: the run kills itself with -9 just before it does this one.
            full_at: from this one on nothing more can be written, as on a full disk.
            most_bytes: the largest file that the run may write.
        """
        request = {
            "arguments": [str(argument) for argument in arguments],
            "under": under and str(under),
            "cwd": cwd and str(cwd),
            "apart": apart,
            "kill_at": kill_at,
            "full_at": full_at,
            "most_bytes": most_bytes,
            "environment": environment,
        }
        return Run(self, self.ask(request)["pid"])

    def run(self, arguments, **options):
        return self.start(arguments, **options).wait()

    def close(self):
        self._process.communicate()


def main():
    for name in IMPORTS:
        importlib.import_module(name)
    n_threads = len(list(Path("/proc/self/task").iterdir()))
    assert n_threads == 1, f"{n_threads} threads before the first fork"
    print(json.dumps("ready"), flush=True)
    pipes = {}
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            pid = request["wait"]
            status = _wait(pid, request["within"])
            said, apart = map(_read_all, pipes.pop(pid))
            answer = {"status": status, "said": said, "apart": apart}
        else:
            # Pipes, because what a run says is not to count as a file that it writes.
            ours, its = zip(_pipe(), _pipe(), strict=True)
            pid = os.fork()
            if not pid:
                _child(request, *its)
            for end in its:
                os.close(end)
            pipes[pid] = ours
            answer = {"pid": pid}
        print(json.dumps(answer), flush=True)


def _pipe():
    ours, its = os.pipe()
    fcntl.fcntl(its, fcntl.F_SETPIPE_SZ, 1 << 20)
    return ours, its


def _wait(pid, within):
    until = time.monotonic() + within
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return status
        if time.monotonic() > until:
            os.killpg(pid, signal.SIGKILL)
            return os.waitpid(pid, 0)[1]
        time.sleep(0.005)


def _read_all(pipe):
    os.set_blocking(pipe, False)  # a process that the run started may have it open still
    parts = []
    with suppress(BlockingIOError):
        while part := os.read(pipe, 1 << 20):
            parts.append(part)
    os.close(pipe)
    return b"".join(parts).decode(errors="replace")


def _child(request, output, apart):
    status = 70
    try:
        os.setsid()
        os.dup2(output, 1)
        os.dup2(apart if request["apart"] else output, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ.update(request["environment"])
        if request["cwd"]:
            os.chdir(request["cwd"])
        n_deeds = _watch_deeds(request["under"], request["kill_at"], request["full_at"])
        if request["most_bytes"] is not None:
            # Python ignores SIGXFSZ: a write beyond the limit is an error like that of a full disk.
            limit = request["most_bytes"]
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        sys.argv = ["llava-amber", *request["arguments"]]
        status = _main()
        os.write(1, f"{DEEDS}{n_deeds()}".encode())
    finally:
        os._exit(status)


def _main():
    from llava_amber_activations.cli import main

    status = 0
    try:
        main()
    except SystemExit as exit_:
        status = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
        if isinstance(exit_.code, str):
            print(exit_.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    return status


def _watch_deeds(under, kill_at, full_at):
    """Count deeds; kill this process just before one of them, or let those from one on fail.

    https://docs.python.org/3/library/audit_events.html: an event comes before what it tells of.

    Returns:
        A function that says how many there were.
    """
    if under is None:
        return lambda: 0
    prefix = f"{Path(under).resolve()}/"
    need_room = {"os.rename", "os.mkdir", "os.link"}
    names = {"open", "os.remove", "os.rmdir", "os.chmod"} | need_room
    n_deeds = 0

    def watch(event, arguments):
        nonlocal n_deeds
        if event not in names or not isinstance(arguments[0], (str, bytes)):
            return
        path = os.fsdecode(arguments[0])
        if not path.startswith(prefix):
            return
        n_deeds += 1
        if n_deeds == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        writes = event in need_room or (event == "open" and arguments[2] & os.O_CREAT)
        if writes and 0 < full_at <= n_deeds:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    sys.addaudithook(watch)
    return lambda: n_deeds


if __name__ == "__main__":
    main()
