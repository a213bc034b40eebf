"""Several benchmarks in one store: which samples, in which order, and whose each row is."""

import json
from collections import Counter
from fractions import Fraction

import datasets
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from builder.build import build
from builder.samples.asked import SamplesAsked
from capture.model.tiny_model import make_tiny_llava
from capture.recapture import recapture
from capture.samples.mixture import order, source_names
from capture.settings import BenchmarkAsked
from llava_amber_activations import ActivationsError, activation_batches, load_activations

CPU = torch.device("cpu")


@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(0, 30)), min_size=2, max_size=5),
    st.none() | st.integers(0, 40),
)
def test_shares_hold_in_every_beginning(sources, most):
    """No source is ever a whole sample ahead of its share, nor are samples left that were due."""
    weights, available = zip(*sources, strict=True)
    found = order(weights, most, available)
    total, taken = sum(weights), Counter()
    for number, source in enumerate(found, start=1):
        taken[source] += 1
        for each, weight in enumerate(weights):
            assert taken[each] - Fraction(weight * number, total) < 1
    assert all(taken[each] <= n for each, n in enumerate(available))
    if most is None or len(found) < most:
        lacking = [
            Fraction(weight * (len(found) + 1), total) - taken[each]
            for each, weight in enumerate(weights)
        ]
        first = lacking.index(max(lacking))
        assert taken[first] == available[first]


def test_without_weights_all_are_taken():
    available = (3, 7, 1)
    found = order(available, None, available)
    assert [found.count(source) for source in range(3)] == [3, 7, 1]
    assert order(available, 4, available) == found[:4]


def test_two_to_one():
    assert order((2.0, 1.0), None, (6, 2)) == [0, 1, 0, 0, 1, 0, 0]


