"""Where batches were left: what a saved state says, checked before anything goes on from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from llava_amber_activations.errors import ActivationsError

# Where it stands; everything else in a state says of which batches.
_POSITION = ("epoch", "rows_done", "epochs_done", "place")
_MOST_NUMBERS = 8


@dataclass(frozen=True)
class Position:
    """Where an iteration stands.

    Attributes:
        epoch: which order its rows come in.
        rows_done: of that epoch, by this process.
        epochs_done: by this iteration, before that one.
        place: numbers by which rows are found again that their count alone does not find; none
            where it does.
    """

    epoch: int
    rows_done: int = 0
    epochs_done: int = 0
    place: tuple[int, ...] = ()

    def after(self, n_rows: int, place: tuple[int, ...] = ()) -> Position:
        """Return where it stands so many rows later."""
        return replace(self, rows_done=self.rows_done + n_rows, place=place)

    def next_epoch(self) -> Position:
        """Return the beginning of the next epoch."""
        return Position(self.epoch + 1, 0, self.epochs_done + 1)

    def state(self) -> dict[str, Any]:
        """Return it as a saved state says it."""
        done = {"epochs_done": self.epochs_done} if self.epochs_done else {}
        place = {"place": list(self.place)} if self.place else {}
        return {"epoch": self.epoch, "rows_done": self.rows_done, **done, **place}


def check_state(state: object, ours: Mapping[str, Any], n_rows: int | None) -> Position:
    """Return where a saved state says that an iteration stood, if it was of batches such as ours.

    Args:
        state: what was saved.
        ours: a state of the batches that it is loaded into.
        n_rows: of their dataset, where it is known.

    Raises:
        ActivationsError: it is of other batches, of an older release, or no state at all; the
            message names every difference.
    """
    if not isinstance(state, Mapping):
        raise ActivationsError(
            f"a saved state is what state_dict returned, not a {type(state).__name__}"
        )
    if "dataset" not in state and "rows_done" in state:
        raise ActivationsError(
            "the saved state is of an older release, and does not say of which dataset: begin its "
            "epoch anew, with set_epoch"
        )
    different = [
        f"{key} ({ours.get(key)}, not {state.get(key)})"
        for key in dict.fromkeys([*ours, *state])
        if key not in _POSITION and not _same(ours.get(key), state.get(key))
    ]
    if different:
        raise ActivationsError(
            f"the saved state is of batches with another {', '.join(different)}: "
            "their order is not this one"
        )
    epochs_done = _count(state, "epochs_done") if "epochs_done" in state else 0
    epoch, rows_done = _count(state, "epoch"), _count(state, "rows_done")
    position = Position(epoch, rows_done, epochs_done, _place(state))
    if n_rows is not None and position.rows_done > n_rows:
        raise ActivationsError(
            f"the saved state says that {position.rows_done} rows are done (rows_done), and the "
            f"dataset has {n_rows}: it is not a state of these batches"
        )
    return position


def _same(mine: object, theirs: object) -> bool:
    return type(mine) is type(theirs) and mine == theirs


def _place(state: Mapping[str, Any]) -> tuple[int, ...]:
    place = state.get("place", [])
    if not isinstance(place, list) or len(place) > _MOST_NUMBERS:
        raise ActivationsError("the saved state is damaged: place is no list of a few numbers")
    return tuple(_count({"place": number}, "place") for number in place)


def _count(state: Mapping[str, Any], key: str) -> int:
    value = state.get(key)
    if type(value) is not int or not 0 <= value < 2**63:
        raise ActivationsError(
            f"the saved state is damaged: {key} is {value!r}, not a number of 0 or more"
        )
    return value
