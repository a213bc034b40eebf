"""What a build says and checks beforehand: bytes, room, and `default` only while it is small."""

from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import load_dataset
from safetensors.torch import load_file

from builder.asked import store_to_build
from builder.asked.store_to_build import configs_to_build, raw_bytes
from builder.build import build
from llava_amber_activations import (
    Activations,
    ActivationsError,
    activation_batches,
    load_activations,
    open_layer,
)
from llava_amber_activations.files import room
from llava_amber_activations.formats.recipe import Recipe

# LLaVA-1.5-7B, all positions of AMBER's generative task.
LLAVA = Recipe(n_layers=32, hidden_size=4096, n_targets=16, store_dtype="float16", n_samples=1004)
ROWS = 600 * 1004


def test_bytes_of_llava():
    """Every vector once in all_layers; in default x of 31 layers, and what targets there are."""
    vector = 4096 * 2
    once = 64 * vector * ROWS
    targets = sum(min(16, 31 - layer) for layer in range(31))
    assert raw_bytes(LLAVA, ROWS, None, ["all_layers"]) == once
    default = raw_bytes(LLAVA, ROWS, None, ["default"])
    assert default == (31 + targets) * vector * ROWS
    assert default / once == pytest.approx(6.36, abs=0.005)
    assert raw_bytes(LLAVA, ROWS, 1, ["default", "all_layers"]) == once + 62 * vector * ROWS


def test_default_is_unasked_up_to_20_gb():
    """Of 407 vectors of 8 kB a row, 5997 rows; asked for, whatever it takes."""
    last = 20_000_000_000 // (407 * 8192)
    both = ("default", "all_layers")
    assert configs_to_build(LLAVA, last, None, None) == both
    assert configs_to_build(LLAVA, last + 1, None, None) == ("all_layers",)
    assert configs_to_build(LLAVA, last + 1, None, both) == both


def column(table, name):
    return np.stack([np.array(row) for row in table[name]])


def test_a_layer_is_read_without_default(small_store, tmp_path, monkeypatch, capsys):
    """Every way that the sentence names gives the store's own values."""
    monkeypatch.setattr(store_to_build, "MOST_DEFAULT_BYTES", 100)
    folder = tmp_path / "dataset"
    assert build(small_store, folder).configs == ["all_layers"]
    said = capsys.readouterr().err
    # x and targets of L0, L1, L2: 3 + 3 + 2 vectors, of 8 values of 4 bytes, of 9 rows.
    assert f"{folder}: 9 rows, 2.3 kB of all_layers (1.0 x the vectors), before compression" in said
    assert "default is left out, because its 2.3 kB are more than 100 B: load_dataset(" in said
    assert "columns=['x_00', 'mlp_out_01']), load_activations, open_layer and Activations" in said
    chunks = [load_file(path) for path in sorted((small_store / "chunks").iterdir())]
    x, target = (
        torch.cat([chunk[name] for chunk in chunks]).numpy() for name in ("x_00", "mlp_out_01")
    )
    table = load_dataset(
        str(folder), "all_layers", columns=["x_00", "mlp_out_01"], cache_dir=str(tmp_path / "cache")
    )["train"]
    assert table.column_names == ["x_00", "mlp_out_01"]
    assert np.array_equal(column(table, "x_00"), x)
    assert np.array_equal(column(table, "mlp_out_01"), target)
    for rows in (
        load_activations(str(folder), layer=0, n_targets=1),
        Activations(str(folder)).dataset(layer=0, n_targets=1),
    ):
        assert np.array_equal(column(rows, "x"), x)
        assert np.array_equal(column(rows, "targets")[:, 0], target)
    for batches in (
        activation_batches(open_layer(str(folder), 0, n_targets=1), batch_size=9),
        Activations(str(folder)).batches(layer=0, n_targets=1, batch_size=9),
    ):
        [batch] = batches
        assert np.array_equal(batch["x"].numpy(), x)
        assert np.array_equal(batch["targets"][:, 0].numpy(), target)


def test_asked_for_default_is_written(small_store, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(store_to_build, "MOST_DEFAULT_BYTES", 100)
    both = build(small_store, tmp_path / "dataset", configs=["default", "all_layers"])
    assert both.configs == ["default", "all_layers"]
    said = capsys.readouterr().err
    assert "2.3 kB of default (1.0 x the vectors) and 2.3 kB of all_layers" in said
    assert "left out" not in said


def test_a_disk_with_less_room(small_store, tmp_path, monkeypatch, capsys):
    """Refused before anything is written; with `force` it is said, and gone on with."""
    least = 0.3 * 16 * 8 * 4 * 9
    usage = namedtuple("usage", "total used free")(10**12, 0, int(least) - 1)
    monkeypatch.setattr(room.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ActivationsError, match=r"takes 1.4 kB or more, .* .--force goes on"):
        build(small_store, tmp_path / "dataset")
    assert list(tmp_path.iterdir()) == []
    assert build(small_store, tmp_path / "dataset", force=True).n_rows == 9
    assert "free: going on all the same" in capsys.readouterr().err


def test_help_and_pages_say_how_much(cli):
    """The 20 GB of `--help` and of docs/sizes.md are the constant's."""
    said = f"{store_to_build.MOST_DEFAULT_BYTES / 1e9:.0f} GB"
    shown = " ".join(cli("build", "--help").stdout.split())
    assert f"all_layers alone where default is over {said}" in shown
    page = Path(__file__).parents[3] / "docs" / "sizes.md"
    assert f"writes `default` where it is at most {said} before compression" in page.read_text()
