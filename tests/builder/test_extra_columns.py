"""Columns that the rows of some datasets have: from the store through the build to every reader."""

import hashlib
import json
import math
import shutil

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from manifests import changed_manifest
from mixed_store import KINDS_OF, ROWS, SOURCES, columns, make_mixed_store, vectors
from safetensors.torch import load_file

from builder.asked.handover_asked import HandoverAsked
from builder.build import build
from builder.export import export
from builder.handover.hand_over import hand_over
from builder.import_pt import import_pt
from builder.info import info
from builder.report.report import make_report
from builder.verify import verify
from llava_amber_activations import (
    KINDS,
    Activations,
    ActivationsError,
    LlavaAmberActivations,
    activation_batches,
    load_activations,
    load_statistics,
    open_layer,
)
from llava_amber_activations.sources.source import open_source
from llava_amber_activations.store.chunk import Chunk
from llava_amber_activations.store.layout import chunk_path, read_recipe

EXTRA = ("source", "tile", "logprob")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_mixed_store(tmp_path_factory.mktemp("mixed") / "store")


@pytest.fixture(scope="module")
def dataset(store, tmp_path_factory):
    """Both configs, of rows with all extra columns."""
    folder = tmp_path_factory.mktemp("mixed") / "dataset"
    build(store, folder)
    return folder


def known(values):
    """Return a column's values, None in the place of NaN."""
    return [None if isinstance(value, float) and math.isnan(value) else value for value in values]


def said_of(table):
    names = [name for name in table.schema.names if name in columns(EXTRA)]
    return {name: known(table[name].to_pylist()) for name in names}


def numbers_said():
    """Return what a batch of all rows says of them."""
    said = columns(EXTRA)
    said["kind"] = [KINDS.index(kind) for kind in said["kind"]]
    return {name: values for name, values in said.items() if name not in ("image", "source")}


@pytest.mark.parametrize("path", ["data/L1-00000-of-00001", "all_layers/train-00000-of-00001"])
def test_columns_of_shards(dataset, path):
    """They follow the leading ones, of their types, and say what the store says."""
    table = pq.read_table(dataset / f"{path}.parquet")
    assert table.schema.names[8:11] == list(EXTRA)
    types = [str(table.schema.field(name).type) for name in EXTRA]
    assert types == ["string", "int32", "float"]
    assert said_of(table) == columns(EXTRA)


@pytest.mark.parametrize("extra", [(), ("logprob",), ("tile", "source")])
def test_those_alone_that_the_recipe_names(tmp_path, extra, dataset):
    """Without them, a shard's columns are those of a data set that never had them."""
    build(make_mixed_store(tmp_path / "store", extra), tmp_path / "dataset")
    table = pq.read_table(tmp_path / "dataset/data/L1-00000-of-00001.parquet")
    in_order = [name for name in EXTRA if name in extra]
    assert table.schema.names == [*list(columns(()))[:8], *in_order, "x", "targets"]
    assert said_of(table) == columns(extra)
    verify(tmp_path / "dataset")
    other = pq.read_table(dataset / "data/L1-00000-of-00001.parquet")
    assert table["targets"].equals(other["targets"])
    assert datasets.Features.from_arrow_schema(table.schema).keys() == set(table.schema.names)


def test_samples_say_their_source(dataset):
    table = Activations(dataset).samples
    assert table["source"].to_pylist() == list(SOURCES)
    assert table["image"].to_pylist() == ["0.jpg", None, "2.jpg", "3.jpg", None]
    assert table["n_rows"].to_pylist() == [len(kinds) for kinds in KINDS_OF]


def test_verified(store, dataset):
    assert verify(store).n_rows == verify(dataset).n_rows == len(ROWS)


def test_a_split_that_says_something_else(dataset, tmp_path):
    """Under right checksums, one probability is another, or one that was not known is known."""
    for row in (6, 0):
        folder = tmp_path / f"dataset-{row}"
        shutil.copytree(dataset, folder)
        path = folder / "data/L1-00000-of-00001.parquet"
        table = pq.read_table(path)
        values = table["logprob"].to_numpy().copy()
        values[row] = -9.0
        number = table.schema.get_field_index("logprob")
        table = table.set_column(number, table.schema.field(number), [values])
        pq.write_table(table, path, row_group_size=len(table))
        content = path.read_bytes()
        with changed_manifest(folder) as manifest:
            entry = manifest["files"]["data/L1-00000-of-00001.parquet"]
            entry["sha256"], entry["bytes"] = hashlib.sha256(content).hexdigest(), len(content)
        with pytest.raises(ActivationsError, match="are of other samples or positions than in all"):
            verify(folder)


