"""`build --annotations`: what it joins, and what that makes of a build."""

import hashlib
import json

import duckdb
import pyarrow.parquet as pq
import pytest
import torch

from builder.build import build
from builder.samples.asked import SamplesAsked
from builder.verify import verify
from llava_amber_activations import Activations, ActivationsError
from llava_amber_activations.formats.recipe import Recipe
from llava_amber_activations.store.chunk import write_chunk
from llava_amber_activations.store.finish import finish_store
from llava_amber_activations.store.layout import chunk_path, write_recipe
from llava_amber_activations.store.samples import SampleRecord, Tokens

FILE = "samples/train-00000-of-00001.parquet"


@pytest.fixture
def annotations(tmp_path):
    """Function that writes annotations of the small store's samples, but for the last."""

    def write(name, topics=("sea", "sea", "town", "wood")):
        path = tmp_path / name
        entries = [{"id": 101 + number, "topic": topic} for number, topic in enumerate(topics)]
        path.write_text(json.dumps(entries), encoding="utf-8")
        return SamplesAsked(annotations=path)

    return write


def test_columns_of_any_benchmark(small_store, annotations, tmp_path):
    """By `id`, also of the sample that was skipped; null where there is none; on the card."""
    asked = annotations("topics.json")
    manifest = build(small_store, tmp_path / "dataset", configs=["all_layers"], samples=asked)
    table = pq.ParquetFile(tmp_path / "dataset" / FILE).read()
    assert table.column_names[-1] == "topic"
    assert table["topic"].to_pylist() == ["sea", "sea", "town", "wood", None]
    assert Activations(tmp_path / "dataset").samples["topic"].to_pylist()[2] == "town"
    digest = hashlib.sha256(asked.annotations.read_bytes()).hexdigest()
    assert manifest.built_from.joined == {"annotations": digest}
    card = (tmp_path / "dataset" / "README.md").read_text(encoding="utf-8")
    assert "| `topic` | string | `samples` | as the benchmark's annotations have it |" in card
    verify(tmp_path / "dataset")


def test_other_annotations_are_another_build(small_store, annotations, tmp_path):
    """The same again is built already, wherever the file lies; others are refused."""
    folder = tmp_path / "dataset"
    build(small_store, folder, configs=["all_layers"], samples=annotations("one.json"))
    before = (folder / FILE).stat().st_mtime_ns
    build(small_store, folder, configs=["all_layers"], samples=annotations("two.json"))
    assert (folder / FILE).stat().st_mtime_ns == before
    for other in (annotations("three.json", ("sky",)), SamplesAsked()):
        with pytest.raises(ActivationsError, match="already holds something"):
            build(small_store, folder, configs=["all_layers"], samples=other)


def test_a_build_is_gone_on_with_other_annotations(small_store, annotations, tmp_path, monkeypatch):
    """No shard of vectors is made again: none is made from them."""
    from builder.shards import write

    made = []

    def broken_off(path, schema, open_shard=write.open_shard):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(path.name)
        return open_shard(path, schema)

    monkeypatch.setattr(write, "_MOST_THREADS", 1)
    with monkeypatch.context() as patch:
        patch.setattr(write, "open_shard", broken_off)
        with pytest.raises(KeyboardInterrupt):
            build(small_store, tmp_path / "dataset", samples=annotations("one.json"))
    again = []

    def counted(path, schema, open_shard=write.open_shard):
        again.append(path.name)
        return open_shard(path, schema)

    monkeypatch.setattr(write, "open_shard", counted)
    build(small_store, tmp_path / "dataset", samples=annotations("two.json", ("sky",)))
    assert len(made) == 2 and len(again) == 2 and not set(made) & set(again)
    topics = Activations(tmp_path / "dataset").samples["topic"].to_pylist()
    assert topics == ["sky", None, None, None, None]
    verify(tmp_path / "dataset")


def test_rows_of_made_up_words(tmp_path):
    """As docs/samples.md selects them, by DuckDB and by `batches`: the store's own rows."""
    tokens = ["USER:", " Why?", " A", " dog", ",", " two", " dogs", "."]
    recipe = Recipe(
        n_layers=2, hidden_size=4, n_targets=1, store_dtype="float32", n_samples=2, positions="all"
    )
    records = [
        SampleRecord(
            *(sample, sample, "a.jpg", "Why?", "0" * 64, len(tokens)),
            response="A dog, two dogs.",
            prompt="USER: Why?",
            tokens=Tokens.of(tokens),
            response_start=2,
        )
        for sample in range(2)
    ]
    n_rows = 2 * len(tokens)
    x = torch.randn(n_rows, 4, generator=torch.Generator().manual_seed(0))
    tensors = {
        name: x + layer for layer in range(2) for name in (f"x_0{layer}", f"mlp_out_0{layer}")
    }
    tensors["sample"] = torch.arange(n_rows, dtype=torch.int32) // len(tokens)
    tensors["position"] = torch.arange(n_rows, dtype=torch.int32) % len(tokens)
    tensors["token_id"] = torch.zeros(n_rows, dtype=torch.int32)
    store = tmp_path / "store"
    write_recipe(store, recipe)
    write_chunk(chunk_path(store, 0), tensors, records)
    finish_store(store, recipe)
    path = tmp_path / "annotations.json"
    path.write_text(
        '[{"id": 0, "truth": ["dog"], "hallu": []}, {"id": 1, "truth": [], "hallu": ["dog"]}]'
    )
    asked = SamplesAsked(annotations=path)
    build(store, tmp_path / "dataset", configs=["all_layers"], samples=asked)
    found = duckdb.sql(f"""
        SELECT sample, unnest(range(mention.first_position, mention.last_position + 1)) AS position
        FROM (SELECT sample, unnest(mentions) AS mention
              FROM '{tmp_path}/dataset/samples/*.parquet')
        WHERE mention.hallucinated
    """).fetchall()
    assert set(found) == {(1, 3), (1, 6)}
    acts = Activations(tmp_path / "dataset")
    (batch,) = acts.batches(layer=0, batch_size=64, samples={sample for sample, _ in found})
    rows = zip(batch["sample"].tolist(), batch["position"].tolist(), strict=True)
    made_up = [row in set(found) for row in rows]
    assert torch.equal(batch["x"][made_up], x[[len(tokens) + 3, len(tokens) + 6]])


def test_what_does_not_fit_leaves_nothing(small_store, annotations, tmp_path):
    """Annotations of no sample, or none at all: before anything is written."""
    asked = annotations("one.json")
    asked.annotations.write_text('[{"id": 7, "topic": "sea"}]')
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ActivationsError, match=r"none of the 1 annotations in .*one\.json"):
        build(small_store, tmp_path / "dataset", samples=asked)
    with pytest.raises(ActivationsError, match=r"absent\.json is missing"):
        absent = SamplesAsked(annotations=tmp_path / "absent.json")
        build(small_store, tmp_path / "dataset", samples=absent)
    assert sorted(tmp_path.rglob("*")) == before
