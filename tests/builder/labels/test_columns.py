"""The columns that a benchmark's annotations add to the samples."""

import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from builder.labels.amber import AmberLabels, Relations, amber_labels, read_relations
from builder.labels.annotations import Annotations, read_annotations
from builder.labels.columns import MENTIONS_TYPE, label_columns
from builder.labels.entries import check_joined
from llava_amber_activations import ActivationsError
from llava_amber_activations.store.samples import SampleRecord, Tokens


def record(sample, response=None, pieces=None, start=None, **fields):
    """A sample of id 101 and on; `pieces` are its response's tokens, after `start` others."""
    tokens = None if pieces is None else Tokens.of(["<image>"] * start + pieces)
    values = {"id": 101 + sample, "image": "a.jpg", "query": "?", "image_sha256": None, **fields}
    return SampleRecord(
        sample, n_rows=1, response=response, tokens=tokens, response_start=start, **values
    )


def annotations_of(entries):
    """Annotations as they are read from a file that holds `entries`."""
    return Annotations(
        {e["id"]: {k: e[k] for k in e if k != "id"} for e in entries}, Path("a.json")
    )


def mention(word, annotated, hallucinated, first=None, last=None):
    return {
        **{"word": word, "annotated": annotated, "hallucinated": hallucinated},
        **{"first_position": first, "last_position": last},
    }


AMBER = annotations_of(
    [
        {"id": 101, "type": "generative", "truth": ["sky", "dog"], "hallu": ["cloud"]},
        {"id": 102, "type": "discriminative-attribute-state", "truth": "no"},
        {"id": 103, "type": "discriminative-hallucination", "truth": "yes"},
        {"id": 104, "type": "relation", "truth": "yes"},
        {"id": 999, "type": "discriminative-relation", "truth": "no"},
    ]
)


def test_ambers_annotations():
    """Generative and discriminative ones, and a sample that has none."""
    records = [
        record(0, "Dogs. A cloud", ["D", "ogs", "", ".", " A ", "clo", "ud", ""], 3),
        record(1, "No, it is not."),
        record(2, "Hm."),
        record(3),
        record(4, "Yes"),
    ]
    table = label_columns(records, AMBER)
    mentions = [mention("Dogs", "dog", False, 3, 4), mention("cloud", "cloud", True, 8, 9)]
    assert table.to_pydict() == {
        "truth": [["sky", "dog"], None, None, None, None],
        "hallu": [["cloud"], None, None, None, None],
        "truth_answer": [None, "no", "yes", "yes", None],
        "dimension": [None, "attribute-state", "existence", "relation", None],
        "answer": [None, "no", None, None, None],
        "correct": [None, True, None, None, None],
        "mentions": [mentions, None, None, None, None],
    }
    assert table.schema.field("mentions").type == MENTIONS_TYPE
    # Of the same file the same columns, whatever the samples are.
    assert label_columns([record(900)], AMBER).schema == table.schema


def test_positions_are_of_the_tokens_that_have_the_letters():
    """A word may begin and end within a token, and have tokens without text in it."""
    pieces = ["A", " tr", "", "ee", "s", "t", "op, tr", "", "ees", " ", "ol", "d tree"]
    text = "".join(pieces)
    annotations = annotations_of([{"id": 101, "truth": ["tree"]}])
    (found,) = label_columns([record(0, text, pieces, 5)], annotations)["mentions"].to_pylist()
    owner = [5 + number for number, piece in enumerate(pieces) for _ in piece]
    assert found == [
        mention(word, "tree", False, owner[start], owner[start + len(word) - 1])
        for word, start in (("trees", text.index("trees ")), ("tree", text.rindex("tree")))
    ]


def test_given_answers():
    """They are labelled alone, and beside the samples' tokens only where they are the captured."""
    records = [record(0, "A dog", ["A", " dog"], 3), record(1, "No"), record(2, "No")]
    table = label_columns(records, AMBER, answers={101: "Dog", 102: "Yes"})
    assert table["given_response"].to_pylist() == ["Dog", "Yes", None]
    assert table["answer"].to_pylist() == [None, "yes", None]
    assert table["correct"].to_pylist() == [None, False, None]
    assert table["mentions"].to_pylist() == [[mention("Dog", "dog", False)], None, None]
    (same, *_) = label_columns(records, AMBER, answers={101: " A dog\n"})["mentions"].to_pylist()
    assert same == [mention("dog", "dog", False, 4, 4)]


def test_relations_reach_the_columns():
    records = [record(0, "A puppy and a cat")]
    relations = Relations({"dog": ("puppy",), "cat": ()})
    (mentions,) = label_columns(records, AMBER, relations)["mentions"].to_pylist()
    assert mentions == [mention("puppy", "dog", False), mention("cat", None, True)]
    (mentions,) = label_columns(records, AMBER)["mentions"].to_pylist()
    assert mentions == []


