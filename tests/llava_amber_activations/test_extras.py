"""Extras: a sentence where one is missing; reading does without all of them."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import get_args

import pytest

from llava_amber_activations import ActivationsError
from llava_amber_activations.extras import EXTRAS, Extra, need_extras

PYPROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))
MODULES = {extra: [module for module, _ in pairs] for extra, pairs in EXTRAS.items()}
# Nothing finds the modules, as where they are not installed.
_HIDING = """
import sys
from importlib.machinery import PathFinder
find = PathFinder.find_spec
def find_others(name, *arguments, **named):
    return None if name.partition(".")[0] in {modules} else find(name, *arguments, **named)
PathFinder.find_spec = staticmethod(find_others)
"""


@pytest.fixture
def without(tmp_path):
    """Function that runs the command line, or a program, where some modules are not installed."""

    def run(modules, *arguments, program="from llava_amber_activations.cli import main; main()"):
        program = _HIDING.format(modules=modules) + program
        return subprocess.run(
            [sys.executable, "-c", program, *map(str, arguments)],
            **{"capture_output": True, "text": True, "cwd": tmp_path, "env": os.environ},
            timeout=300,
            check=False,
        )

    return run


def assert_asks_for(result, extra, packages):
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ") and f" needs {packages}, not installed here: " in line
    assert line.endswith(f"pip install 'llava-amber-activations[{extra}]'")


def test_the_table_is_pyprojects():
    extras = PYPROJECT["project"]["optional-dependencies"]
    # No command needs those of development, of which one builds the site.
    assert set(EXTRAS) == set(get_args(Extra)) == set(extras) - {"dev", "docs"}
    for extra, pairs in EXTRAS.items():
        packages = [re.match(r"[\w-]+", line).group() for line in extras[extra]]
        assert [package for _, package in pairs] == packages
    named = re.fullmatch(r"llava-amber-activations\[(.*)\]", extras["dev"][0])
    assert set(named[1].split(",")) == {*EXTRAS, "docs"}


def test_here_everything_is_installed(monkeypatch):
    need_extras("this", *EXTRAS)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ActivationsError, match=r"this needs transformers, not.*\[capture\]'$"):
        need_extras("this", "figures", "capture")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ActivationsError, match=r"transformers, matplotlib.*\[capture,figures\]'$"):
        need_extras("this", "capture", "figures")


def test_help_needs_no_extra(without):
    result = without([*MODULES["capture"], *MODULES["figures"]], "capture", "--help")
    assert result.returncode == 0 and "Usage" in result.stdout


def test_capturing_asks_for_capture(without, last_store, image_dir, query_file, tmp_path):
    """`capture`, `verify --recapture` and the demo, before anything is written."""
    missing = "accelerate, pillow, tokenizers, transformers"
    for arguments in (
        *[("capture", "--model", "m", "--dataset", query_file, "--output-dir", "store")],
        *[("verify", last_store, "--recapture", "1", "--model", "m", "--image-dir", image_dir)],
        *[("demo", "--output-dir", "demo")],
    ):
        assert_asks_for(without(MODULES["capture"], *arguments), "capture", missing)
    assert list(tmp_path.iterdir()) == []


def test_building_asks_for_figures(without, last_store, last_dataset, tmp_path):
    """`build`, `import` of vectors and the demo, before anything is written."""
    pt = tmp_path / "pt"
    exported = without(MODULES["figures"], "export", last_dataset, pt, "--format", "layers")
    assert exported.returncode == 0, exported.stderr
    for arguments in (
        ("build", last_store, "dataset"),
        ("import", pt, "dataset"),
        ("demo", "--output-dir", "demo"),
    ):
        assert_asks_for(without(MODULES["figures"], *arguments), "figures", "matplotlib")
    assert list(tmp_path.iterdir()) == [pt]


def test_features_are_imported_without_figures(without, last_dataset, tmp_path):
    """A folder of `sample_*.pt` becomes one without vectors, of which nothing is drawn."""
    hidden = [*MODULES["capture"], *MODULES["figures"]]
    for arguments in (
        ("export", last_dataset, "samples", "--format", "samples"),
        ("import", "samples", "imported"),
        ("verify", "imported"),
    ):
        result = without(hidden, *arguments)
        assert result.returncode == 0, result.stderr
    assert not (tmp_path / "imported" / "figures").exists()


def test_reading_needs_no_extra(without, last_store, last_dataset, tmp_path):
    """Every way of reading a folder, in batches and by commands."""
    hidden = [*MODULES["capture"], *MODULES["figures"]]
    program = """
from llava_amber_activations import (
    LlavaAmberActivations, activation_batches, load_activations, load_statistics, open_layer
)
folder = sys.argv[1]
for rows in (
    load_activations(folder, layer=5),
    load_activations(folder, layer=5, streaming=True),
    open_layer(folder, 5),
):
    print(next(iter(activation_batches(rows, batch_size=8, shuffle=True)))["x"].shape)
print(load_statistics(folder).x_mean.shape)
built = LlavaAmberActivations(
    dataset_name="amber", data_files=folder + "/all_layers/*.parquet", layers=[5]
)
built.download_and_prepare()
print(len(built.as_dataset()["L5"]))
"""
    result = without(hidden, last_dataset, program=program)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [
        *["torch.Size([8, 64])"] * 3,
        "torch.Size([32, 64])",
        "8",
    ]
    for arguments in (("info", last_store), ("verify", last_dataset)):
        result = without(hidden, *arguments)
        assert result.returncode == 0, result.stderr
