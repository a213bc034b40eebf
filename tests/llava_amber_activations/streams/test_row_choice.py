"""Some of the rows: which they are, against the store's own columns, and what is read for them."""

import numpy as np
import pytest
import torch

from llava_amber_activations import (
    KINDS,
    Activations,
    ActivationsError,
    activation_batches,
    load_activations,
    open_layer,
)
from llava_amber_activations.reading import layer_rows
from llava_amber_activations.streams.row_choice import row_choice

CHOICES = {
    "kind": {"where": {"kind": "image"}},
    "two kinds": {"where": {"kind": ["text", "generated"]}},
    "samples": {"samples": range(2, 5)},
    "positions": {"positions": [0, 3, 999]},
    "first": {"skip_first": True},
    "patches": {"where": {"patch_row": 0, "kind": "image"}, "samples": [1, 6]},
    "image": {"where": {"image": "AMBER_1.jpg"}},
    "first of some": {"skip_first": True, "samples": {7}, "positions": [0, 1]},
}


@pytest.fixture(scope="module")
def columns(all_store, read_store):
    """What the store says of its rows."""
    tensors = read_store(all_store)
    names = ("sample", "position", "kind", "patch_row", "token_id")
    return {name: tensors[name].numpy() for name in names} | {"x": tensors["x_05"]}


@pytest.fixture(scope="module")
def wanted(columns, all_dataset):
    """Of each choice, which rows it means: by masks of numpy over the store's columns."""
    sample, position, kind = (columns[name] for name in ("sample", "position", "kind"))
    images = {row["sample"]: row["image"] for row in Activations(all_dataset).samples.to_pylist()}
    image = np.array([images[number] for number in sample])
    return {
        "kind": kind == 1,
        "two kinds": (kind == 0) | (kind == 2),
        "samples": (sample >= 2) & (sample < 5),
        "positions": (position == 0) | (position == 3),
        "first": position > 0,
        "patches": (columns["patch_row"] == 0) & (kind == 1) & ((sample == 1) | (sample == 6)),
        "image": image == "AMBER_1.jpg",
        "first of some": (sample == 7) & (position == 1),
    }


def open_(way, folder, tmp_path):
    if way == "shards":
        return Activations(folder)
    if way == "streaming":
        return load_activations(folder, 5, 1, streaming=True)
    dataset = load_activations(folder, 5, 1, cache_dir=tmp_path)
    return dataset.to_iterable_dataset() if way == "other stream" else dataset


