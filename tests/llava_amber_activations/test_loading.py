"""Opening a folder with `datasets` alone and with load_activations; what cannot be had is said."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from datasets import List, Value, config, load_dataset
from safetensors.torch import load_file

from builder.build import build
from llava_amber_activations import ActivationsError, load_activations


@pytest.fixture(scope="module")
def tensors(last_store):
    chunks = [load_file(path) for path in sorted((last_store / "chunks").iterdir())]
    return {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]}


def test_load_dataset(last_dataset):
    """Every config and split, prepared and streamed, with the designed features."""
    splits = load_dataset(str(last_dataset))
    assert list(splits) == [f"L{layer}" for layer in range(31)]
    assert splits["L0"].features["x"] == List(Value("float32"), length=64)
    assert splits["L0"].features["targets"] == List(List(Value("float32"), length=64))
    assert list(load_dataset(str(last_dataset), "L5")) == ["L5"]
    stream = load_dataset(str(last_dataset), "L5", split="L5", streaming=True)
    assert list(stream) == list(splits["L5"])
    every = load_dataset(str(last_dataset), "all_layers", split="train")
    assert every["mlp_out_31"][:] == [row[0] for row in splits["L30"]["targets"][:]]
    assert len(every.column_names) == 8 + 64


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("first_target", [0, 1])
def test_load_activations(last_dataset, tensors, tmp_path, streaming, first_target):
    layer = load_activations(
        last_dataset,
        layer=9,
        n_targets=3,
        first_target=first_target,
        streaming=streaming,
        cache_dir=tmp_path,
    )
    rows = list(layer)
    assert np.array_equal([row["x"] for row in rows], tensors["x_09"].numpy())
    for k in range(3):
        expected = tensors[f"mlp_out_{9 + first_target + k:02d}"].numpy()
        assert np.array_equal([row["targets"][k] for row in rows], expected)
    assert {len(row["targets"]) for row in rows} == {3}


def test_what_is_prepared_is_one_file(all_dataset, tmp_path, monkeypatch):
    """However large: its mapping is one buffer, and batches are copied out of it in one call."""
    monkeypatch.setattr(config, "MAX_SHARD_SIZE", "1kB")
    layer = load_activations(all_dataset, 9, 3, cache_dir=tmp_path)
    assert len(layer.cache_files) == 1 and len(layer) > 128


def test_targets_of_the_dataset_by_default(last_store, tmp_path):
    build(last_store, tmp_path / "dataset", n_targets=5)
    row = next(iter(load_activations(tmp_path / "dataset", layer=0, streaming=True)))
    assert len(row["targets"]) == 5


def test_a_rebuilt_folder_is_read_anew(make_store, tmp_path):
    """The same path with other values is not served from the cache."""
    first = make_store(tmp_path / "first")
    second = make_store(tmp_path / "second", x_site="mlp_in")
    values = []
    for store in (first, second):
        shutil.rmtree(tmp_path / "dataset", ignore_errors=True)
        build(store, tmp_path / "dataset")
        layer = load_activations(tmp_path / "dataset", 3, cache_dir=tmp_path / "cache")
        values.append(layer["x"][0])
        assert (
            layer["x"][0] == load_file(store / "chunks/chunk-00000.safetensors")["x_03"][0].tolist()
        )
    assert values[0] != values[1]


def test_from_the_layers_own_split(last_store, tensors, tmp_path):
    """Without all_layers: fewer targets can be had, more and the other convention cannot."""
    folder = tmp_path / "dataset"
    build(last_store, folder, n_targets=4, configs=["default"])
    for streaming in (False, True):
        layer = load_activations(folder, 9, 2, streaming=streaming, cache_dir=tmp_path / "cache")
        found = np.array([row["targets"] for row in layer])
        assert np.array_equal(found[:, 1], tensors["mlp_out_11"].numpy())
        assert found.shape == (8, 2, 64)
    with pytest.raises(ActivationsError, match="holds 4 targets: 5 cannot be had"):
        load_activations(folder, 9, 5)
    with pytest.raises(ActivationsError, match="first_target=0 cannot be had"):
        load_activations(folder, 9, first_target=0)


@pytest.mark.parametrize("layer", [31, 99, -1])
def test_no_such_layer(last_dataset, layer):
    with pytest.raises(ActivationsError, match=f"layer {layer} has no targets.* 0 to 30"):
        load_activations(last_dataset, layer)


def test_what_is_no_dataset(tmp_path, last_dataset):
    with pytest.raises(ActivationsError, match=r"no manifest\.json"):
        load_activations(tmp_path, 0)
    with pytest.raises(ActivationsError, match="neither a folder nor a dataset's id"):
        load_activations(tmp_path / "absent", 0)
    shutil.copytree(last_dataset, tmp_path / "newer")
    path = tmp_path / "newer" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": "3.1"}))
    with pytest.raises(ActivationsError, match=r"format 3\.1.*install .* 3\.0 or newer"):
        load_activations(tmp_path / "newer", 0)
    path.write_text("{")
    with pytest.raises(ActivationsError, match=r"manifest\.json is not JSON"):
        load_activations(tmp_path / "newer", 0)


_OPEN_LAYER = """
import sys
from llava_amber_activations import activation_batches, open_layer
batch = next(iter(activation_batches(open_layer(sys.argv[1], 5), batch_size=4, shuffle=True)))
print(len(batch["x"]), *(name in sys.modules for name in ("datasets", "huggingface_hub", "pandas")))
"""


def test_open_layer_imports_little(last_dataset):
    """The first batch of a folder comes without what only other sources need."""
    done = subprocess.run(
        [sys.executable, "-c", _OPEN_LAYER, str(last_dataset)],
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["4", "False", "False", "False"]
