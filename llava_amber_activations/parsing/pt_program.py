"""What a pickle of `torch.save` asks for, found out without doing it.

A `.pt` file describes its tensors by a pickle: which storages there are, and which tensor is which
part of one. `torch.load(weights_only=True)` runs no code of the file, but believes its sizes: a
tensor of a kilobyte may claim to be 16 TB, a sparse one is checked value by value, and an old file
without its storages gives memory that nobody wrote. Here the pickle's instructions, decoded by
`pickletools`, are followed on stand-ins, and anything that plain dense tensors in lists and dicts
do not need is refused.

The pickle of one tensor (protocol 2, as `torch.save` writes it):

    _rebuild_tensor_v2(<storage (type, key, device, values)>, offset, size, stride, …)
"""

from __future__ import annotations

import math
import pickletools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from llava_amber_activations.errors import ActivationsError

MOST_BYTES = 1 << 20
_MOST_DIMENSIONS = 64
_CLAIMED_TIMES = 4

_ITEM_BYTES = {
    "HalfStorage": 2,
    "BFloat16Storage": 2,
    "FloatStorage": 4,
    "DoubleStorage": 8,
    "ComplexFloatStorage": 8,
    "ComplexDoubleStorage": 16,
    "BoolStorage": 1,
    "ByteStorage": 1,
    "CharStorage": 1,
    "ShortStorage": 2,
    "IntStorage": 4,
    "LongStorage": 8,
}
_STORAGES = {f"torch {name}": size for name, size in _ITEM_BYTES.items()}
_CALLED = {
    "collections OrderedDict",
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_tensor_v2",
    "torch Size",
    "torch device",
}
# Of torch's own, but not dense tensors of numbers as they are.
_OTHER_TENSORS = ("torch._utils _rebuild_", "torch._tensor _rebuild_", "torch Q", "torch.storage ")
_OTHER_TENSORS_ARE = "sparse, quantised, nested, without values, of a subclass or of a rare dtype"
_DTYPES = {f"torch {name}" for name in ("float16", "bfloat16", "float32", "float64", "int64")}


def refusal(path: Path, reason: str, is_code: bool = False) -> ActivationsError:
    """Return the error that a file is refused with.

    Args:
        reason: goes on after the file's name, or after `it`.
        is_code: whether the file asks for something that is not a tensor's.
    """
    if is_code:
        reason = (
            "holds more than tensors and was not loaded, because loading it could run code of "
            f"whoever wrote it (it {reason}): save plain tensors, lists and dicts"
        )
    return ActivationsError(f"{path} {reason}")


@dataclass(frozen=True)
class _Global:
    name: str


@dataclass(frozen=True)
class _Storage:
    key: str
    n_values: int
    item_bytes: int


class _Tensor:
    """A tensor whose claims were checked."""


class _Mapping:
    """A dict, whose contents are not needed."""


@dataclass
class Program:
    """What a pickle asks for.

    Attributes:
        path: of the file that it is in.
        value: its result, with stand-ins in the place of tensors and dicts.
        storages: bytes of each storage, by its key.
        claimed_bytes: of all tensors together.
    """

    path: Path
    value: Any = None
    storages: dict[str, int] = field(default_factory=dict)
    claimed_bytes: int = 0

    def storage(self, identity: Any) -> _Storage:
        """Return the storage that a persistent id names."""
        match identity:
            case ("storage", _Global(kind), str(key), str(), int(n_values), *rest) if (
                kind in _STORAGES and n_values >= 0 and not any(rest)
            ):
                storage = _Storage(key, n_values, _STORAGES[kind])
            case _:
                raise self.refusal("names a storage in a way that torch.save does not")
        n_bytes = storage.n_values * storage.item_bytes
        if self.storages.setdefault(storage.key, n_bytes) != n_bytes:
            raise self.refusal(f"gives its storage {storage.key} two sizes")
        return storage

    def call(self, function: Any, arguments: Any) -> Any:
        """Return what a call gives, where it is one that plain tensors need."""
        name = function.name if isinstance(function, _Global) else None
        match name, arguments:
            case "collections OrderedDict", ():
                return _Mapping()
            case "torch._utils _rebuild_parameter", (_Tensor() as tensor, bool(), _Mapping()):
                return tensor
            case "torch._utils _rebuild_tensor_v2", (
                _Storage() as storage,
                int(offset),
                tuple(size),
                tuple(stride),
                bool(),
                _Mapping() | None,
                *metadata,
            ) if all(isinstance(each, _Mapping) for each in metadata):
                return self._tensor(storage, offset, size, stride)
            case "torch Size", (tuple(size),) if len(size) <= _MOST_DIMENSIONS:
                return size
            case "torch device", (str(), *_):
                return None
        raise self.refusal("calls what plain tensors do not need", is_code=True)

    def _tensor(
        self, storage: _Storage, offset: int, size: tuple[Any, ...], stride: tuple[Any, ...]
    ) -> _Tensor:
        numbers = (offset, *size, *stride)
        if (
            len(size) != len(stride)
            or len(size) > _MOST_DIMENSIONS
            or not all(isinstance(number, int) and number >= 0 for number in numbers)
        ):
            raise self.refusal("has a tensor of impossible sizes or strides")
        n_values = math.prod(size)
        steps = zip(size, stride, strict=True)
        end = offset + 1 + sum((length - 1) * step for length, step in steps) if n_values else 0
        if n_values > storage.n_values:
            raise self.refusal(
                f"has an expanded tensor: {list(size)}, of which {storage.n_values} values are "
                "stored: save tensor.clone(memory_format=torch.contiguous_format)"
            )
        if end > storage.n_values:
            raise self.refusal(
                f"has a tensor that ends at value {end} of a storage of {storage.n_values}"
            )
        self.claimed_bytes += n_values * storage.item_bytes
        return _Tensor()

    def named(self, name: str) -> _Global:
        """Return what a global's name stands for, where plain tensors need it."""
        if name in _CALLED or name in _STORAGES or name in _DTYPES:
            return _Global(name)
        if name.startswith(_OTHER_TENSORS):
            raise self.refusal(
                f"has a tensor that is {_OTHER_TENSORS_ARE} ({name.rpartition(' ')[2]}): "
                "save dense tensors of float16, bfloat16 or float32"
            )
        raise self.refusal(f"asks for {name.replace(' ', '.')}", is_code=True)

    def check_keys(self, keys: list[Any]) -> None:
        """Check that keys of a dict are texts or numbers."""
        # A key is hashed: a tuple in a tuple in a tuple … would overflow the stack.
        if not all(isinstance(key, (str, int, float, type(None))) for key in keys):
            raise self.refusal("has a dict whose keys are neither texts nor numbers")

    def of_kind(self, value: Any, kind: type) -> Any:
        """Return a value, which is to be of a kind."""
        if not isinstance(value, kind):
            raise self.refusal("is not as torch.save writes it", is_code=True)
        return value

    def refusal(self, reason: str, is_code: bool = False) -> ActivationsError:
        """Return the error that the file is refused with."""
        return refusal(self.path, reason, is_code)


