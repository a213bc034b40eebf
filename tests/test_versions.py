"""pyproject.toml and the two constraints files say the same: what `make lock` keeps in step."""

import re
import tomllib
from pathlib import Path

import pytest
from check_pins import PIN, unpinned

TESTS = Path(__file__).parent
PYPROJECT = tomllib.loads((TESTS.parent / "pyproject.toml").read_text(encoding="utf-8"))


def pins_of(name):
    return dict(PIN.findall((TESTS / name).read_text(encoding="utf-8")))


def bounds():
    """The lower bound of everything that the project asks for, its build and its extras too."""
    project = PYPROJECT["project"]
    extras = project["optional-dependencies"]
    for line in (
        *PYPROJECT["build-system"]["requires"],
        *project["dependencies"],
        *(line for lines in extras.values() for line in lines),
    ):
        if not line.startswith(project["name"]):
            name, bound = line.split(">=")
            yield name.replace("_", "-"), bound


def padded(version):
    return (*map(int, version.split(".")), 0, 0)[:3]


def test_the_lowest_pins_are_the_lower_bounds():
    """But torch's, which stays at the release of the other file."""
    lowest = pins_of("constraints-lowest.txt")
    for name, bound in bounds():
        if name == "torch":
            assert lowest[name] == pins_of("constraints.txt")[name]
        else:
            assert padded(lowest[name])[:2] == padded(bound)[:2], name
            assert padded(lowest[name]) >= padded(bound), name


def test_all_that_is_asked_for_is_pinned():
    pinned = pins_of("constraints.txt")
    assert {name for name, _ in bounds()} | {"pip"} <= set(pinned)
    assert all(padded(pinned[name]) >= padded(bound) for name, bound in bounds())


@pytest.mark.parametrize("name", ["constraints.txt", "constraints-lowest.txt"])
def test_pins_hold_anywhere(name):
    """Nothing but pins with markers: no index, no path, no extra."""
    for line in (TESTS / name).read_text(encoding="utf-8").splitlines():
        pin = line.partition("#")[0].strip()
        assert re.fullmatch(r"([a-z0-9-]+==[a-z0-9.]+( ; [^:/]+)?)?", pin), line


def test_check_pins_tells_what_is_not_pinned():
    assert any(line.startswith("pytest ") for line in unpinned("pip==0.1\n"))
