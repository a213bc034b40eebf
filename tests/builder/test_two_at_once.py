"""Two processes that write to one place: the second is refused, the first is not disturbed."""

import re

import pytest
from paused import go_on, start_paused

from builder.build import build
from builder.export import export
from builder.import_pt import import_pt


def files_of(folder):
    """Every file of a folder, hidden ones too, with its bytes."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def commands(small_store, small_dataset, write_layers, tmp_path_factory):
    """Of each command: where to pause it, its arguments, and the function that does the same."""
    pt = tmp_path_factory.mktemp("pt") / "pt"
    write_layers(pt)
    figures = "builder.figures.draw_figures"
    return {
        "build": (
            figures,
            lambda place: ["build", small_store, place],
            lambda place: build(small_store, place),
        ),
        "import": (
            figures,
            lambda place: ["import", pt, place],
            lambda place: import_pt(pt, place),
        ),
        "export": (
            "builder.export.save_pt",
            lambda place: ["export", small_dataset, place, "--format", "layers"],
            lambda place: export(small_dataset, place, layout="layers"),
        ),
    }


@pytest.mark.parametrize(
    ("first", "second"),
    [("build", "build"), ("build", "import"), ("import", "import"), ("export", "export")],
)
def test_the_second_is_refused(commands, cli, tmp_path, first, second):
    """In one line with the first one's pid; the first one's result is that of an undisturbed run.

    Two builds deleted each other's folder, and one of them, or both, died of it.
    """
    where, arguments, undisturbed = commands[first]
    place = tmp_path / "here" / "place"
    process = start_paused(where, *arguments(place))
    refused = cli(*commands[second][1](place))
    assert refused.returncode == 1
    said = rf"error: {re.escape(str(place))} is being (made|exported into) by process {process.pid}"
    assert re.match(rf"{said} on \S+ since .*: wait until it is done, .*\n$", refused.stderr)
    assert refused.stderr.count("\n") == 1
    assert go_on(process)[0] == 0
    undisturbed(tmp_path / "undisturbed")
    assert files_of(place) == files_of(tmp_path / "undisturbed")
    assert list(place.parent.iterdir()) == [place]


@pytest.mark.parametrize(
    ("first", "second"),
    [("build", "build"), ("build", "import"), ("import", "import"), ("export", "export")],
)
def test_after_a_kill_the_next_takes_over(commands, tmp_path, first, second):
    """What the dead one left, its lock too, is cleared away."""
    place = tmp_path / "here" / "place"
    process = start_paused(commands[first][0], *commands[first][1](place))
    process.kill()
    process.communicate()
    assert any(path.name.endswith(".lock") for path in place.parent.rglob("*"))
    commands[second][2](place)
    commands[second][2](tmp_path / "undisturbed")
    assert files_of(place) == files_of(tmp_path / "undisturbed")
    assert list(place.parent.iterdir()) == [place]
