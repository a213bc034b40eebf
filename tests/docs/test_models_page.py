"""The table of families on docs/models.md: none is left out, its counts are those of its rows."""

import re
from pathlib import Path

import pytest
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
HEAD = re.compile(
    r"Of the (?P<all>\d+) families of transformers (?P<version>\S+), (?P<captured>\d+) can be "
    r"captured: (?P<checked>\d+) with their values checked, (?P<accepted>\d+) accepted by their "
    r"structure\. (?P<refused>\d+) are refused, and (?P<untried>\d+) could not be tried"
)
ROW = re.compile(r"^\| `(?P<family>[^`]+)` \| `(?P<kind>[^`]+)` \| (?P<verdict>[^|]+) \|", re.M)
BEGINNINGS = {
    "checked": "captured, values checked (",
    "accepted": "accepted by structure",
    "refused": "refused: ",
    "untried": "not tried: ",
}


def test_it_was_made_with_the_pinned_version():
    pinned = (ROOT / "tests" / "constraints.txt").read_text(encoding="utf-8")
    assert HEAD.search(PAGE)["version"] == re.search(r"^transformers==(\S+)", pinned, re.M)[1]


def test_every_family_of_the_version_it_was_made_with_has_a_row():
    if transformers.__version__ != HEAD.search(PAGE)["version"]:
        pytest.skip("the table is of another version of transformers")
    names = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    kinds = {family: each if isinstance(each, str) else each[0] for family, each in names.items()}
    assert {row["family"]: row["kind"] for row in ROW.finditer(PAGE)} == kinds


def test_the_counts_are_those_of_the_rows():
    head = HEAD.search(PAGE)
    verdicts = [row["verdict"] for row in ROW.finditer(PAGE)]
    for outcome, beginning in BEGINNINGS.items():
        assert int(head[outcome]) == sum(said.startswith(beginning) for said in verdicts), outcome
    assert int(head["all"]) == len(verdicts)
    assert int(head["captured"]) == int(head["checked"]) + int(head["accepted"])
