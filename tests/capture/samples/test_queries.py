"""The forms that a query file may have."""

import json

import pytest

from capture.samples.queries import Query, read_queries
from llava_amber_activations import ActivationsError

ENTRIES = [
    {"id": 7, "image": "a/1.jpg", "query": "Why?", "more": 1},
    {"id": 9, "image": "2.jpg", "query": "Où est le chat ?"},
]
QUERIES = [Query(0, 7, "a/1.jpg", "Why?"), Query(1, 9, "2.jpg", "Où est le chat ?")]


def test_json_and_json_lines_are_the_same_queries(tmp_path):
    (tmp_path / "q.json").write_text(json.dumps(ENTRIES), encoding="utf-8")
    lines = "\n".join(json.dumps(entry, ensure_ascii=False) for entry in ENTRIES) + "\n\n"
    (tmp_path / "q.jsonl").write_text(lines, encoding="utf-8")
    assert read_queries(tmp_path / "q.json")[0] == QUERIES
    assert read_queries(tmp_path / "q.jsonl")[0] == QUERIES
    assert read_queries(tmp_path / "q.jsonl", max_samples=1)[0] == QUERIES[:1]
    assert read_queries(tmp_path / "q.json")[1] != read_queries(tmp_path / "q.jsonl")[1]


def test_broken_lines_are_said(tmp_path):
    (tmp_path / "q.jsonl").write_text('{"id": 1, "image": "1.jpg", "query": "?"}\n{"id": 2')
    with pytest.raises(ActivationsError, match=r"q\.jsonl is not JSON"):
        read_queries(tmp_path / "q.jsonl")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[{"id": 1, "image": "1.jpg", "query": "\\ud800"}]', "is not JSON"),
        ("[" * 100_000, "nested too deeply"),
        ('[{"id": 1' + "0" * 5000 + ', "image": "1.jpg", "query": "?"}]', "is not JSON"),
        ('[{"id": NaN, "image": "1.jpg", "query": "?"}]', "is not JSON"),
        ('[{"id": 1e999, "image": "1.jpg", "query": "?"}]', "'id' of entry 0 .* is inf, not int"),
        ('[{"id": 2147483648, "image": "1.jpg", "query": "?"}]', "no 32-bit integer"),
        ('[{"id": -2147483649, "image": "1.jpg", "query": "?"}]', "no 32-bit integer"),
        ('[{"id": true, "image": "1.jpg", "query": "?"}]', "is True, not int"),
        ('[{"id": 1, "image": "1.jpg", "query": null}]', "'query' of entry 0 .* is None, not str"),
        ("\xff\xfe", "is not JSON"),
    ],
    ids=lambda text: text[:20],
)
@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_hostile_files(tmp_path, suffix, text, said):
    """One short sentence that names the file, in both forms."""
    path = tmp_path / f"q.{suffix}"
    path.write_bytes((text[1:-1] if suffix == "jsonl" and "{" in text else text).encode("latin-1"))
    with pytest.raises(ActivationsError, match=said) as refused:
        read_queries(path)
    assert path.name in str(refused.value) and len(str(refused.value)) < 400


def test_the_whole_range_of_ids(tmp_path):
    path = tmp_path / "q.json"
    ids = [-(2**31), 0, 2**31 - 1]
    path.write_text(json.dumps([{"id": id_, "image": "1.jpg", "query": "?"} for id_ in ids]))
    assert [query.id for query in read_queries(path)[0]] == ids


def test_the_line_is_named(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text('{"id": 1, "image": "1.jpg", "query": "?"}\n\n{"id": 2,}\n')
    with pytest.raises(ActivationsError, match=r"line 3 of the query file .*q\.jsonl is not JSON"):
        read_queries(path)
