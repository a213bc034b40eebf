"""The forms that a query file may have."""

import json

import pytest

from capture.queries import Query, read_queries
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
