"""What every command, or several, take: --version, completion, -q, -v, --json."""

import json
import os
import subprocess
import sys
from importlib.metadata import version
from itertools import chain

import pytest

from builder.info import info
from llava_amber_activations.console import verbosity


def test_version(cli):
    result = cli("--version")
    assert result.returncode == 0
    assert result.stdout == f"llava-amber {version('llava-amber-activations')}\n"


@pytest.mark.parametrize(
    ("words", "completed"),
    [("llava-amber ver", ["verify"]), ("llava-amber capture --store", ["--store-dtype"])],
)
def test_completion(words, completed):
    """The shell's question is answered with the commands, and with a command's options."""
    program = (
        "import sys; sys.argv = ['llava-amber']\n"
        "from llava_amber_activations.cli import main; main()"
    )
    question = {
        "_LLAVA_AMBER_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    result = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **question},
    )
    assert result.stdout.split() == completed


@pytest.fixture
def arguments(tiny_llava, image_dir, query_file, tmp_path):
    """Of a capture of two samples."""
    return (
        *("capture", "--model", tiny_llava, "--dataset", query_file, "--image-dir", image_dir),
        *("--output-dir", tmp_path / "store", "--max-samples", "2"),
    )


@pytest.mark.parametrize("place", ["before", "after"])
def test_quiet(cli, arguments, place):
    """Nothing is on stderr, and the result is on stdout."""
    quiet = [["-q"] * (place == "before"), arguments, ["-q"] * (place == "after")]
    result = cli(*chain(*quiet), from_nothing=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert "2 samples, 2 rows" in result.stdout


def test_libraries_are_heard_when_asked_for(cli, arguments, monkeypatch):
    """By default none of their bars is on stderr; with -v they are."""
    # A command that another test ran in this process has hushed them for those that it starts.
    for name in verbosity._QUIET_LIBRARIES:
        monkeypatch.delenv(name, raising=False)
    result = cli(*arguments, from_nothing=True)
    assert result.returncode == 0 and "Loading weights" not in result.stderr
    again = cli(*arguments, "-v", from_nothing=True)
    assert again.returncode == 0 and "Loading weights" in again.stderr


def test_info_for_a_script(cli, last_store, all_dataset):
    """One object on one line, that says what the table says, in numbers."""
    result = cli("info", "--json", last_store)
    assert result.stdout.count("\n") == 1
    store = json.loads(result.stdout)
    assert (store["kind"], store["finished"], store["rows"]) == ("capture store", True, 8)
    assert store["chunks"] == {"made": 3, "total": 3}
    assert store["recipe"] == json.loads((last_store / "capture.json").read_text())
    found = json.loads(cli("info", all_dataset, "--json").stdout)
    manifest = json.loads((all_dataset / "manifest.json").read_text())
    lines = dict(info(all_dataset))
    assert lines["bytes"].startswith(f"{found['bytes']} (")
    assert lines["rows"] == str(found["rows"]) and found["recipe"] == manifest["recipe"]
    shards = [path for path in manifest["files"] if path.startswith("data/L5-")]
    assert found["configs"]["default"]["L5"] == {
        "files": len(shards),
        "rows": found["rows"],
        "bytes": sum(manifest["files"][path]["bytes"] for path in shards),
    }


def test_verify_for_a_script(cli, last_store, tmp_path, tiny_llava, image_dir):
    """Right or not, each check is an object on a line; the exit status is the same."""
    again = ("--recapture", "1", "--model", tiny_llava, "--image-dir", image_dir)
    result = cli("verify", last_store, "--json", *again)
    assert result.returncode == 0, result.stderr
    checked, recaptured = map(json.loads, result.stdout.splitlines())
    assert (checked["right"], checked["rows"], checked["kind"]) == (True, 8, "capture store")
    assert "checksums" in checked["checks"]
    assert recaptured["right"] and recaptured["largest_error"] <= recaptured["tolerance"]
    assert len(recaptured["samples"]) == 1
    result = cli("verify", tmp_path, "--json")
    assert result.returncode == 1 and result.stderr.startswith("error: ")
    wrong = json.loads(result.stdout)
    assert not wrong["right"] and result.stderr == f"error: {wrong['error']}\n"