def test_a_shard_without_a_column_of_the_recipe(dataset, tmp_path):
    folder = tmp_path / "dataset"
    shutil.copytree(dataset, folder)
    path = folder / "all_layers/train-00000-of-00001.parquet"
    table = pq.read_table(path).drop_columns(["tile"])
    pq.write_table(table, path, row_group_size=len(table))
    content = path.read_bytes()
    with changed_manifest(folder) as manifest:
        entry = manifest["files"]["all_layers/train-00000-of-00001.parquet"]
        entry["sha256"], entry["bytes"] = hashlib.sha256(content).hexdigest(), len(content)
    with pytest.raises(ActivationsError, match="has no column tile"):
        verify(folder)


def in_order(batches):
    """Return the rows of batches by name, in the order of samples and positions."""
    found = list(batches)
    joined = {name: torch.cat([batch[name] for batch in found]) for name in found[0]}
    order = np.lexsort((joined["position"], joined["sample"]))
    return {name: tensor[torch.from_numpy(order)] for name, tensor in joined.items()}


def opened(dataset, how, tmp_path):
    if how == "open_layer":
        return open_layer(dataset, 0)
    return load_activations(dataset, 0, streaming=how == "streaming", cache_dir=tmp_path / "cache")


@pytest.mark.parametrize("how", ["open_layer", "prepared", "streaming"])
@pytest.mark.parametrize("config", ["all_layers", "default"])
def test_batches(dataset, store, tmp_path, how, config):
    """Every reader says the same of every row; vectors are those of the store."""
    folder = dataset
    if config == "default":
        folder = tmp_path / "dataset"
        build(store, folder, configs=["default"])
    rows = in_order(activation_batches(opened(folder, how, tmp_path), batch_size=7, shuffle=True))
    for name, values in numbers_said().items():
        assert known(rows[name].tolist()) == values, name
        assert rows[name].dtype == (torch.float32 if name == "logprob" else torch.int32)
    assert "source" not in rows and "image" not in rows
    assert np.array_equal(rows["x"].numpy(), vectors()["x_00"])


@pytest.mark.parametrize("prepared", [False, True])
def test_hook_batches(dataset, tmp_path, prepared):
    more = {"prepared": True, "cache_dir": tmp_path} if prepared else {}
    batches = Activations(dataset).hook_batches(
        rows=True, batch_size=6, shuffle=True, dtype="float16", **more
    )
    rows = in_order(batches)
    for name, values in numbers_said().items():
        assert known(rows[name].tolist()) == values, name
    # The vectors are converted, and what is said of the rows is not.
    assert rows["logprob"].dtype == torch.float32
    assert rows["blocks.1.hook_mlp_out"].dtype == torch.float16


CHOICES = [
    {"source": "pope"},
    {"source": ["texts", "coco"]},
    {"tile": 0},
    {"kind": "answer"},
    {"kind": ["system", "generated"], "source": "texts"},
]


@pytest.mark.parametrize("how", ["open_layer", "prepared"])
@pytest.mark.parametrize("where", CHOICES, ids=str)
def test_rows_are_chosen_by_them(dataset, tmp_path, how, where):
    said = columns(EXTRA)
    wanted = [
        row
        for row in range(len(ROWS))
        if all(
            said[name][row] in ([values] if isinstance(values, str | int) else values)
            for name, values in where.items()
        )
    ]
    assert wanted
    batches = activation_batches(opened(dataset, how, tmp_path), batch_size=4, where=where)
    rows = in_order(batches)
    assert rows["token_id"].tolist() == [said["token_id"][row] for row in wanted]
    assert batches.n_left_out == len(ROWS) - len(wanted)


def test_choices_that_cannot_be(dataset, last_dataset):
    layer = open_layer(dataset, 0)
    with pytest.raises(ActivationsError, match="cannot be chosen by 'logprob'"):
        activation_batches(layer, where={"logprob": -1})
    with pytest.raises(ActivationsError, match="values of source are texts"):
        activation_batches(layer, where={"source": 1})
    with pytest.raises(ActivationsError, match="none of the 25 rows is one with source"):
        activation_batches(layer, where={"source": "mme"})
    with pytest.raises(ActivationsError, match="have no column tile to be chosen by"):
        activation_batches(open_layer(last_dataset, 5), where={"tile": 0})


def test_the_dataset_builder(dataset, tmp_path):
    """Its tables are those of the default config."""
    builder = LlavaAmberActivations(
        dataset_name="mixed",
        data_files=str(dataset / "all_layers/*.parquet"),
        cache_dir=str(tmp_path),
        n_targets=2,
    )
    builder.download_and_prepare()
    found = builder.as_dataset(split="L1")
    expected = pq.read_table(dataset / "data/L1-00000-of-00001.parquet")
    assert found.column_names == expected.schema.names
    assert said_of(found.data.table) == said_of(expected)


