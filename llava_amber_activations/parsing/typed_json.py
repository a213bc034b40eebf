"""JSON from elsewhere, parsed once, at the edge, into dataclasses whose values are of their types.

A dataclass's annotations say what a file must hold: `int` (no bool), `float`, `str`, `bool`,
`X | None`, `Literal[…]`, `tuple[X, ...]`, `dict[str, X]`, other dataclasses, and classes that read
a form of their own by `of_json`. What annotations cannot say, such as ranges, its `__post_init__`
checks. Keys that it has no field for are left aside: a newer minor version of a format adds some.
"""

from __future__ import annotations

import dataclasses
import json
import types
from collections import Counter
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from llava_amber_activations.errors import ActivationsError

_MOST_SHOWN = 40
_EXPECTED = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}

_T = TypeVar("_T")


def parse_json(text: str | bytes, where: object) -> Any:
    """Parse JSON (RFC 8259) strictly: no NaN, no key twice, no half of a surrogate pair.

    Raises:
        ActivationsError: `text` is not such JSON; the message names `where`.
    """
    try:
        if isinstance(text, bytes):
            # json.loads would let halves of surrogate pairs through.
            text = text.decode(json.detect_encoding(text))
        value = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_object)
        if "\\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ActivationsError(
            f"{where} is not JSON that can be read: it is nested too deeply"
        ) from None
    except ValueError as error:
        raise ActivationsError(
            f"{where} is not JSON ({_reason(error)}); it may be damaged"
        ) from None
    return value


def parse_json_lines(content: bytes, where: object) -> list[Any]:
    """Parse JSON-lines, a value each line, as `parse_json` does; empty lines are none.

    Raises:
        ActivationsError: a line is not JSON; the message names the line and `where`.
    """
    lines = enumerate(content.splitlines(), start=1)
    return [parse_json(line, f"line {number} of {where}") for number, line in lines if line.strip()]


def parse_json_object(text: str | bytes, where: object) -> dict[str, Any]:
    """Parse a JSON object, as `parse_json` does.

    Raises:
        ActivationsError: `text` is not JSON, or not an object; the message names `where`.
    """
    value = parse_json(text, where)
    if not isinstance(value, dict):
        raise ActivationsError(f"{where} holds a JSON {type(value).__name__}, not an object")
    return value


def read_object(kind: type[_T], value: Mapping[str, Any], where: object, what: str) -> _T:
    """Read a JSON object into the dataclass `kind`.

    Args:
        value: the parsed object.
        where: file that it is from.
        what: what the file should be, such as "a capture recipe".

    Raises:
        ActivationsError: a key is missing, or a value is not of its field's type or range; the
            message names the file, the key, what was found and what was expected.
    """
    found: _T = _read_dataclass(kind, value, f"{where} is not {what}", "")
    return found


def _read_dataclass(kind: Any, value: object, refused: str, key: str) -> Any:
    if not isinstance(value, dict):
        _refuse(refused, key, value, "an object")
    fields = [field for field in dataclasses.fields(kind) if field.init]
    missing = [field.name for field in fields if field.name not in value and _is_required(field)]
    if missing:
        holder = f"'{key}'" if key else "it"
        raise ActivationsError(f"{refused}: {holder} lacks {', '.join(missing)}")
    hints = _hints(kind)
    inner = f"{key}." if key else ""
    found = {
        field.name: _read(hints[field.name], value[field.name], refused, inner + field.name)
        for field in fields
        if field.name in value
    }
    try:
        return kind(**found)
    except ActivationsError as error:
        raise ActivationsError(f"{refused}: {f'in {key!r}, ' if key else ''}{error}") from None


def _read(type_: Any, value: Any, refused: str, key: str) -> Any:
    """Return a value as its type has it."""
    if type_ is Any:
        return value
    if type_ in _EXPECTED:
        allowed = (int, float) if type_ is float else (type_,)
        if type(value) not in allowed:
            _refuse(refused, key, value, _EXPECTED[type_])
        return value
    if hasattr(type_, "of_json"):
        try:
            return type_.of_json(value)
        except ActivationsError as error:
            raise ActivationsError(f"{refused}: {key!r} {error}") from None
    if dataclasses.is_dataclass(type_):
        return _read_dataclass(type_, value, refused, key)
    origin, args = get_origin(type_), get_args(type_)
    if origin in (Union, types.UnionType):
        if value is None and types.NoneType in args:
            return None
        (other,) = (arg for arg in args if arg is not types.NoneType)
        return _read(other, value, refused, key)
    if origin is Literal:
        if not any(type(value) is type(choice) and value == choice for choice in args):
            _refuse(refused, key, value, f"one of {', '.join(map(str, args))}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            _refuse(refused, key, value, "a list")
        # As `_read` would find, at a glance: a manifest holds hundreds of thousands of numbers.
        if args[0] is int and set(map(type, value)) <= {int}:
            return tuple(value)
        return tuple(
            _read(args[0], item, refused, f"{key}[{number}]") for number, item in enumerate(value)
        )
    if origin is dict:
        if not isinstance(value, dict):
            _refuse(refused, key, value, "an object")
        return {
            name: _read(args[1], item, refused, f"{key}.{_cut(name)}")
            for name, item in value.items()
        }
    raise TypeError(f"fields of the type {type_} are not read from JSON")


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _is_required(field: dataclasses.Field[Any]) -> bool:
    missing = dataclasses.MISSING
    return field.default is missing and field.default_factory is missing


def _refuse(refused: str, key: str, value: object, expected: str) -> NoReturn:
    found = {dict: "an object", list: "a list", bool: str(value).lower(), types.NoneType: "null"}
    shown = found.get(type(value)) or _cut(repr(value))
    raise ActivationsError(f"{refused}: '{key}' is {shown}, not {expected}")


def _cut(text: str) -> str:
    return text if len(text) <= _MOST_SHOWN else text[:_MOST_SHOWN] + "…"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"it has the key {_cut(twice)!r} twice")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _reason(error: ValueError) -> str:
    if isinstance(error, UnicodeEncodeError):
        return "it holds half of a surrogate pair, which is no character"
    return str(error)
