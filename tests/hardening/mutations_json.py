"""Damage to JSON: values of other types, keys twice or missing, paths that lead out, encodings.

Values are given as the raw text that stands in the file, since JSON text can hold what no JSON
library writes: the same key twice, NaN, ten thousand brackets.
"""

from __future__ import annotations

import json
import random
from typing import Any

_MARK = "@@here@@"
HOSTILE = (
    *("null", "true", "false", "0", "-1", "1", "2", "7", "1.5", "-0.0", "1e400", "NaN"),
    *("Infinity", "-Infinity", "2147483648", "9223372036854775808", "1" + "0" * 30),
    *("@digits 5000", '""', '"x"', '"1"', '"-1"', '"L0"', '"float64"', '"int8"', '"../../etc"'),
    *('"/etc/passwd"', '"C:\\\\x"', '"a\\u0000b"', '"\\ud800"', '"\\udcff x"', '"é\\u2028"'),
    *('"2.0"', '"1"', '"0.9"', '"1.99"', '"@long 100000"', "[]", "{}", "[[]]", "[null]"),
    *('{"x": 1}', "[1, 2, 3]", "@deep 200", "@deep 100000", '"<image>"', '"\\n\\n"'),
)


def expanded(text: str) -> str:
    """Write out what is too long to write down."""
    bare = text.strip('"')
    if not bare.startswith("@"):
        return text
    name, _, number = bare.partition(" ")
    n = int(number)
    return {"@digits": "9" * n, "@long": '"' + "x" * n + '"', "@deep": "[" * n + "]" * n}[name]


def _paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the way to every value in a JSON value, itself first."""
    found = [at]
    items = value.items() if isinstance(value, dict) else []
    items = enumerate(value) if isinstance(value, list) else items
    for key, item in items:
        found += _paths(item, (*at, key))
    return found


def draw_change(value: Any, rng: random.Random) -> dict[str, Any]:
    """Draw a change of a parsed JSON value."""
    path = rng.choice(_paths(value))
    change = rng.choice(("put", "put", "put", "put", "drop", "twice", "rename", "add", "near"))
    if change == "near":
        return {"path": list(path), "text": _near(_at(value, path), rng), "change": "put"}
    return {"path": list(path), "text": rng.choice(HOSTILE), "change": change}


def _near(value: Any, rng: random.Random) -> str:
    """Return a value of the same type that is not far from this one."""
    if isinstance(value, bool) or value is None:
        return json.dumps(not value)
    if isinstance(value, (int, float)):
        return json.dumps(rng.choice((value + 1, value - 1, 2 * value, -value)))
    if isinstance(value, str):
        at = rng.randrange(len(value) + 1)
        return json.dumps(rng.choice((value[:at], value[:at] + "0" + value[at:], value.upper())))
    if isinstance(value, list):
        return json.dumps(rng.choice((value[1:], value + value, value[::-1])))
    keys = list(value)
    rng.shuffle(keys)
    return json.dumps({key: value[key] for key in keys[: len(keys) // 2]})


def changed(value: Any, path: list[Any], change: str, text: str, indent: int | None) -> str:
    """Return the text of a JSON value with one change, the rest as this project writes it."""
    value = json.loads(json.dumps(value))
    raw = expanded(text)
    if not path:
        return raw
    *way, last = path
    holder = _at(value, tuple(way))
    is_object = isinstance(holder, dict)
    mark = _MARK
    if change == "drop":
        del holder[last]
    elif change == "rename" and is_object:
        holder[str(text)[:40]] = holder.pop(last)
    elif change == "add" or (change == "twice" and not is_object):
        if is_object:
            holder["new key"] = mark
        else:
            holder.insert(last, mark)
    elif change == "twice":
        # The second of two equal keys wins in most parsers.
        raw = f"{json.dumps(holder[last])}, {json.dumps(last)}: {raw}"
        holder[last] = mark
    else:
        holder[last] = mark
    return json.dumps(value, indent=indent, ensure_ascii=False).replace(json.dumps(mark), raw)


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _apply_json(content: bytes, path: list[Any], change: str, text: str) -> bytes:
    return _encode(changed(json.loads(content), path, change, text, 2) + "\n")


def _draw_line(content: bytes, rng: random.Random) -> dict[str, Any]:
    lines = content.splitlines()
    number = rng.randrange(len(lines))
    return {"number": number, **draw_change(json.loads(lines[number]), rng)}


def _apply_line(content: bytes, number: int, path: list[Any], change: str, text: str) -> bytes:
    lines = content.splitlines()
    lines[number] = _encode(changed(json.loads(lines[number]), path, change, text, None))
    return b"\n".join(lines) + b"\n"


_TEXTS = {
    "bom": lambda content: b"\xef\xbb\xbf" + content,
    "utf16": lambda content: content.decode().encode("utf-16"),
    "utf32": lambda content: content.decode().encode("utf-32"),
    "latin1": lambda content: content.replace(b"a", b"\xe9", 1),
    "crlf": lambda content: content.replace(b"\n", b"\r\n"),
    "cr": lambda content: content.replace(b"\n", b"\r"),
    "trailing": lambda content: content + b"}",
    "nul": lambda content: content + bytes(16),
    "spaces": lambda content: b"  " + content + b"\n \n",
    "comment": lambda content: b"// of this project\n" + content,
    "deep": lambda content: b"[" * 100_000 + content,
    "deep object": lambda content: b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "quotes": lambda content: content.replace(b'"', b"'"),
    "comma": lambda content: content.rstrip()[:-1] + b"," + content.rstrip()[-1:],
    "surrogate": lambda content: content.replace(b"e", b"\\ud83d", 1),
    "surrogate bytes": lambda content: content.replace(b"e", b"\xed\xa0\x80", 1),
}


def _lines(content: bytes, how: str, first: int, second: int) -> bytes:
    lines = content.splitlines(keepends=True)
    if how == "drop":
        del lines[first]
    elif how == "twice":
        lines.insert(second, lines[first])
    elif how == "blank":
        lines.insert(first, b"\n")
    elif how == "cut":
        lines[first] = lines[first][: len(lines[first]) // 2] + b"\n"
    else:
        lines[first], lines[second] = lines[second], lines[first]
    return b"".join(lines)


def _draw_lines(content: bytes, rng: random.Random) -> dict[str, Any]:
    n = len(content.splitlines())
    how = rng.choice(("drop", "twice", "blank", "cut", "swap"))
    return {"how": how, "first": rng.randrange(n), "second": rng.randrange(n)}


def _path_line(content: bytes, number: int, path: str) -> bytes:
    lines = content.splitlines()
    lines[number] = lines[number].split()[0] + b"  " + path.encode("utf-8", "surrogateescape")
    return b"\n".join(lines) + b"\n"


_LED_OUT = ("../../etc/passwd", "/etc/passwd", "..", "", ".", "a\x00b", "\udcff", "x" * 5000)

OPERATIONS = {
    "json": (lambda content, rng: draw_change(json.loads(content), rng), _apply_json),
    "json_line": (_draw_line, _apply_line),
    "text": (
        lambda content, rng: {"how": rng.choice(list(_TEXTS))},
        lambda content, how: _TEXTS[how](content),
    ),
    "line": (_draw_lines, _lines),
    "path": (
        lambda content, rng: {
            "number": rng.randrange(len(content.splitlines())),
            "path": rng.choice(_LED_OUT),
        },
        _path_line,
    ),
}
