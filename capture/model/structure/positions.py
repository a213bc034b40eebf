"""Whether a module computes each position's output from that position's input alone."""

from __future__ import annotations

import torch

from capture.model.structure.calls import Call, first_tensor, output_tensor
from llava_amber_activations.errors import ActivationsError

# Experts that get other rows sum in another order.
_UNITS = 8


def is_alone_at_each_position(call: Call) -> bool:
    """Whether the last position's output stays as it is when all others' input is another.

    That is what tells an MLP from an attention, a convolution or a recurrence. The module is run
    twice more: on what it was given, and on the same with all positions but the last negated.

    Returns:
        False also where it cannot be run again.
    """
    try:
        given = first_tensor(call.args, call.kwargs)
        rows = given.reshape(-1, given.shape[-1])
        changed = torch.cat([-rows[:-1], rows[-1:]]).reshape(given.shape)
        with torch.no_grad():
            expected, found = (_run(call, given, value) for value in (given, changed))
    except (ActivationsError, RuntimeError, ValueError, TypeError, IndexError, AttributeError):
        return False
    apart = (found[-1].double() - expected[-1].double()).norm()
    near = bool(apart <= _UNITS * torch.finfo(found.dtype).eps * expected[-1].double().norm())
    is_other = len(rows) < 2 or not torch.equal(found[:-1], expected[:-1])
    return near and is_other


def _run(call: Call, given: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Run the module again with another first tensor; return [rows, width]."""
    # It is there once: as the first argument, or by its name.
    args = tuple(value if each is given else each for each in call.args)
    kwargs = {name: value if each is given else each for name, each in call.kwargs.items()}
    output = output_tensor(call.module(*args, **kwargs))
    return output.reshape(-1, output.shape[-1])
