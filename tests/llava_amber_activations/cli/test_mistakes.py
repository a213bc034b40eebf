"""A mistake is said before anything slow: where torch, transformers and datasets do not import.

No time is measured: what takes seconds is made impossible, and the sentence is there all the same.
"""

import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple

import pytest

from llava_amber_activations.files import room

SLOW = ("torch", "transformers", "datasets", "accelerate", "matplotlib")

# Runs each of a list of argument lists as `llava-amber` would: [exit status or line, its stderr].
PROGRAM = """
import contextlib, io, json, sys
from llava_amber_activations.cli import main
for arguments in json.load(sys.stdin):
    sys.argv = ["llava-amber", *arguments]
    said, stdout = io.StringIO(), io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(stdout):
        try:
            main()
        except SystemExit as end:
            code = end.code
    print(json.dumps([code, said.getvalue()]))
"""


@pytest.fixture(scope="session")
def without_slow_modules(tmp_path_factory):
    """Environment in which importing what is slow fails; it is found, as an installed one is."""
    blocked = tmp_path_factory.mktemp("blocked")
    for name in SLOW:
        (blocked / f"{name}.py").write_text(f"raise AssertionError('{name} was imported')")
    paths = [str(blocked), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


@pytest.fixture
def say(without_slow_modules, tmp_path):
    """Function that runs commands there and returns what each ended with."""

    def run(*commands):
        result = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            input=json.dumps([list(map(str, each)) for each in commands]),
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=without_slow_modules,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        return [json.loads(line) for line in result.stdout.splitlines()]

    return run


@pytest.fixture
def capture_arguments(tiny_llava, query_file, image_dir, tmp_path):
    """Function that returns a capture's arguments, with some options changed or taken away."""

    def arguments(*more, **changed):
        options = {
            "--model": tiny_llava,
            "--dataset": query_file,
            "--image-dir": image_dir,
            "--output-dir": tmp_path / "new-store",
            **{f"--{name.replace('_', '-')}": value for name, value in changed.items()},
        }
        given = [(name, value) for name, value in options.items() if value is not None]
        return ["capture", *(part for pair in given for part in pair), *more]

    return arguments


def errors(results):
    """Return the one line of each failure."""
    for code, said in results:
        assert isinstance(code, str) and code.startswith("error: ") and "\n" not in code, said
    return [code for code, _ in results]


def test_capture(say, capture_arguments, last_store, tiny_llava, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("dear reader")
    cases = {
        "absent.json: No such file": capture_arguments(dataset="absent.json"),
        "image folder nowhere does not exist": capture_arguments(
            "--on-error", "skip", image_dir="nowhere"
        ),
        "AMBER_1.jpg of sample 0 is missing": capture_arguments(image_dir=tmp_path / "empty"),
        "needs --image-dir": capture_arguments(image_dir=None),
        "cannot load the model ./llava: there is no such folder": capture_arguments(
            model="./llava"
        ),
        "the folder holds no config.json": capture_arguments(model=tmp_path / "empty"),
        "there is no such folder, and no such model on the Hub": capture_arguments(
            model="models/llava"
        ),
        "cannot open the dataset ./pictures: there is no such folder": capture_arguments(
            dataset="hf:./pictures", image_dir=None
        ),
        "--split goes with --dataset hf:NAME": capture_arguments("--split", "train"),
        "no such folder of transcoders: nowhere": capture_arguments("--transcoders", "nowhere"),
        "holds something that is not a capture store": capture_arguments(
            output_dir=tmp_path / "full"
        ),
        "--n-targets 99 is more than a model of 32 layers has": capture_arguments(
            "--n-targets", "99"
        ),
        "n_targets (16, not 4)": capture_arguments(
            *("--n-targets", "4", "--chunk-samples", "3", "--batch-size", "5"),
            output_dir=last_store,
        ),
        "positions ('last', not 'all')": capture_arguments(
            *("--positions", "all", "--chunk-samples", "3"), output_dir=last_store
        ),
        "store_dtype ('float32', not 'bfloat16')": capture_arguments(
            *("--store-dtype", "bfloat16"), output_dir=last_store
        ),
        "n_samples (8, not 2)": capture_arguments("--max-samples", "2", output_dir=last_store),
    }
    for expected, line in zip(cases, errors(say(*cases.values())), strict=True):
        assert expected in line
    assert not (tmp_path / "new-store").exists()


def test_usage(say, capture_arguments):
    """Wrong options are wrong usage, exit status 2."""
    cases = {
        "--batch-size is a number": capture_arguments("--batch-size", "many"),
        "--max-new-tokens goes with": capture_arguments("--max-new-tokens", "9"),
        "--logprobs is of the tokens": capture_arguments("--logprobs", "--positions", "image"),
        "--recapture needs --model": ["verify", "store", "--recapture", "1"],
        "go with --recapture": ["verify", "store", "--model", "m"],
        "--embed-pictures needs --image-dir": ["build", "s", "d", "--embed-pictures"],
        "go with --embed-pictures": ["build", "s", "d", "--picture-size", "64"],
        "--answers goes with --annotations": ["build", "s", "d", "--answers", "r.json"],
        "--relations goes with --annotations": ["build", "s", "d", "--relations", "r.json"],
        "--safe-words goes with --relations": [
            *("build", "s", "d", "--annotations", "a.json", "--safe-words", "w.txt")
        ],
        "give the dataset folder once": ["push", "--repo-id", "a/b"],
    }
    for expected, (code, said) in zip(cases, say(*cases.values()), strict=True):
        assert code == 2 and expected in " ".join(said.split())


def test_dataset_commands(say, last_store, last_dataset, make_store, tmp_path):
    unfinished = tmp_path / "unfinished"
    shutil.copytree(last_store, unfinished)
    (unfinished / "samples.jsonl").unlink()
    (tmp_path / "empty").mkdir()
    new = tmp_path / "new"
    layers = ("--format", "layers")
    first = (
        f"is a capture store, not a dataset: build it first, with `llava-amber build {last_store}"
    )
    cases = [
        ("there is no such folder: absent", ["build", "absent", new]),
        ("is not a capture store", ["build", tmp_path / "empty", new]),
        ("is a dataset folder, which is built already", ["build", last_dataset, new]),
        ("is not finished", ["build", unfinished, new]),
        ("already holds something", ["build", last_store, unfinished]),
        ("the configs to build are", ["build", last_store, new, "--configs", "all"]),
        ("a shard of at most 10 bytes", [*("build", last_store, new, "--max-shard-size", "10")]),
        ("'big' is not a size", ["build", last_store, new, "--max-shard-size", "big"]),
        ("--n-targets 99 is more than", ["build", last_store, new, "--n-targets", "99"]),
        (first, ["export", last_store, new, *layers]),
        (first, ["push", last_store, "--repo-id", "lab/store"]),
        ("is neither a folder nor a dataset's id", ["export", "./absent", new, *layers]),
        (
            "5-2 run backwards: write 2-5",
            [*("export", last_dataset, new, *layers, "--layers", "5-2")],
        ),
        (
            "layers [31] are not in this data: it has 0 to 30",
            [*("export", last_dataset, new, *layers, "--layers", "0-31")],
        ),
        (
            "--n-targets 99 is more than",
            [*("export", last_dataset, new, *layers, "--n-targets", "99")],
        ),
        ("already holds something", ["export", last_dataset, last_store, *layers]),
        ("the folder absent does not exist", ["import", "absent", new]),
        ("is of no layout that is known", ["import", tmp_path / "empty", new]),
        ("already holds something", ["import", tmp_path / "empty", last_store]),
        ("there is no such folder: absent", ["push", "absent", "--repo-id", "lab/x"]),
        ("is no name of a repo", ["push", last_dataset, "--repo-id", "lab/x/y"]),
        ("is not a dataset of activations", ["push", tmp_path / "empty", "--repo-id", "lab/x"]),
        ("absent is not a folder", ["verify", "absent"]),
        ("is not a dataset of activations", ["verify", tmp_path / "empty"]),
        ("is not finished", ["verify", unfinished]),
        (
            "is not a capture store, which alone",
            [*("verify", last_dataset, "--recapture", 1, "--model", "m", "--image-dir", "i")],
        ),
        (
            "the image folder nowhere does not exist",
            [*("recapture", last_store, "--model", "m", "--image-dir", "nowhere")],
        ),
        (
            "there is no such folder",
            [*("recapture", last_store, "--model", "./m", "--image-dir", tmp_path / "empty")],
        ),
        ("is neither a folder nor a dataset's id", ["info", "./absent"]),
        ("already holds something", ["demo", "--output-dir", last_store]),
    ]
    for (expected, _), line in zip(cases, errors(say(*(each for _, each in cases))), strict=True):
        assert expected in line
    assert not new.exists()


@pytest.fixture
def nearly_full(monkeypatch):
    """A disk with so many bytes free, in this process."""

    def leave(n_bytes):
        usage = namedtuple("usage", "total used free")(10**12, 0, n_bytes)
        monkeypatch.setattr(room.shutil, "disk_usage", lambda path: usage)

    return leave


def test_too_little_disk(nearly_full, last_store, last_dataset, tiny_llava, query_file, image_dir):
    """What is written at least is known before: from rows, layers and widths."""
    from builder.asked.dataset_to_read import check_export
    from builder.asked.store_to_build import check_build, raw_bytes
    from capture.beforehand import check_capture
    from capture.settings import CaptureSettings
    from llava_amber_activations import ActivationsError
    from llava_amber_activations.store.layout import read_recipe

    new = last_store.parent / "new"
    options = {"model": str(tiny_llava), "dataset": query_file, "image_dir": image_dir}
    settings = CaptureSettings(**options, output_dir=new, dtype="float32")
    # Eight rows of 64 vectors of 64 float32 values.
    store_bytes = 8 * 64 * 64 * 4
    # Of 31 layers with a target: x, and 16 targets for L0 … L15, then 15 … 1.
    n_targets = sum(min(16, 31 - layer) for layer in range(31))
    export_bytes = 8 * (31 + n_targets) * 64 * 4
    both = ("default", "all_layers")
    raw = raw_bytes(read_recipe(last_store), 8, None, both)
    assert raw == export_bytes + store_bytes
    export = (str(last_dataset), new, "layers", None, None, 1, False, None)
    for needed, check in (
        (store_bytes, lambda: check_capture(settings)),
        (export_bytes, lambda: check_export(*export)),
        (-(-raw * 3 // 10), lambda: check_build(last_store, new, None, both, "500MB")),
    ):
        nearly_full(needed)
        check()
        nearly_full(needed - 1)
        with pytest.raises(ActivationsError, match=r"free: make room there"):
            check()


def test_small_models_take_the_default():
    """The commands that are printed everywhere ask for 16 targets, and hold for any model."""
    from llava_amber_activations import ActivationsError
    from llava_amber_activations.formats.layers import check_n_targets

    check_n_targets(16, 4)
    check_n_targets(31, 32)
    check_n_targets(32, 32, first_target=0)
    for n_targets, n_layers, first_target in ((17, 4, 1), (32, 32, 1), (33, 32, 0)):
        with pytest.raises(ActivationsError, match=f"--n-targets {n_targets} is more than"):
            check_n_targets(n_targets, n_layers, first_target)