def test_the_card(dataset):
    """A line for each source, and what the columns mean."""
    card = (dataset / "README.md").read_text()
    assert "The samples are of 2 query files or datasets." in card
    assert "| `pope` | pope.json | 3 | 22 |" in card and "| `texts` | texts.json | 2 | 3 |" in card
    for name, type_ in zip(EXTRA, ("string", "int32", "float32"), strict=True):
        assert f"\n| `{name}` | {type_} | `default`, `all_layers`" in card
    assert "| answer | 4 | 16.0 % |" in card and "| system | 4 | 16.0 % |" in card
    assert "| extra_columns | source, tile, logprob |" in card
    assert "| sources | pope (pope.json, 3 samples); texts (texts.json, 2 samples) |" in card
    assert "# Activations of llava on pope.json, texts.json" in card


def test_statistics_count_all_kinds(dataset):
    said = columns(EXTRA)["kind"]
    counts = load_statistics(dataset).x_count_by_kind[1].tolist()
    assert counts == [*(said.count(kind) for kind in KINDS), 0] and counts[3:5] == [4, 4]


@pytest.mark.parametrize("of", ["store", "dataset"])
def test_info(request, of):
    table = dict(info(request.getfixturevalue(of)))
    assert table["sources"] == "pope (3 samples), texts (2 samples)"
    assert table["more columns"] == "source, tile, logprob"


def test_export_and_import(dataset, tmp_path):
    """The vectors come back; what .pt files do not hold is said, and nobody looks for it."""
    export(dataset, tmp_path / "pt", layout="layers")
    manifest = import_pt(tmp_path / "pt", tmp_path / "back")
    assert manifest.recipe.extra_columns == ()
    assert any("had `source`, `tile`, `logprob`" in warning for warning in manifest.warnings)
    verify(tmp_path / "back")
    found = pq.read_table(tmp_path / "back/data/L0-00000-of-00001.parquet")
    assert found.schema.names == [*list(columns(())), "x", "targets"]
    x = np.array(found["x"].to_pylist(), np.float32)
    assert np.array_equal(x, vectors()["x_00"])


def test_handed_over(dataset, tmp_path):
    """Beside the chunks, the numbers of each of their rows."""
    hand_over(str(dataset), tmp_path / "out", HandoverAsked("llamascopium", seed=1))
    rows = load_file(tmp_path / "out/rows/rows-00000.safetensors")
    said = numbers_said()
    assert rows["logprob"].dtype == torch.float32 and rows["tile"].dtype == torch.int32
    places = {pair: n for n, pair in enumerate(zip(said["sample"], said["position"], strict=True))}
    at = [
        places[pair]
        for pair in zip(*(rows[n].tolist() for n in ("sample", "position")), strict=True)
    ]
    for name in ("tile", "logprob", "kind"):
        assert known(rows[name].tolist()) == [said[name][row] for row in at]


def test_the_report(dataset):
    """It says where the samples are from, of each in its browser too."""
    page = make_report(open_source(dataset), max_bytes=2**20).text
    assert "25 token positions of 5 samples" in page
    assert "on pope.json and texts.json" in page
    assert "pope (pope.json, 3 samples); texts (texts.json, 2 samples)" in page


def test_load_dataset(dataset, tmp_path):
    """As anyone opens it, with the types that the card says."""
    found = datasets.load_dataset(str(dataset), "L0", split="L0", cache_dir=str(tmp_path))
    assert [found.features[name].dtype for name in EXTRA] == ["string", "int32", "float32"]
    assert found["source"][:] == columns(EXTRA)["source"]


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"logprob": torch.ones(len(ROWS))}, "a probability above 1"),
        ({"logprob": torch.zeros(len(ROWS), dtype=torch.float64)}, "logprob is F64"),
        ({"tile": torch.zeros(len(ROWS))}, "tile is F32"),
    ],
)
def test_a_store_of_other_tensors(tmp_path, changed, why):
    store = make_mixed_store(tmp_path / "store", **changed)
    with pytest.raises(ActivationsError, match=why):
        build(store, tmp_path / "dataset")


def test_a_sample_of_no_source_of_the_recipe(tmp_path):
    store = make_mixed_store(tmp_path / "store")
    text = json.loads((store / "capture.json").read_text())
    text["sources"] = text["sources"][1:]
    (store / "other.json").write_text(json.dumps(text))
    recipe = read_recipe(store)
    recipe = type(recipe).from_json(text, "other")
    with pytest.raises(ActivationsError, match="sample 0 is of source 'pope', and the recipe"):
        Chunk(chunk_path(store, 0)).check_rows(recipe)
