"""`kill -9` at any moment: the same command finishes with the same bytes, and nothing is left over.

At random moments, drawn evenly over the time that an undisturbed run takes; and just before each
thing that a run does to a file, where the run kills itself.
"""

import random
import time

import pytest
from commands import NAMES, PUSH, TWO_RANKS

# How many kills each command gets.
SHARES = {
    "small": (2, 2, 2, 1, 1, 1, 1, 1, 2, 2),
    "full": (16, 18, 16, 12, 12, 12, 12, 12, 13, 13),
}


@pytest.mark.parametrize("name", NAMES)
def test_killed_at_a_random_moment(commands, undisturbed, campaign, tally, tmp_path, name):
    if campaign.size == "full":
        undisturbed(name)  # the first run finds nothing in the system's caches
    wanted, ended = undisturbed(name)
    seconds = max(each.seconds for each in ended)
    generator = random.Random(f"{campaign.seed} {name}")
    n_kills = SHARES[campaign.size][NAMES.index(name)]
    problems, n_killed = {}, 0
    for kill in range(n_kills):
        base = tmp_path / f"kill-{kill}"
        commands.prepare(name, base)
        moment = generator.uniform(0, seconds)
        runs = commands.start(name, base)
        # One rank, the other, or both at once, as when a machine goes down.
        victims = generator.choice((runs[:1], runs[1:], runs)) if name == TWO_RANKS else runs
        time.sleep(moment)
        for run in victims:
            run.kill()
        n_killed += -9 in [run.wait().status for run in victims]
        for run in runs:
            if run not in victims:
                # It may wait for the dead one to begin, until the launcher ends it.
                run.wait(within=generator.uniform(0, seconds))
        problem = commands.finished(name, base, wanted)
        if problem:
            problems[f"{len(victims)} killed after {moment:.3f} of {seconds:.3f} s"] = problem
    n_right = n_kills - len(problems)
    tally(
        f"kill -9 at a random moment: {name}",
        **{"tried": n_kills, "right": n_right, "refused": 0, "wrong": len(problems)},
    )
    assert not problems
    assert campaign.size == "small" or 3 * n_killed >= n_kills, "many must meet a run that works"


@pytest.mark.parametrize("name", NAMES)
def test_killed_before_each_deed(commands, undisturbed, campaign, tally, tmp_path, name):
    """Before a file is opened, renamed, linked, removed, made readable, or a folder is made."""
    wanted, ended = undisturbed(name)
    n_deeds = max(each.n_deeds for each in ended)
    moments = campaign_moments(n_deeds, campaign.of(small=3, full=24))
    problems = {}
    for moment in moments:
        base = tmp_path / f"kill-{moment}"
        commands.prepare(name, base)
        killed = commands.run(name, base, kill_at=moment)
        assert name in (TWO_RANKS, PUSH) or killed[0].status == -9
        problem = commands.finished(name, base, wanted)
        if problem:
            problems[f"before deed {moment} of {n_deeds}"] = problem
    n_right = len(moments) - len(problems)
    tally(
        f"kill -9 before a deed: {name}",
        **{"tried": len(moments), "right": n_right, "refused": 0, "wrong": len(problems)},
    )
    assert not problems


def campaign_moments(n_deeds, most):
    """Return so many deeds of a run, evenly over all of them, the first and the last too."""
    assert n_deeds > 5
    most = min(n_deeds, most)
    return sorted({1 + round(k * (n_deeds - 1) / (most - 1)) for k in range(most)})
