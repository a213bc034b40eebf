"""A full disk at any write: one sentence that names the file; with room, the same command finishes.

From each deed on nothing more can be opened to write, renamed or made; no file may become larger
than a limit, so that the libraries that write by themselves meet it in mid-file; and, where this
user may mount one, a file system that is as small as that.
"""

import os
import re
import subprocess

import pytest
from commands import NAMES, PUSH, TWO_RANKS

WRITERS = tuple(name for name in NAMES if name not in (TWO_RANKS, PUSH))
SENTENCES = (
    re.compile(r"^error: (?P<path>/.*) cannot be written \([^()]*\): \S.*$", re.M),
    # Before anything is written, where the least that it takes is more than there is.
    re.compile(
        r"^error: .* takes .* or more, and the disk of (?P<path>/.*) has .* free: \S.*$", re.M
    ),
)
# Of no file of the result: a limit on files is one on shared memory, too.
SHARED_MEMORY = re.compile(r"^error: .* bytes of shared memory, and the system gives none .*$")


def refusal_problem(ended, base):
    """Return what is wrong with how a run that found no room ended, or None."""
    said = re.split(r"[\r\n]", ended.said)
    errors = [line for line in said if line.startswith("error: ")]
    matches = (each.match(errors[0]) for each in SENTENCES) if errors else ()
    sentence = next(filter(None, matches), None)
    named = sentence is not None and sentence["path"].startswith(str(base))
    named = named or (bool(errors) and SHARED_MEMORY.match(errors[0]) is not None)
    if ended.status == 1 and len(errors) == 1 and named and "Traceback" not in ended.said:
        return None
    return f"ended with {ended.status}: {ended.said[-2000:]}"


class Tried:
    """What was tried, and what was wrong with it."""

    def __init__(self):
        self.problems = {}
        self.n_tried = self.n_refused = 0

    def judge(self, what, problem):
        self.n_tried += 1
        if problem is not None:
            self.problems[what] = problem

    def count(self, tally, line):
        wrong = len(self.problems)
        refused = self.n_tried - wrong
        tally(line, tried=self.n_tried, right=0, refused=refused, wrong=wrong)
        assert not self.problems
        assert self.n_tried


@pytest.mark.parametrize("name", WRITERS)
def test_full_from_a_deed_on(commands, undisturbed, campaign, tally, tmp_path, name):
    wanted, [ended] = undisturbed(name)
    tried = Tried()
    most = campaign.of(small=3, full=16)
    for k in range(most):
        full_at = 1 + round(k * (ended.n_deeds - 1) / (most - 1))
        base = tmp_path / f"full-{full_at}"
        commands.prepare(name, base)
        [full] = commands.run(name, base, full_at=full_at)
        if full.status == 0:
            continue  # it had nothing left to write
        problem = refusal_problem(full, base) or commands.finished(name, base, wanted)
        tried.judge(f"from deed {full_at} of {ended.n_deeds} on", problem)
    tried.count(tally, f"full disk from a write on: {name}")


@pytest.mark.parametrize("name", WRITERS)
def test_no_file_may_be_so_large(commands, undisturbed, campaign, tally, tmp_path, name):
    """A byte less than each file of the result has; in mid-file, whoever writes it."""
    wanted, _ = undisturbed(name)
    sizes = sorted({len(content) for content in wanted.values() if content})
    most = campaign.of(small=2, full=12)
    tried = Tried()
    for size in sizes[:: max(1, len(sizes) // most)]:
        base = tmp_path / f"limit-{size}"
        commands.prepare(name, base)
        [limited] = commands.run(name, base, most_bytes=size - 1)
        problem = refusal_problem(limited, base) or commands.finished(name, base, wanted)
        tried.judge(f"no file over {size - 1} bytes", problem)
    tried.count(tally, f"files cut short by a limit: {name}")


@pytest.fixture
def small_file_system(tmp_path):
    """Function that mounts a file system of so many bytes, or gives a mounted one that many."""
    place = tmp_path / "mounted"
    place.mkdir()

    def mount(n_bytes, *options):
        how = ",".join([*options, f"size={n_bytes}"])
        command = ["mount", "-t", "tmpfs", "-o", how, "tmpfs", str(place)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"this user may mount no file system: {done.stderr.strip()}")
        return place

    yield mount
    while os.path.ismount(place):
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_system_that_is_full(
    commands, undisturbed, campaign, tally, small_file_system, name
):
    wanted, _ = undisturbed(name)
    page = 4096
    needed = sum(-(-len(content) // page) * page for content in wanted.values() if content)
    most = campaign.of(small=2, full=12)
    tried = Tried()
    for k in range(most):
        size = page * (1 + round(k * (needed / page - 1) / most))
        base = small_file_system(size) / f"size-{size}"
        try:
            commands.prepare(name, base)
            [full] = commands.run(name, base)
            problem = refusal_problem(full, base)
            small_file_system(64 << 20, "remount")
            problem = problem or commands.finished(name, base, wanted)
        finally:
            subprocess.run(["umount", str(base.parent)], check=True)
        tried.judge(f"{size} bytes, where {needed} are needed", problem)
    tried.count(tally, f"full file system: {name}")