def read_program(file: BinaryIO, path: Path, file_bytes: int) -> Program:
    """Follow one pickle, and leave the file behind its end.

    Args:
        path: of the file, which the messages name.
        file_bytes: of the whole file, which bounds what its tensors may claim.

    Raises:
        ActivationsError: it asks for what plain tensors in lists and dicts do not need, or
            for more bytes than the file has.
        ValueError, IndexError, KeyError: it is damaged.
    """
    program = Program(path)
    start = file.tell()
    stack: list[Any] = []
    marked: list[list[Any]] = []
    memo: dict[int, Any] = {}
    for operation, argument, position in pickletools.genops(file):
        if (position or 0) - start > MOST_BYTES:
            raise program.refusal(f"describes its contents in more than {MOST_BYTES >> 20} MiB")
        match operation.name:
            case "PROTO":
                if argument != 2:
                    raise program.refusal(
                        f"is of pickle protocol {argument}: save it with torch.save's own, 2"
                    )
            case "MARK":
                marked.append(stack)
                stack = []
            case "TUPLE":
                stack, items = marked.pop(), stack
                stack.append(tuple(items))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                n_items = int(operation.name[-1])
                items = [stack.pop() for _ in range(n_items)]
                stack.append(tuple(reversed(items)))
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE":
                stack.append(argument)
            case "SHORT_BINSTRING" | "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(operation.name == "NEWTRUE")
            case "EMPTY_TUPLE":
                stack.append(())
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append(_Mapping())
            case "APPEND":
                item = stack.pop()
                program.of_kind(stack[-1], list).append(item)
            case "APPENDS":
                stack, items = marked.pop(), stack
                program.of_kind(stack[-1], list).extend(items)
            case "SETITEM":
                del stack[-1]
                program.check_keys([stack.pop()])
                program.of_kind(stack[-1], _Mapping)
            case "SETITEMS":
                stack, items = marked.pop(), stack
                program.check_keys(items[::2])
                program.of_kind(stack[-1], _Mapping)
            case "BUILD":
                program.of_kind(stack.pop(), _Mapping)
                program.of_kind(stack[-1], _Mapping)
            case "BINPUT" | "LONG_BINPUT":
                memo[int(argument or 0)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[int(argument or 0)])
            case "GLOBAL":
                stack.append(program.named(str(argument)))
            case "BINPERSID":
                stack.append(program.storage(stack.pop()))
            case "REDUCE":
                arguments = stack.pop()
                stack.append(program.call(stack.pop(), arguments))
            case "STOP":
                program.value = stack.pop()
            case _:
                raise program.refusal("is not as torch.save writes it", is_code=True)
    if program.claimed_bytes > _CLAIMED_TIMES * file_bytes:
        raise program.refusal(
            f"has tensors of {program.claimed_bytes} bytes together in a file of {file_bytes}: "
            "save each value once"
        )
    return program
