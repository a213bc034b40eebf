"""`--help`: every default is there to be read, in plain text."""

import os
import re
import subprocess
import sys

import pytest
import typer

from builder.commands import add_commands as add_builder
from capture.commands import add_commands as add_capture
from llava_amber_activations.cli.app import assemble

COMMANDS = (
    *("demo", "capture", "recapture", "build", "verify", "info"),
    *("report", "push", "export", "import"),
)


@pytest.fixture(scope="module")
def helps():
    """Text of `COMMAND --help`, by command, with lines and runs of spaces joined; its entries."""
    # Each in a process of its own would take ten seconds together.
    program = (
        "from llava_amber_activations.cli.app import assemble\n"
        f"for command in {COMMANDS}:\n"
        "    print('=', command)\n"
        "    assemble()([command, '--help'], standalone_mode=False)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    parts = re.split(r"^= (\S+)\n", result.stdout, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def entries(text):
    """Return the text of every option's entry, by the option's long name."""
    options = text.partition("Options:\n")[2]
    found = {}
    for entry in re.split(r"^  (?=-)", options, flags=re.MULTILINE)[1:]:
        joined = " ".join(entry.split())
        found[re.search(r"--[\w-]+", joined)[0]] = (entry, joined)
    return found


@pytest.mark.parametrize("command", COMMANDS)
def test_every_default_is_visible(helps, command):
    """Of every option that takes a value and may be left out; a flag is off unless it is given."""
    found = entries(helps[command])
    assert {"--help", "--quiet", "--verbose"} < found.keys()
    for name, (entry, joined) in found.items():
        # The names, and the kind of value where there is one; the help text begins further right.
        head = re.split(r" {2,}|\n", entry, maxsplit=1)[0]
        is_flag = re.fullmatch(r"(-\w, )?--[\w-]+", head) is not None
        assert is_flag or "[default: " in joined or "[required]" in joined, name


@pytest.mark.parametrize(
    ("command", "option", "default"),
    [
        ("capture", "--dtype", "(float16 on a GPU, else float32)"),
        ("capture", "--store-dtype", "(the same as --dtype)"),
        ("capture", "--num-workers", "(0 on a CPU, else 8); x>=0"),
        ("capture", "--chunk-samples", "(64 with --positions last, else 8); x>=1"),
        ("capture", "--max-new-tokens", "(512); x>=1"),
        ("capture", "--n-targets", "16; x>=1"),
        ("export", "--layers", "(all)"),
        ("export", "--n-targets", "(as captured); x>=1"),
        ("build", "--n-targets", "(as captured); x>=1"),
        ("import", "--first-target", "(as exported, or 1); 0<=x<=1"),
        ("build", "--max-shard-size", "500MB"),
        ("report", "--max-bytes", "1GB"),
    ],
)
def test_a_default(helps, command, option, default):
    assert f"[default: {default}]" in entries(helps[command])[option][1]


def test_values_are_shown_as_they_are_written(helps):
    """Names of options have hyphens, and the sites of x underscores, as the recipe has them."""
    assert "resid_mid|resid_pre|mlp_in" in entries(helps["capture"])["--x-site"][1]


def test_no_help_is_missed():
    """The commands above are those that the packages declare, but for hidden ones."""
    app = typer.Typer()
    for add in (add_builder, add_capture):
        add(app)
    declared = {each.name for each in app.registered_commands if not each.hidden} | {"demo"}
    assert declared == set(COMMANDS)
    assert {each.name or "demo" for each in assemble().registered_commands} >= declared


def test_capture_alone(helps):
    """`python -m capture --help` says the same options."""
    result = subprocess.run(
        [sys.executable, "-m", "capture", "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "80"},
    )
    assert entries(result.stdout).keys() == entries(helps["capture"]).keys()
