"""CONTRIBUTING, CHANGELOG, CITATION and pyproject say what is so, and the same."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

from llava_amber_activations import __version__

ROOT = Path(__file__).parents[2]
PACKAGES = ("llava_amber_activations", "builder", "capture")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
TEXTS = {
    name: (ROOT / name).read_text(encoding="utf-8") for name in ("CONTRIBUTING.md", "CHANGELOG.md")
}


def test_one_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert __version__ == PYPROJECT["version"] == citation["version"]
    released = re.search(
        rf"^## {re.escape(__version__)} - (.*)$", TEXTS["CHANGELOG.md"], re.MULTILINE
    )
    assert released and released[1] == str(citation["date-released"])
    assert citation["license"] == PYPROJECT["license"]
    assert citation["url"] == PYPROJECT["urls"]["Dataset"]


def test_every_folder_has_its_line():
    """And no line is of a folder that is not there."""
    listed = re.findall(r"^\| `(\w+)/` \| \S", TEXTS["CONTRIBUTING.md"], re.MULTILINE)
    found = [path.parent.name for name in PACKAGES for path in (ROOT / name).glob("*/__init__.py")]
    assert sorted(listed) == sorted(found)


@pytest.mark.parametrize("name", TEXTS)
def test_files_that_are_named_are_there(name):
    """Links, and paths in backquotes that have a suffix or begin at a folder of ours."""
    links = re.findall(r"\]\(([^):#]+)[#)]", TEXTS[name])
    quoted = re.findall(r"`((?:tests|docs|builder|capture)/[\w./]+|\.ci/run)`", TEXTS[name])
    for path in (*links, *quoted):
        assert (ROOT / path).exists(), path


def test_the_changelog_keeps_its_form():
    headings = re.findall(r"^## (.*)$", TEXTS["CHANGELOG.md"], re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert all(re.fullmatch(r"\d+\.\d+\.\d+ - \d{4}-\d\d-\d\d", each) for each in headings[1:])
    kinds = set(re.findall(r"^### (.*)$", TEXTS["CHANGELOG.md"], re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