@pytest.mark.parametrize("way", ["shards", "streaming", "prepared", "other stream"])
@pytest.mark.parametrize("name", CHOICES)
def test_the_rows_are_those(all_dataset, columns, wanted, tmp_path, name, way):
    """In order, each with its own vector; the others are counted."""
    opened = open_(way, all_dataset, tmp_path)
    options = {"batch_size": 32, **CHOICES[name]}
    if way == "shards":
        batches = opened.batches(5, 1, **options)
    else:
        batches = activation_batches(opened, **options)
    found = list(batches)
    rows = np.flatnonzero(wanted[name])
    assert len(rows)
    for column in ("sample", "position", "kind", "token_id"):
        mine = torch.cat([batch[column] for batch in found])
        assert mine.tolist() == columns[column][rows].tolist()
    assert torch.equal(torch.cat([batch["x"] for batch in found]), columns["x"][rows])
    if way != "other stream":
        assert batches.n_rows == len(rows)
        assert batches.n_left_out == len(columns["sample"]) - len(rows)
        assert len(batches) == -(-len(rows) // 32)


def test_codes_are_exported(columns):
    assert KINDS == ("text", "image", "generated", "answer", "system")
    assert set(np.unique(columns["kind"])) <= {0, 1, 2}


def test_only_row_groups_with_a_wanted_row_are_read(folder, columns, monkeypatch):
    """Of vectors nothing else; of the columns that decide, what the footers do not exclude."""
    vectors, deciding = [], []
    read_rows, read_few = layer_rows.read_layer_rows, layer_rows.read_columns

    def rows_read(shard, group, *rest):
        vectors.append((shard.url, group))
        return read_rows(shard, group, *rest)

    def few_read(shard, group, names, **options):
        deciding.append((shard.url, group, tuple(names)))
        return read_few(shard, group, names, **options)

    monkeypatch.setattr("llava_amber_activations.streams.layer_stream.read_layer_rows", rows_read)
    monkeypatch.setattr("llava_amber_activations.streams.row_choice.read_columns", few_read)
    acts = Activations(folder)
    stream = open_layer(folder, 5, 1)
    n_groups = sum(1 for _ in stream.pieces(stream.open_shards()))
    batches = acts.batches(5, 1, samples=[3])
    assert not vectors
    assert {names for *_, names in deciding} == {("sample",)}
    assert 0 < len(deciding) < n_groups
    read = list(batches)
    assert sum(len(batch["x"]) for batch in read) == (columns["sample"] == 3).sum()
    assert 0 < len(vectors) <= len(deciding)


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("world_size", [1, 3])
def test_ranks_share_chosen_rows(all_dataset, columns, wanted, shuffle, world_size):
    """Every chosen row once, the same number of batches on every rank."""
    found, counts = [], []
    for rank in range(world_size):
        batches = Activations(all_dataset).batches(
            5,
            1,
            batch_size=16,
            shuffle=shuffle,
            rank=rank,
            world_size=world_size,
            where={"kind": "image"},
        )
        mine = list(batches)
        counts.append(len(mine))
        found += [
            place
            for batch in mine
            for place in zip(batch["sample"].tolist(), batch["position"].tolist(), strict=True)
        ]
    rows = np.flatnonzero(wanted["kind"])
    expected = zip(
        columns["sample"][rows].tolist(), columns["position"][rows].tolist(), strict=True
    )
    assert sorted(found) == sorted(expected)
    assert len(set(counts)) == 1


def test_a_state_names_the_choice(all_dataset):
    acts = Activations(all_dataset)
    state = acts.batches(5, 1, where={"kind": "image"}).state_dict()
    assert state["where"] == "kind in ('image')"
    with pytest.raises(ActivationsError, match="where"):
        acts.batches(5, 1, where={"kind": "text"}).load_state_dict(state)
    with pytest.raises(ActivationsError, match="where"):
        acts.batches(5, 1).load_state_dict(state)


def test_many_values_are_named_by_a_digest():
    one, other = (str(row_choice(samples=range(n, n + 100))) for n in (0, 1))
    assert one != other and len(one) < 100
    assert str(row_choice(samples=range(100))) == str(row_choice(samples=[*range(99), 99, 5]))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"where": {"x": 1}}, "no column 'x'"),
        ({"where": {"kind": "picture"}}, "no kind 'picture'"),
        ({"where": {"kind": 1}}, "values of kind are texts, and 1"),
        ({"where": {"sample": "three"}}, "values of sample are whole numbers, and 'three'"),
        ({"where": {"sample": [1.5]}}, "whole numbers, and 1.5"),
        ({"samples": [True]}, "whole numbers, and True"),
        ({"samples": []}, "no value of sample"),
        ({"samples": [1], "where": {"sample": 1}}, "not both"),
        ({"positions": [99999]}, "none of the .* rows is one with position in"),
        ({"where": {"kind": "generated"}}, "none of the .* rows"),
    ],
)
@pytest.mark.parametrize("prepared", [False, True])
def test_what_cannot_be_chosen(all_dataset, tmp_path, options, says, prepared):
    layer = (
        load_activations(all_dataset, 5, 1, cache_dir=tmp_path)
        if prepared
        else Activations(all_dataset).dataset(5, 1, streaming=True)
    )
    with pytest.raises(ActivationsError, match=says):
        activation_batches(layer, **options)


def test_a_dataset_that_lost_the_column(all_dataset, tmp_path):
    layer = load_activations(all_dataset, 5, 1, cache_dir=tmp_path).remove_columns("kind")
    with pytest.raises(ActivationsError, match="has no column kind by which"):
        activation_batches(layer, where={"kind": "image"})
