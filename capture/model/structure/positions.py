"""Whether a module computes each position's output from that position's input alone."""

from __future__ import annotations

from typing import Any

import torch

from capture.model.structure.calls import Call, first_tensor, output_tensor
from llava_amber_activations.errors import ActivationsError

# Largest relative error of a row that products of other shapes explain, at least; and in units.
_LEAST, _UNITS = 1e-2, 8
# Where rows are computed in another product, rounding may decide for another expert here and there.
_SHARE = 0.75


def is_alone_at_each_position(call: Call) -> bool:
    """Whether some positions' output stays as it is when the others' input is not there.

    That is what tells an MLP from an attention, a convolution or a recurrence. The module is run
    once more on a few positions, in reverse order. Where it gets other tensors besides, which may
    belong to positions, it is run on all of them, the others negated and in each other's place.

    Returns:
        False also where it cannot be run again, and where it gets what can remember, as a cache.
    """
    values = (*call.args, *call.kwargs.values())
    if call.places is None or call.at_places is None or not all(map(_is_plain, values)):
        return False
    try:
        given = first_tensor(call.args, call.kwargs)
        rows = given.reshape(-1, given.shape[-1])
        if len(rows) != int(call.places[0]) + 1:
            return False
        some = rows[call.places]
        with torch.no_grad():
            is_apart = _is_only_tensor(call, given)
            if is_apart:
                found = _run(call, given, some.reshape(*[1] * (given.ndim - 2), *some.shape))
            else:
                changed = -rows.roll(1, 0)
                changed[call.places] = some
                found = _run(call, given, changed.reshape(given.shape))[call.places]
    except (ActivationsError, RuntimeError, ValueError, TypeError, IndexError, AttributeError):
        return False
    expected = call.at_places.double()
    apart = (found.double() - expected).norm(dim=-1) / expected.norm(dim=-1).clamp_min(1e-30)
    allowed = max(_LEAST, _UNITS * torch.finfo(found.dtype).eps)
    return bool((apart <= allowed).double().mean() >= (_SHARE if is_apart else 1))


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, torch.Tensor | bool | int | float | str | tuple)


def _is_only_tensor(call: Call, given: torch.Tensor) -> bool:
    values: tuple[Any, ...] = (*call.args, *call.kwargs.values())
    return all(value is given or isinstance(value, bool | int | None) for value in values)


def _run(call: Call, given: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Run the module again with another first tensor; return [rows, width]."""
    # It is there once: as the first argument, or by its name.
    args = tuple(value if each is given else each for each in call.args)
    kwargs = {name: value if each is given else each for name, each in call.kwargs.items()}
    output = output_tensor(call.module(*args, **kwargs))
    return output.reshape(-1, output.shape[-1])
