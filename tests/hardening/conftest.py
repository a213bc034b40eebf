"""The campaign: its size, its seed, and the file that each of its tests counts into.

Everything in this folder carries the marker `hardening`. Tests of this folder run where a path in
it is named, or where the environment variable CAMPAIGN says `small` or `full`; otherwise they are
left out, so that `pytest tests` stays quick.
"""

import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from commands import Commands
from fork_server import ForkServer
from originals import make_originals

HERE = Path(__file__).parent
SIZES = ("small", "full")
SEED = 20250


@dataclass(frozen=True)
class Campaign:
    """How much is tried, and the seed of every draw."""

    size: str
    seed: int

    def of(self, *, small, full):
        """Return the one of two numbers that belongs to this size."""
        return full if self.size == "full" else small


def _campaign():
    size = os.environ.get("CAMPAIGN") or "small"
    if size not in SIZES:
        raise pytest.UsageError(f"CAMPAIGN is {size!r}: it is {' or '.join(SIZES)}")
    return Campaign(size, int(os.environ.get("CAMPAIGN_SEED") or SEED))


def pytest_report_header():
    campaign = _campaign()
    return f"campaign: size {campaign.size}, seed {campaign.seed} (CAMPAIGN, CAMPAIGN_SEED)"


def pytest_collection_modifyitems(config, items):
    """Mark the tests of this folder; leave them out where nobody asked for them."""
    ours = [item for item in items if HERE in item.path.parents]
    for item in ours:
        item.add_marker("hardening")
    named = any(
        HERE in (path, *path.parents)
        for path in (
            Path(config.invocation_params.dir, str(argument).partition("::")[0]).resolve()
            for argument in config.args
        )
    )
    if named or os.environ.get("CAMPAIGN") or "hardening" in config.option.markexpr:
        return
    config.hook.pytest_deselected(items=ours)
    items[:] = [item for item in items if item not in set(ours)]


@pytest.fixture(scope="session")
def campaign():
    """Size and seed: `campaign.of(small=5, full=100)`, `random.Random(campaign.seed)`."""
    return _campaign()


@pytest.fixture
def tally(request):
    """Function that counts a line of the campaign's table, into the file of CAMPAIGN_TALLY.

    `tried` inputs, kills or faults; of them ended `right` (the right result), `refused` (one
    sentence that says what is wrong) and `wrong` (anything else). `unseen` counts those after which
    some reader that checks nothing was given other values than before, whatever `verify` said.
    Lines of one name are added up. Count before asserting: what failed belongs in the table.
    """
    began = time.monotonic()

    def count(line: str, *, tried: int, right: int, refused: int, wrong: int, unseen=None):
        nonlocal began
        assert right + refused + wrong == tried, "each thing tried ended in one of three ways"
        path = os.environ.get("CAMPAIGN_TALLY")
        if path:
            now = time.monotonic()
            counted = {
                "line": line,
                "tried": tried,
                "right": right,
                "refused": refused,
                "wrong": wrong,
                "unseen": unseen,
                "seconds": round(now - began, 1),
                "test": request.node.nodeid,
            }
            began = now
            with Path(path).open("a", encoding="utf-8") as file:
                file.write(json.dumps(counted) + "\n")

    return count


@pytest.fixture(scope="session")
def _originals_and_server(tmp_path_factory):
    root = tmp_path_factory.mktemp("originals")
    make_originals(root)
    server = ForkServer()
    yield root, server
    server.close()


@pytest.fixture
def commands(_originals_and_server, hub):
    """The commands that are killed and run out of room."""
    return Commands(*_originals_and_server, hub)


@pytest.fixture
def undisturbed(commands, tmp_path):
    """Function that runs a command undisturbed: what comes of it, and how its processes ended."""

    def run(name):
        base = tmp_path / "undisturbed"
        commands.prepare(name, base)
        ended = commands.run(name, base)
        assert {each.status for each in ended} == {0}, [each.said for each in ended]
        wanted = commands.result(name, base)
        assert not any(path.endswith((".partial", ".lock")) for path in wanted)
        shutil.rmtree(base)
        return wanted, ended

    return run
