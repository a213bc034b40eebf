"""Damaged files: an ActivationsError or the right values, whatever was damaged.

2,000 of them at full size, drawn from the seed; and each that ever failed, from `cases/`.
"""

import json
import os
from pathlib import Path

import pytest
from cases import KINDS, Case, draw_case
from mutations import described
from originals import make_originals
from watched import run_cases

CASES = Path(__file__).parent / "cases"
FULL, SMALL = 2000, 200


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """The undamaged files of `originals.py`."""
    root = tmp_path_factory.mktemp("originals")
    make_originals(root)
    return root


def told(result):
    case = result.case
    sealed = ", checksums made to fit" if case.resealed else ""
    what = f"{case.kind}: {case.root}/{case.file}{sealed}: {described(case.mutation)[:300]}"
    return f"{what}\n    {result.problem}\n    case: {json.dumps(case.to_json())[:2000]}"


def judge_all(cases, originals, scratch):
    """Run cases, and write how each one ended where CAMPAIGN_RESULTS says."""
    results = []
    for result in run_cases(cases, originals, scratch):
        results.append(result)
        if path := os.environ.get("CAMPAIGN_RESULTS"):
            with Path(path).open("a", encoding="utf-8") as file:
                file.write(json.dumps(result.to_json()) + "\n")
    return results


def count_and_judge(tally, line, results):
    """Count a line of the table, then fail of what was wrong."""
    outcomes = [result.outcome for result in results]
    tally(
        line,
        tried=len(results),
        right=outcomes.count("right"),
        refused=outcomes.count("refused"),
        wrong=outcomes.count("wrong"),
        unseen=sum(result.unseen for result in results),
    )
    wrong = [told(result) for result in results if result.outcome == "wrong"]
    if wrong:
        pytest.fail(f"{len(wrong)} of {len(results)}:\n" + "\n".join(wrong), pytrace=False)


@pytest.mark.parametrize("kind", KINDS)
def test_damaged(kind, originals, campaign, tally, tmp_path):
    share = -(-campaign.of(small=SMALL, full=FULL) // len(KINDS))
    drawn = [draw_case(kind, number, campaign.seed, originals) for number in range(share)]
    cases = [case for case in drawn if case is not None]
    if not cases:
        pytest.skip(f"nothing here writes {kind}")
    results = judge_all(cases, originals, tmp_path)
    count_and_judge(tally, f"damaged files: {kind}", results)


def test_kept_cases(originals, tally, tmp_path):
    """Every case that failed once, as `cases/` describes it."""
    lines = [
        json.loads(line)
        for path in sorted(CASES.glob("*.jsonl"))
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    results = judge_all([Case.from_json(line) for line in lines], originals, tmp_path)
    count_and_judge(tally, "damaged files: kept cases", results)
