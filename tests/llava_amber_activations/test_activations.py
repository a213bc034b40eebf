"""A dataset as one object: what it says, and that its batches are those of the functions."""

import subprocess
import sys
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from builder.build import build
from llava_amber_activations import (
    Activations,
    ActivationsError,
    activation_batches,
    hook_batches,
    load_activations,
    open_layer,
)


@pytest.fixture(scope="module")
def acts(all_dataset):
    return Activations(all_dataset)


def assert_same_batches(found, expected):
    found, expected = list(found), list(expected)
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_what_it_says(acts, all_store, read_store):
    tensors = read_store(all_store)
    counts = Counter(tensors["sample"].tolist())
    assert acts.layers == tuple(range(31))
    assert acts.n_rows == len(tensors["sample"])
    assert acts.recipe.n_layers == 32 and acts.recipe.positions == "all"
    assert {"sample", "id", "image", "query", "n_rows"} <= set(acts.samples.column_names)
    samples = acts.samples.to_pylist()
    assert {row["sample"]: row["n_rows"] for row in samples} == counts
    assert samples[0]["image"].endswith(".jpg")
    mean = tensors["x_05"].double().mean(dim=0)
    torch.testing.assert_close(acts.statistics.x_mean[5].double(), mean, rtol=1e-4, atol=1e-6)
    assert f"{acts.n_rows} rows of 8 samples" in repr(acts)


def test_tokens_are_those_of_the_rows(acts, all_dataset):
    """By position: every patch is the image token, and in all of them the query is read."""
    paths = sorted((all_dataset / "all_layers").iterdir())
    columns = ["sample", "position", "kind"]
    rows = pa.concat_tables([pq.ParquetFile(path).read(columns) for path in paths]).to_pylist()
    samples = acts.samples.to_pylist()
    n_positions = Counter(row["sample"] for row in rows)
    for sample in samples:
        assert len(sample["tokens"]) == n_positions[sample["sample"]]
        assert sample["query"] in sample["prompt"]
        assert sample["query"] in "".join(sample["tokens"])
    kinds = {
        (row["kind"], samples[row["sample"]]["tokens"][row["position"]] == "<image>")
        for row in rows
    }
    assert kinds == {("image", True), ("text", False)}


def test_a_folder_of_one_layer_alone(last_store, tmp_path):
    build(last_store, tmp_path / "dataset", configs=["default"])
    acts = Activations(tmp_path / "dataset")
    assert acts.layers == tuple(range(31))
    assert acts.samples.num_rows == 8
    with pytest.raises(ActivationsError, match="no all_layers config"):
        acts.hook_batches()


def test_batches_are_those_of_open_layer(acts, all_dataset):
    options = {"batch_size": 50, "shuffle": True, "seed": 3}
    expected = activation_batches(open_layer(all_dataset, 5, 4, first_target=0), **options)
    assert_same_batches(acts.batches(5, 4, first_target=0, **options), expected)


def test_a_dataset_is_that_of_load_activations(acts, all_dataset, tmp_path):
    mine = acts.dataset(5, 4, cache_dir=tmp_path)
    theirs = load_activations(all_dataset, 5, 4, cache_dir=tmp_path)
    assert mine.cache_files == theirs.cache_files
    stream = acts.dataset(5, 4, streaming=True)
    assert_same_batches(activation_batches(stream, 64), activation_batches(mine, 64))


def test_hook_batches_are_those_of_the_function(acts, all_dataset):
    options = {"batch_size": 50, "shuffle": True, "seed": 3}
    mine = acts.hook_batches([3, 4], **options)
    assert_same_batches(mine, hook_batches(all_dataset, [3, 4], **options))


def test_nothing_else_is_imported(all_dataset):
    """A first batch takes neither `datasets` nor pandas, nor what only the Hub needs."""
    script = f"""
import sys
from llava_amber_activations import Activations
acts = Activations({str(all_dataset)!r})
next(iter(acts.batches(5, 2, batch_size=8, shuffle=True, skip_first=True)))
next(iter(acts.hook_batches([5], batch_size=8)))
acts.statistics
print([name for name in ("datasets", "pandas", "huggingface_hub") if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_a_folder_that_is_none(tmp_path):
    with pytest.raises(ActivationsError, match="not a dataset of activations"):
        Activations(tmp_path)


def test_from_the_hub_pinned(hub, all_dataset, tmp_path):
    """Opened once: what is pushed later is another revision, and another object's."""
    from loopback_hub import DEFAULT_TOKEN

    from builder.push import push

    push(all_dataset, "lab/one-object", token=DEFAULT_TOKEN)
    acts = Activations("lab/one-object")
    batch = next(iter(acts.hook_batches([5], batch_size=16)))
    local = next(iter(Activations(all_dataset).hook_batches([5], batch_size=16)))
    assert all(torch.equal(batch[name], local[name]) for name in local)
    commit = acts.source.root.rpartition("@")[2]
    assert len(commit) == 40
    again = Activations("lab/one-object", revision=commit)
    assert again.source.root == acts.source.root
