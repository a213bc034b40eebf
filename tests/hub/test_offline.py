"""HF_HUB_OFFLINE=1: what was fetched or prepared once opens, and what was not says so at once."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from huggingface_hub import HfApi, snapshot_download
from loopback_hub import DEFAULT_TOKEN

from builder.build import build
from builder.push import push

# Whoever asks again waits before it: at once means without sleeping.
PRELUDE = """
import json, sys, time
def never(seconds):
    raise AssertionError("it waited")
if {offline}:
    time.sleep = never
"""

# Prints what each expression gives, or the sentence that it is refused with.
IN_TURN = """
from pathlib import Path
import torch
from builder.export import export
from builder.info import info
from llava_amber_activations import *

def x_of(layer):
    return torch.cat([b["x"] for b in activation_batches(layer, batch_size=64)]).tolist()

found = []
for expression in {expressions}:
    try:
        found.append(eval(expression))
    except ActivationsError as error:
        found.append("refused: " + str(error))
print(json.dumps(found))
"""

COMMAND = """
from llava_amber_activations.cli.app import main
sys.argv[1:] = {arguments}
main()
"""


@pytest.fixture
def run(hub, tmp_path):
    """Function that runs a program; offline, it must not ask the Hub, nor wait for anything."""

    def run(program, online=False):
        hub.reset_counts()
        result = subprocess.run(
            [sys.executable, "-c", PRELUDE.format(offline=not online) + program],
            env={**hub.client_env(tmp_path / "home"), "HF_HUB_OFFLINE": "0" if online else "1"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert online or not hub.requests()
        return result

    return run


@pytest.fixture
def in_turn(run):
    """Function that evaluates expressions in one process, and returns what each gave."""

    def evaluate(*expressions, online=False):
        result = run(IN_TURN.format(expressions=expressions), online)
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout.splitlines()[-1])

    return evaluate


def is_refused(found, repo_id):
    """Whether it is one sentence that names the repo, the reason and what to do."""
    return (
        found.startswith("refused: cannot read ")
        and f"{repo_id}" in found
        and "on the Hub: HF_HUB_OFFLINE is set" in found
        and f"`hf download {repo_id} --repo-type dataset`" in found
    )


def test_a_prepared_layer(in_turn, pushed, narrow_vectors):
    """By load_activations, online, in another process; another layer of it is refused."""
    call = f"x_of(load_activations({pushed!r}, layer={{}}, n_targets=2))"
    in_turn(call.format(5), online=True)
    prepared, not_prepared = in_turn(call.format(5), call.format(6))
    assert np.array_equal(np.array(prepared, np.float16), narrow_vectors["x_05"])
    assert is_refused(not_prepared, pushed)


def test_nothing_was_fetched(in_turn, run, pushed, tmp_path):
    """Every way of opening it says so, in one sentence, without asking the Hub."""
    found = in_turn(
        f"open_layer({pushed!r}, 5)",
        f"load_activations({pushed!r}, 5)",
        f"load_activations({pushed!r}, 5, streaming=True)",
        f"load_statistics({pushed!r})",
        f"export({pushed!r}, Path('out'), layout='layers')",
    )
    assert all(is_refused(sentence, pushed) for sentence in found)
    result = run(COMMAND.format(arguments=["info", pushed]))
    assert result.returncode == 1 and result.stdout == ""
    assert is_refused(result.stderr.replace("error:", "refused:"), pushed)
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("revision", [None, "v1.1"])
def test_downloaded_files(in_turn, hub, narrow_store, narrow_vectors, tmp_path, revision):
    """Shards that `hf download` put there, by the revision that it was, whatever it is now."""
    repo_id = f"lab/downloaded-{revision or 'main'}"
    build(narrow_store, tmp_path / "dataset", configs=["all_layers"])
    first = push(tmp_path / "dataset", repo_id, token=DEFAULT_TOKEN)
    snapshot_download(
        repo_id,
        repo_type="dataset",
        revision=revision,
        allow_patterns=["manifest.json", "all_layers/*"],
        cache_dir=tmp_path / "home" / "hub",
    )
    HfApi(token=DEFAULT_TOKEN).upload_file(
        path_or_fileobj=b"later", path_in_repo="LATER", repo_id=repo_id, repo_type="dataset"
    )
    named = "" if revision is None else f", revision={revision!r}"
    *layers, described, exported, statistics, another = in_turn(
        f"x_of(open_layer({repo_id!r}, 5, 2{named}))",
        f"x_of(load_activations({repo_id!r}, 5, 2, streaming=True{named}))",
        f"x_of(load_activations({repo_id!r}, 5, 2{named}))",
        f"x_of(open_layer({repo_id!r}, 5, 2, revision={first.commit!r}))",
        f"dict(info({repo_id!r}{named}))",
        f"export({repo_id!r}, Path('pt'), layout='layers', layers='5'{named}).n_written",
        f"load_statistics({repo_id!r}{named})",
        f"info({repo_id!r}, revision='v0.9')",
    )
    assert len(layers) == 4
    for layer in layers:
        assert np.array_equal(np.array(layer, np.float16), narrow_vectors["x_05"])
    assert described["rows"] == "200" and exported > 0
    x = torch.load(tmp_path / "pt" / "L5" / "batch_0_x.pt", weights_only=True)["x"]
    assert np.array_equal(x[:, 0].numpy(), narrow_vectors["x_05"][: len(x)])
    assert is_refused(statistics, repo_id) and is_refused(another, repo_id)


def test_a_download_is_read_from_the_cache(in_turn, hub, pushed, tmp_path):
    """Online too: what lies there at the same commit is not fetched again."""
    folder = tmp_path / "home" / "hub"
    snapshot_download(pushed, repo_type="dataset", cache_dir=folder, allow_patterns="all_layers/*")
    in_turn(f"x_of(open_layer({pushed!r}, 5))", online=True)
    assert hub.bytes_sent("all_layers/") == 0


def test_statistics_and_info_that_were_read_before(in_turn, pushed):
    """The manifest and the statistics are kept where huggingface_hub keeps files."""
    calls = (f"load_statistics({pushed!r}).x_mean.tolist()", f"info({pushed!r})")
    online = in_turn(*calls, online=True)
    assert in_turn(*calls) == online


def test_push(run, narrow_dataset):
    result = run(COMMAND.format(arguments=["push", str(narrow_dataset), "--repo-id", "lab/off"]))
    assert result.returncode == 1
    error = result.stderr.strip().splitlines()[-1]
    assert error.startswith("error: cannot push to lab/off on the Hub: HF_HUB_OFFLINE is set")


def test_capture_of_a_model_that_is_not_there(run, image_dir, query_file, tmp_path):
    """One line that says how to bring it, and nothing written."""
    options = ["--dataset", str(query_file), "--image-dir", str(image_dir), "--output-dir", "store"]
    command = ["capture", "--model", "llava-hf/not-here", *options]
    result = run(COMMAND.format(arguments=command))
    assert result.returncode == 1 and "Traceback" not in result.stderr
    error = result.stderr.strip().splitlines()[-1]
    assert error.startswith("error: cannot load the model llava-hf/not-here")
    assert "HF_HUB_OFFLINE is set" in error and "`hf download llava-hf/not-here`" in error
    assert not (tmp_path / "store").exists()