def test_names_are_of_one_source_each():
    asked = ["a/x.json", "b/x.json", "x-1.jsonl", "hf:someone/vqa", "hf:other/vqa"]
    names = source_names([BenchmarkAsked(name) for name in asked])
    assert names == ["x-2", "x-3", "x-1", "someone/vqa", "other/vqa"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_tiny_llava(tmp_path_factory.mktemp("model") / "tiny", n_layers=4)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Questions on pictures, captions given as answers, and plain texts: ids repeat."""
    folder = tmp_path_factory.mktemp("sources")
    questions = [{"id": n, "image": f"AMBER_{n + 1}.jpg", "query": "Why?"} for n in range(6)]
    captions = [
        {"id": n, "image": f"AMBER_{8 - n}.jpg", "query": "Caption.", "caption": f"Photograph {n}"}
        for n in range(3)
    ]
    texts = [{"text": f"Chapter {n}. It was a dark night."} for n in range(4)]
    (folder / "questions.json").write_text(json.dumps(questions))
    (folder / "captions.json").write_text(json.dumps(captions))
    (folder / "books").mkdir()
    (folder / "books" / "train.jsonl").write_text("\n".join(map(json.dumps, texts)))
    return folder


@pytest.fixture(scope="module")
def mixture(sources, image_dir, model):
    """What captures the three, twice as many questions as of the others."""
    return {
        "model": str(model),
        "dataset": (
            str(sources / "questions.json"),
            str(sources / "captions.json"),
            f"hf:{sources / 'books'}",
        ),
        "image_dir": (image_dir, image_dir, None),
        "query_column": (None, None, "text"),
        "answer_column": (None, "caption", None),
        "prompt_template": ("chat", "chat", "none"),
        "weight": (2.0, 1.0, 1.0),
        "positions": "all",
        "n_targets": 2,
    }


@pytest.fixture(scope="module")
def mixed_store(make_store, mixture):
    return make_store(**mixture)


def test_samples_of_a_mixture(mixed_store, sources):
    """The questions are used up first: six, and three of each of the others."""
    records = [
        json.loads(line) for line in (mixed_store / "samples.jsonl").read_text().splitlines()
    ]
    assert [record["source"] for record in records] == [
        *("questions", "captions", "books", "questions") * 3
    ]
    for source, n_samples in (("questions", 6), ("captions", 3), ("books", 3)):
        own = [record for record in records if record["source"] == source]
        assert [record["id"] for record in own] == list(range(n_samples))
    assert [record["sample"] for record in records] == list(range(12))
    assert records[1]["answer"] == "Photograph 0" and records[1]["image"] == "AMBER_8.jpg"
    assert records[2]["image"] is None and records[2]["prompt"].startswith("Chapter 0.")
    recipe = json.loads((mixed_store / "capture.json").read_text())
    assert recipe["benchmark"] == f"questions.json + captions.json + hf:{sources / 'books'}"
    assert recipe["extra_columns"] == ["source"] and recipe["answer_column"] == "caption"
    told = [(each["name"], each["n_samples"], each["weight"]) for each in recipe["sources"]]
    assert told == [("questions", 6, 2.0), ("captions", 3, 1.0), ("books", 3, 1.0)]


def test_a_mixture_to_train_from(mixed_store, image_dir, model, tmp_path):
    """Captured, captured again, built, and batches that say whose each row is."""
    found = recapture(
        *(mixed_store,), model=str(model), image_dir=image_dir, n_samples=5, seed=3, device=CPU
    )
    assert found.largest_error < 1e-5
    build(mixed_store, tmp_path / "dataset", configs=["all_layers"])
    records = [
        json.loads(line) for line in (mixed_store / "samples.jsonl").read_text().splitlines()
    ]
    by_sample = {record["sample"]: record for record in records}
    rows = datasets.load_dataset(str(tmp_path / "dataset"), "all_layers", split="train")
    assert len(rows) == sum(record["n_rows"] for record in records)
    kinds = set()
    for row in rows.select_columns(["sample", "source", "image", "kind", "id"]):
        record = by_sample[row["sample"]]
        assert row["source"] == record["source"] and row["image"] == (record["image"] or "")
        assert row["id"] == record["id"]
        kinds.add((row["source"], row["kind"]))
    assert kinds == {
        *(("questions", kind) for kind in ("text", "image")),
        *(("captions", kind) for kind in ("text", "image", "answer")),
        ("books", "text"),
    }
    table = datasets.load_dataset(str(tmp_path / "dataset"), "samples", split="train")
    assert table["source"] == [record["source"] for record in records]
    assert table["image"] == [record["image"] for record in records]
    answers = [record.get("answer") for record in records]
    assert table["given_answer"] == answers and "Photograph 0" in answers
    view = load_activations(str(tmp_path / "dataset"), layer=1, n_targets=2)
    n_rows = 0
    for batch in activation_batches(view, batch_size=64, shuffle=True, seed=0):
        n_rows += len(batch["x"])
    assert n_rows == len(rows)


def test_annotations_of_ids_that_stand_for_several(mixed_store, tmp_path):
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps([{"id": 0, "truth": "yes"}]))
    asked = SamplesAsked(annotations=path)
    with pytest.raises(ActivationsError, match="id 0 is of a sample of questions and of one of ca"):
        build(mixed_store, tmp_path / "dataset", configs=["all_layers"], samples=asked)
    assert not (tmp_path / "dataset").exists()


def test_what_is_begun_goes_on_with_the_same_mixture(make_store, mixture, mixed_store, tmp_path):
    """Chunks that are missing are made again, bit for bit; other weights are another recipe."""
    make_store(tmp_path / "store", **mixture)
    chunk = tmp_path / "store" / "chunks" / "chunk-00001.safetensors"
    chunk.unlink()
    (tmp_path / "store" / "samples.jsonl").unlink()
    make_store(tmp_path / "store", **mixture)
    assert chunk.read_bytes() == (mixed_store / "chunks" / chunk.name).read_bytes()
    with pytest.raises(ActivationsError, match=r"another recipe: .*sources"):
        make_store(tmp_path / "store", **{**mixture, "weight": 1.0})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"weight": (1.0, 2.0)}, "--weight is given 2 times, and --dataset 3"),
        ({"weight": (1.0, 0.0, 1.0)}, "--weight is a number above 0, not 0.0"),
        ({"split": "train"}, "--split goes with --dataset hf:NAME.*give it -"),
        ({"positions": "generated"}, "has an answer to read, and --positions generated"),
        ({"prompt_template": "none"}, "sample 0 of .*questions.json has a picture"),
        ({"answer_column": "caption"}, "lacks the key 'caption'"),
    ],
)
def test_mixtures_that_cannot_be(make_store, mixture, tmp_path, change, said):
    with pytest.raises(ActivationsError, match=said):
        make_store(tmp_path / "store", **{**mixture, **change})
    assert not (tmp_path / "store").exists()
