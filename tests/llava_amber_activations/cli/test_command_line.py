"""The command line: spellings, exit statuses, bare machines, the demo."""

import ast
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import load_dataset

ROOT = Path(__file__).parents[3]
COMMANDS = (
    "demo",
    "capture",
    "build",
    "export",
    "import",
    "push",
    "verify",
    "info",
    "report",
    "recapture",
)


def test_help_of_every_command(cli):
    result = cli("--help")
    assert result.returncode == 0
    assert all(f" {command} " in result.stdout for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help(cli, command):
    result = cli(command, "--help")
    assert result.returncode == 0 and "Usage" in result.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("capture", "--model", "m"),
        ("build", "only-one"),
        ("export", "a", "b", "--format", "zip"),
        ("capture", "--positions", "some"),
        ("nothing",),
        ("push", "--repo-id", "a/b"),
        ("push", "dataset", "--activations_dir", "dataset", "--repo-id", "a/b"),
    ],
    ids=" ".join,
)
def test_wrong_usage(cli, arguments):
    result = cli(*arguments)
    assert result.returncode == 2 and "Traceback" not in result.stderr


def test_the_originals_spelling(cli, tiny_llava, image_dir, query_file, tmp_path):
    """Its capture script's options, with underscores and with =, end in a finished store."""
    result = cli(
        *("capture", "--model", tiny_llava, "--dataset", query_file),
        *(f"--image_dir={image_dir}", "--output_dir", tmp_path / "store_1", "--n_targets", "4"),
        *("--max_samples", "3"),
    )
    assert result.returncode == 0, result.stderr
    assert "3 samples, 3 rows" in result.stdout
    assert (tmp_path / "store_1" / "samples.jsonl").is_file()


def test_capture_runs_on_a_bare_machine(tiny_llava, image_dir, query_file, tmp_path):
    """Where datasets and pyarrow cannot be imported, `python -m capture` captures."""
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    for name in ("datasets", "pyarrow", "pandas"):
        (blocked / f"{name}.py").write_text(f"raise ImportError('no {name} here')")
    result = subprocess.run(
        [
            *(sys.executable, "-m", "capture", "--model", tiny_llava, "--dataset", query_file),
            *("--image-dir", image_dir, "--output-dir", tmp_path / "store", "--max-samples", "2"),
        ],
        capture_output=True,
        text=True,
        check=False,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(blocked), os.environ.get("PYTHONPATH", "")]),
        },
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "store" / "samples.jsonl").read_text().count("\n") == 2


def test_demo(cli, tmp_path):
    """Makes everything, says the commands to do it for real, and refuses a folder in use."""
    result = cli("demo", "--output-dir", tmp_path / "demo")
    assert result.returncode == 0, result.stderr
    assert "splits L0 … L30" in result.stdout
    assert "llava-amber capture --model llava-hf/llava-1.5-7b-hf" in result.stdout
    # Each command stands there as it was run, and can be run again.
    commands = [line for line in result.stdout.splitlines() if line.startswith("$ llava-amber ")]
    assert [shlex.split(each)[2] for each in commands] == [
        *("demo-input", "capture", "build", "verify", "export", "info", "report")
    ]
    assert f"To look at what was made: {tmp_path / 'demo' / 'report.html'}" in result.stdout
    again = cli(*shlex.split(next(each for each in commands if " verify " in each))[2:])
    assert again.returncode == 0 and again.stdout.strip() in result.stdout
    for path in (
        "store/samples.jsonl",
        "dataset/manifest.json",
        "pt/L0/batch_0_x.pt",
        "report.html",
    ):
        assert (tmp_path / "demo" / path).is_file()
    result = cli("demo", "--output-dir", tmp_path / "demo")
    assert result.returncode == 1 and "already holds something" in result.stderr


@pytest.mark.parametrize("configs", ["default", "all_layers", "default,all_layers"])
def test_what_build_says_is_next(cli, last_store, tmp_path, configs):
    """The call that the command prints opens the folder that it has built."""
    result = cli("build", last_store, tmp_path / "out", "--configs", configs)
    assert result.returncode == 0, result.stderr
    call = result.stdout.partition("Next: load_dataset")[2]
    assert len(load_dataset(*ast.literal_eval(call.strip()))) == 1


def test_what_an_old_installation_left(tmp_path):
    """Metadata of the same name, first on the path, that know no commands."""
    left = tmp_path / "llava_amber_activations.egg-info"
    left.mkdir()
    (left / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: llava-amber-activations\n")
    (left / "entry_points.txt").write_text("[console_scripts]\nold = old:main\n")
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-m", "llava_amber_activations", "--help"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert all(f" {command} " in done.stdout for command in COMMANDS)
