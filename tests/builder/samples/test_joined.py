"""A build that joins a benchmark's files: what is in the folder, and when it is built anew."""

import json

import datasets
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
ANNOTATIONS = [
    {"id": 1, "type": "generative", "truth": ["dog"], "hallu": ["cat"]},
    {"id": 2, "type": "discriminative-relation", "truth": "no"},
    {"id": 9, "type": "discriminative-relation", "truth": "no"},
]
# Of each sample: its prompt's tokens, its answer's, and the answer.
ASKED = [
    (["<s>", *["<image>"] * 4, "A", ":"], [" A", " d", "og", " and", " two", " cats", "."]),
    (["<s>", *["<image>"] * 4, "A", ":"], ["No"]),
]


@pytest.fixture(scope="module")
def answered_store(tmp_path_factory):
    """Store of two samples with their answers: the rows are the answers' tokens."""
    store = tmp_path_factory.mktemp("answered") / "store"
    recipe = Recipe(
        *(2, 4, 1),
        store_dtype="float32",
        n_samples=2,
        chunk_samples=2,
        positions="generated",
        max_new_tokens=8,
    )
    write_recipe(store, recipe)
    records, rows = [], []
    for sample, (prompt, answer) in enumerate(ASKED):
        records.append(
            SampleRecord(
                *(sample, 1 + sample, f"AMBER_{1 + sample}.jpg", "Describe.", "0" * 64),
                n_rows=len(answer),
                response="".join(answer).strip(),
                prompt="<image>A:",
                tokens=Tokens.of(prompt + answer),
                response_start=len(prompt),
            )
        )
        rows += [(sample, position) for position in range(len(prompt), len(prompt + answer))]
    tensors = {
        f"{kind}_{layer:02d}": torch.randn(len(rows), 4)
        for kind in ("x", "mlp_out")
        for layer in (0, 1)
    }
    numbers = torch.tensor(rows, dtype=torch.int32)
    tensors |= {"sample": numbers[:, 0].contiguous(), "position": numbers[:, 1].contiguous()}
    tensors["token_id"] = torch.arange(len(rows), dtype=torch.int32)
    write_chunk(chunk_path(store, 0), tensors, records)
    finish_store(store, recipe)
    return store


@pytest.fixture
def asked(tmp_path):
    """What is joined: annotations and relations, each a file in `tmp_path`."""
    (tmp_path / "annotations.json").write_text(json.dumps(ANNOTATIONS))
    (tmp_path / "relation.json").write_text('{"cat": ["kitten"]}')
    return SamplesAsked(tmp_path / "annotations.json", tmp_path / "relation.json")


def test_a_build_with_labels(answered_store, asked, tmp_path, capsys):
    """In the file, the card and the manifest; the rows of what is made up, by sample and place."""
    folder = tmp_path / "dataset"
    build(answered_store, folder, samples=asked)
    assert "annotations.json: 2 of 3 annotations are of samples" in capsys.readouterr().err
    assert "samples are those of the rows" in verify(folder).checks
    found = Activations(folder).samples
    assert found["correct"].to_pylist() == [None, True]
    made_up = duckdb.sql(f"""
        SELECT sample, unnest(range(m.first_position, m.last_position + 1))
        FROM (SELECT sample, unnest(mentions) AS m FROM '{folder / FILE}') WHERE m.hallucinated
    """).fetchall()
    rows = pq.read_table(folder / "all_layers", columns=["sample", "position", "token_id"])
    token_ids = [
        row["token_id"] for row in rows.to_pylist() if (row["sample"], row["position"]) in made_up
    ]
    # " cats", the sixth of the answer's tokens.
    assert (made_up, token_ids) == ([(0, 12)], [5])
    opened = datasets.load_dataset(
        str(folder), "samples", split="train", cache_dir=str(tmp_path / "cache")
    )
    (dog, cats) = opened[0]["mentions"]
    assert (dog["word"], dog["first_position"], dog["last_position"]) == ("dog", 8, 9)
    assert opened[0]["tokens"][8:10] == [" d", "og"] and cats["annotated"] == "cat"
    card = (folder / "README.md").read_text()
    assert "| `mentions` | list of struct | `samples` | words of the response" in card
    assert "| `truth` | list of string | `samples` |" in card


def test_a_build_with_other_labels_is_another(answered_store, asked, tmp_path):
    """With the same files nothing is done; a file that says something else is no such build."""
    folder = tmp_path / "dataset"
    first = build(answered_store, folder, samples=asked)
    assert set(first.built_from.joined) == {"annotations", "relations"}
    made = (folder / FILE).stat().st_mtime_ns
    assert build(answered_store, folder, samples=asked) == first
    assert (folder / FILE).stat().st_mtime_ns == made
    asked.annotations.write_text(json.dumps(ANNOTATIONS[:2]))
    for other in (asked, SamplesAsked(), SamplesAsked(annotations=asked.annotations)):
        with pytest.raises(ActivationsError, match="dataset"):
            build(answered_store, folder, samples=other)


def test_files_that_do_not_fit(answered_store, asked, tmp_path):
    """Are found before anything is written."""
    answers = tmp_path / "answers.json"
    answers.write_text('[{"id": 700, "response": "Yes"}]')
    with pytest.raises(ActivationsError, match=r"none of the 1 answers in .*answers\.json"):
        build(
            answered_store,
            tmp_path / "dataset",
            samples=SamplesAsked(annotations=asked.annotations, answers=answers),
        )
    asked.annotations.write_text('[{"id": 1, "truth": 3}]')
    with pytest.raises(ActivationsError, match=r"'truth' of the annotation of id 1 in"):
        build(answered_store, tmp_path / "dataset", samples=asked)
    assert not [path for path in tmp_path.iterdir() if "dataset" in path.name]