def test_any_other_benchmark(tmp_path):
    """Its keys as they are: numbers, lists, objects; text where all are null."""
    lines = [
        {"id": 102, "score": 1, "boxes": [[1.5, 2]], "meta": {"split": "val"}, "image": "a.jpg"},
        {"id": 101, "score": 0.5, "type": "count", "nothing": None, "empty": []},
        {"id": 7, "score": 3, "meta": {"n": 4}},
    ]
    path = tmp_path / "annotations.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    table = label_columns([record(0), record(1), record(2)], read_annotations(path))
    assert table.to_pydict() == {
        "score": [0.5, 1.0, None],
        "boxes": [None, [[1.5, 2.0]], None],
        "meta": [None, {"split": "val", "n": None}, None],
        "type": ["count", None, None],
        "nothing": [None] * 3,
        "empty": [[], None, None],
    }
    assert table.schema.field("empty").type == pa.list_(pa.string())
    pq.write_table(table, tmp_path / "t.parquet")
    assert pq.read_table(tmp_path / "t.parquet").to_pydict() == table.to_pydict()
    assert set(datasets.Features.from_arrow_schema(table.schema)) == set(table.column_names)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"truth": "a dog"}, "'truth' of the annotation of id 101 in a.json is 'a dog', no list"),
        ({"truth": ["dog", 3]}, r"'truth' of .* is \['dog', 3\], no list of words, nor 'yes' or"),
        ({"hallu": "dog"}, "'hallu' of .* is 'dog', no list of words: give it another name"),
        ({"answer": "yes"}, "have the key 'answer', .* or 'truth' where it is the right one"),
        ({"tokens": 3}, "have the key 'tokens', which is a column of config samples"),
        ({"score": "high"}, "the values of 'score' in a.json cannot be one column"),
        ({"score": True}, "the values of 'score' in a.json cannot be one column"),
        ({"score": 2**70}, "the values of 'score' in a.json cannot be one column"),
        ({"meta": {}}, r"the values of 'meta' in a.json cannot be one column \(an object without"),
        ({"image": "b.jpg"}, "id 101 in a.json is of the image 'b.jpg', and sample 0 with that id"),
    ],
)
def test_annotations_that_cannot_be_columns(entry, said):
    both = annotations_of([{"id": 101, **entry}, {"id": 102, "score": 1}])
    with pytest.raises(ActivationsError, match=said):
        label_columns([record(0)], both)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}", "holds a JSON dict, not a list"),
        ("[]", "is empty: there is nothing to join"),
        ("[3]", "entry 0 of .* is not an object"),
        ('[{"id": 1}, {"label": 2}]', "entry 1 of .* has no 'id', by which it is joined"),
        ('[{"id": "1"}]', "'id' of entry 0 of .* is '1', no whole number"),
        ('[{"id": true}]', "'id' of entry 0 of .* is True, no whole number"),
        ('[{"id": 5}, {"id": 5}]', "has the id 5 twice: leave one of them out"),
        ("[", "is not JSON"),
    ],
)
def test_files_that_are_no_annotations(tmp_path, text, said):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ActivationsError, match=said):
        read_annotations(tmp_path / "a.json")
    with pytest.raises(ActivationsError, match=r"nowhere\.json"):
        read_annotations(tmp_path / "nowhere.json")


def test_annotations_of_no_sample(capsys):
    """Are counted; where all are, the file is another benchmark's."""
    path = Path("a.json")
    check_joined({1: {}, 2: {}}, [1, 2, 3], path, "annotations")
    assert capsys.readouterr().err == ""
    check_joined({1: {}, 2: {}}, [2, 3], path, "annotations")
    assert "a.json: 1 of 2 annotations are of samples" in capsys.readouterr().err
    with pytest.raises(
        ActivationsError, match=r"none of the 2 annotations in a\.json .* from 7 to 9"
    ):
        check_joined({1: {}, 2: {}}, [7, 9], path, "annotations")


def test_ambers_relations(tmp_path):
    (tmp_path / "relation.json").write_text('{"road": ["path", "street"], "sky": []}')
    (tmp_path / "safe_words.txt").write_text("orange\nsnack\n\n")
    read = read_relations(tmp_path / "relation.json", tmp_path / "safe_words.txt")
    assert read == Relations(
        {"road": ("path", "street"), "sky": ()}, frozenset({"orange", "snack"})
    )
    assert read_relations(tmp_path / "relation.json").safe == frozenset()
    (tmp_path / "relation.json").write_text('{"road": "path"}')
    with pytest.raises(ActivationsError, match=r"'road' of .*relation\.json is 'path', no list"):
        read_relations(tmp_path / "relation.json")


def test_types_of_amber():
    """Each of its six names the dimension of its paper."""
    types = {
        "discriminative-hallucination": "existence",
        "discriminative-attribute-state": "attribute-state",
        "discriminative-attribute-number": "attribute-number",
        "discriminative-attribute-action": "attribute-action",
        "discriminative-relation": "relation",
        "relation": "relation",
        "generative": None,
        "else": None,
    }
    for type_, dimension in types.items():
        found = amber_labels({"type": type_, "truth": "Yes "}, "it")
        assert found == AmberLabels(truth_answer="yes", dimension=dimension)
