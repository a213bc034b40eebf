"""JSON from elsewhere: what is not as a dataclass says is refused in a sentence, whatever it is."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava_amber_activations import ActivationsError
from llava_amber_activations.parsing.typed_json import parse_json, parse_json_object, read_object


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "where is not JSON"),
        ("{'a': 1}", "where is not JSON"),
        ('{"a": 1} {', "where is not JSON"),
        (b"\x80\x81", "where is not JSON"),
        ("[1]", "where holds a JSON list, not an object"),
        ("3", "where holds a JSON int, not an object"),
        ("null", "where holds a JSON NoneType, not an object"),
        ("[" * 100_000, "where is not JSON that can be read: it is nested too deeply"),
        ('{"a":' * 100_000, "where is not JSON that can be read: it is nested too deeply"),
        ('{"a": NaN}', "where is not JSON .NaN is no JSON number"),
        ('{"a": -Infinity}', "where is not JSON .-Infinity is no JSON number"),
        ('{"a": ' + "9" * 5000 + "}", "where is not JSON .Exceeds the limit"),
        ('{"a": 1, "b": 2, "a": 3}', "where is not JSON .it has the key 'a' twice"),
        (r'{"a": "\ud83d"}', "where is not JSON .it holds half of a surrogate pair"),
        (r'{"\uDC00": 1}', "where is not JSON .it holds half of a surrogate pair"),
        (b'{"a": "\xed\xa0\x80"}', "where is not JSON"),
        (b'{"a": "\xe9"}', "where is not JSON"),
    ],
    ids=lambda value: str(value)[:12],
)
def test_what_is_no_json_object(text, said):
    with pytest.raises(ActivationsError, match=said):
        parse_json_object(text, "where")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32-be"])
def test_a_json_object(encoding):
    """Whatever encoding an editor chose, as json.loads takes it; whole surrogate pairs pass."""
    text = '{"a": [1], "b": "Où ?\u2028", "c": "' + r"\ud83d\ude00" + '"}'
    expected = {"a": [1], "b": "Où ?\u2028", "c": "\U0001f600"}
    assert parse_json_object(text.encode(encoding), "where") == expected
    assert parse_json("[1]", "where") == [1]


@given(st.binary(max_size=60))
def test_any_bytes(content):
    """A value that can be written out again, or the one exception."""
    try:
        value = parse_json(content, "where")
    except ActivationsError as error:
        assert str(error).startswith("where is not JSON")
    else:
        json.dumps(value, allow_nan=True, ensure_ascii=False).encode()


@dataclass(frozen=True)
class Inner:
    n: int

    def __post_init__(self) -> None:
        if self.n < 0:
            raise ActivationsError(f"n must not be negative, got {self.n}")


@dataclass(frozen=True)
class Own:
    """What is written as a number, and held as that many letters."""

    letters: str

    @classmethod
    def of_json(cls, value: object) -> Own:
        if type(value) is not int:
            raise ActivationsError("is no number of letters")
        return cls("a" * value)


@dataclass(frozen=True)
class Outer:
    count: int
    name: str
    share: float
    sure: bool
    kind: Literal["a", "b"]
    inner: Inner
    names: tuple[str, ...] = ()
    inners: dict[str, Inner] | None = None
    most: int | None = None
    own: Own | None = None


RIGHT = {
    **{"count": 1, "name": "n", "share": 1, "sure": True, "kind": "a", "inner": {"n": 0}},
    **{"names": ["x"], "inners": {"y": {"n": 2}}, "most": None},
}


def test_what_is_right():
    found = read_object(Outer, {**RIGHT, "added": [1]}, "F", "an outer")
    assert found == Outer(1, "n", 1.0, True, "a", Inner(0), ("x",), {"y": Inner(2)}, None)
    assert read_object(Outer, {**RIGHT, "own": 3}, "F", "an outer").own == Own("aaa")
    assert read_object(Outer, {**RIGHT, "inners": None, "most": 3}, "F", "an outer").most == 3


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("count", True, "'count' is true, not a whole number"),
        ("count", 1.0, "'count' is 1.0, not a whole number"),
        ("count", "1", "'count' is '1', not a whole number"),
        ("count", None, "'count' is null, not a whole number"),
        ("name", ["n"], "'name' is a list, not text"),
        ("share", "1", "'share' is '1', not a number"),
        ("share", False, "'share' is false, not a number"),
        ("sure", 1, "'sure' is 1, not true or false"),
        ("kind", "c", "'kind' is 'c', not one of a, b"),
        ("inner", [], "'inner' is a list, not an object"),
        ("inner", {}, "'inner' lacks n"),
        ("inner", {"n": -1}, "in 'inner', n must not be negative, got -1"),
        ("names", "x", "'names' is 'x', not a list"),
        ("names", ["x", 3], "'names[1]' is 3, not text"),
        ("inners", [], "'inners' is a list, not an object"),
        ("inners", {"y": {"n": "z" * 99}}, "'inners.y.n' is 'zzz"),
        ("own", "a", "'own' is no number of letters"),
        ("most", {}, "'most' is an object, not a whole number"),
    ],
)
def test_what_is_wrong(key: str, value: Any, said: str):
    """File, key, what was found, what was expected; however long what was found is."""
    with pytest.raises(ActivationsError) as refused:
        read_object(Outer, {**RIGHT, key: value}, "F", "an outer")
    assert str(refused.value).startswith(f"F is not an outer: {said}")
    assert len(str(refused.value)) < 120


def test_keys_that_are_missing():
    value = {key: RIGHT[key] for key in RIGHT if key not in ("count", "sure")}
    with pytest.raises(ActivationsError, match=r"F is not an outer: it lacks count, sure$"):
        read_object(Outer, value, "F", "an outer")
