"""docs/examples: each runs as its docstring says, and does what it is for."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


@pytest.fixture
def run(hub, tmp_path):
    """Function that runs an example, in a process and a folder of its own; gives what it prints."""

    def run(name, *arguments, before=()):
        result = subprocess.run(
            [sys.executable, *map(str, [*before, EXAMPLES / name, *arguments])],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            env=dict(os.environ),
            timeout=300,
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    return run


def losses_of(printed):
    return [
        float(loss) for loss in re.findall(r"^step +\d+  loss ([\d.]+)$", printed, re.MULTILINE)
    ]


def test_a_transcoder_learns_from_a_folder(run, all_dataset, all_store, tmp_path):
    """Ten losses and the last, which is well under the first; and what is said to be saved is."""
    import torch

    output = tmp_path / "transcoder.pt"
    printed = run("train_transcoder.py", all_dataset, "--batch-size", 32, "--output", output)
    losses = losses_of(printed)
    assert len(losses) == 11
    assert losses[-1] < 0.5 * losses[0]
    assert losses == sorted(losses, reverse=True) or losses[-1] < losses[5] < losses[0]
    weights = torch.load(output, weights_only=True)
    assert weights["encoder.weight"].shape == (256, 64)
    assert weights["decoder"].shape == (4, 256, 64)
    said = re.search(r"^explained of 1 samples held out: (-?[\d.]+) of", printed, re.MULTILINE)
    assert float(said[1]) == pytest.approx(explained(all_store, weights), abs=2e-3)


def explained(store, weights):
    """What of sample 0's variance the weights explain, from the store's own tensors."""
    import torch
    from safetensors.torch import load_file

    chunks = [load_file(path) for path in sorted((store / "chunks").iterdir())]
    tensors = {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]}
    mine = tensors["sample"] == 0
    standard = {
        name: (tensors[name] - tensors[name].mean(dim=0)) / tensors[name].std(dim=0, correction=0)
        for name in ("x_05", "mlp_out_06", "mlp_out_07", "mlp_out_08", "mlp_out_09")
    }
    features = torch.relu(
        standard.pop("x_05")[mine] @ weights["encoder.weight"].T + weights["encoder.bias"]
    )
    targets = torch.stack([each[mine] for each in standard.values()], dim=1)
    found = torch.einsum("bf,nfh->bnh", features, weights["decoder"]) + weights["bias"]
    left = (targets - found).square().sum()
    return 1 - float(left / (targets - targets.mean(dim=0)).square().sum())


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_same_streamed_from_the_hub(run, published, num_workers):
    losses = losses_of(run("train_streamed.py", published, "--num-workers", num_workers))
    assert len(losses) == 11
    assert losses[-1] < 0.5 * losses[0]


def test_two_processes_train_one_model(run, all_dataset):
    """Under torchrun; one of them says the losses."""
    arguments = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2]
    printed = run("train_ddp.py", all_dataset, "--steps", 30, before=arguments)
    losses = losses_of(printed)
    assert len(losses) == 11
    assert losses[-1] < 0.8 * losses[0]


def test_an_own_model_is_captured(run, tiny_llava, image_dir, tmp_path):
    """On every picture of a folder, with the sizes of that model."""
    printed = run("capture_own_model.py", tiny_llava, image_dir, "out")
    pictures = sorted(path.name for path in image_dir.iterdir())
    queries = json.loads((tmp_path / "out" / "queries.json").read_text(encoding="utf-8"))
    assert [entry["image"] for entry in queries] == pictures
    assert f"{len(pictures)} pictures" in printed
    assert "Right: checksums" in printed
    assert printed.endswith("x [4, 64] torch.float32\ntargets [4, 16, 64] torch.float32\n")
    with safe_open(tmp_path / "out/store/chunks/chunk-00000.safetensors", "pt") as file:
        assert file.get_slice("x_31").get_shape() == [len(pictures), 64]


def test_every_example_is_shown_in_the_docs():
    page = (EXAMPLES.parent / "examples.md").read_text(encoding="utf-8")
    for path in EXAMPLES.glob("*.py"):
        assert f'--8<-- "docs/examples/{path.name}"' in page
