"""Which rows are wanted, by the columns that say what a row is; and finding them in shards."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.formats.arrow_vectors import numbers_in
from llava_amber_activations.formats.columns import (
    FLOATS,
    KIND,
    KINDS,
    POSITION,
    ROW_COLUMNS,
    SAMPLE,
    STRINGS,
)
from llava_amber_activations.reading.layer_rows import read_columns
from llava_amber_activations.reading.read_ahead import RowGroup, Shards, read_in_order
from llava_amber_activations.sources.shard_file import ShardFile
from llava_amber_activations.vectors.held_rows import RowNumbers

# What a caller may give for a column: one value, or several.
Wanted = int | str | Iterable[int] | Iterable[str]

_MOST_VALUES_NAMED = 8


@dataclass(frozen=True)
class RowChoice:
    """What wanted rows have in common.

    Attributes:
        values: of each column that is asked about, the values that a wanted row may have, sorted.
        skip_first: leave out position 0 of each sample.
    """

    values: tuple[tuple[str, tuple[int, ...] | tuple[str, ...]], ...]
    skip_first: bool = False

    @property
    def columns(self) -> list[str]:
        """The columns that decide."""
        names = [name for name, _ in self.values]
        return [*names, POSITION] if self.skip_first and POSITION not in names else names

    def __str__(self) -> str:
        """Say it in a line, which is the same for the same choice alone."""
        said = [f"{name} in {_said(values)}" for name, values in self.values]
        return " and ".join([*said, f"{POSITION} not 0"] if self.skip_first else said)

    def rows_of(self, table: pa.Table) -> npt.NDArray[np.bool_]:
        """Return of each row of a table with these columns whether it is wanted: bool [rows]."""
        wanted = np.ones(len(table), np.bool_)
        for name, values in self.values:
            if name in STRINGS:
                among = set(values)
                met = [value in among for value in table[name].to_pylist()]
                wanted &= np.array(met, np.bool_)
            else:
                wanted &= np.isin(numbers_in(table[name]), values)
        if self.skip_first:
            wanted &= numbers_in(table[POSITION]) != 0
        return wanted

    def may_hold(self, footer: pq.FileMetaData, group: int) -> bool:
        """Whether a row group may hold a wanted row, by the minima and maxima in its footer."""
        metadata = footer.row_group(group)
        first = range(min(len(ROW_COLUMNS), footer.num_columns))
        numbers = {footer.schema.column(n).path: n for n in first}
        for name, values in self.values:
            number = numbers.get(name)
            statistics = None if number is None else metadata.column(number).statistics
            if statistics is None or not statistics.has_min_max:
                continue
            if not any(statistics.min <= value <= statistics.max for value in values):
                return False
        return True


@dataclass(frozen=True, eq=False)
class ChosenRows:
    """The wanted rows of one row group.

    Attributes:
        url, group: of which shard, which of its row groups.
        rows: int64, their numbers in it, ascending; at least one.
    """

    url: str
    group: int
    rows: RowNumbers = field(repr=False)


def row_choice(
    where: Mapping[str, Wanted] | None = None,
    samples: Iterable[int] | None = None,
    positions: Iterable[int] | None = None,
    *,
    skip_first: bool = False,
) -> RowChoice | None:
    """Return what a caller has asked for; None where all rows are wanted.

    Args:
        where: by the name of a column, the value or the values that a row may have.
        samples: the same of `sample`.
        positions: the same of `position`.
        skip_first: leave out position 0 of each sample.

    Raises:
        ActivationsError: there is no such column, a value is not of its type, or a column is asked
            about twice, or with no value at all.
    """
    asked: dict[str, Wanted] = dict(where or {})
    for name, argument, wanted in (
        (SAMPLE, "samples", samples),
        (POSITION, "positions", positions),
    ):
        if wanted is None:
            continue
        if name in asked:
            raise ActivationsError(f"give {argument}= or where={{'{name}': …}}, not both")
        asked[name] = wanted
    values = tuple((name, _values(name, asked[name])) for name in sorted(asked))
    return RowChoice(values, skip_first) if values or skip_first else None


def choose_rows(
    shards: Shards, pieces: Iterable[tuple[RowGroup, Sequence[int] | RowNumbers]], choice: RowChoice
) -> tuple[tuple[ChosenRows, ...], int]:
    """Find the wanted rows among those of some row groups.

    Of row groups that the footers do not exclude, the columns that decide are read, and nothing
    else.

    Returns:
        The row groups that hold a wanted row, and of how many rows altogether they were chosen.

    Raises:
        ActivationsError: no row is wanted, or a shard is damaged.
    """
    n_rows = 0
    asked: list[tuple[RowGroup, RowNumbers]] = []

    def groups() -> Iterator[RowGroup]:
        nonlocal n_rows
        for group, rows in pieces:
            n_rows += len(rows)
            if choice.may_hold(shards.footer(group.url), group.number):
                asked.append((group, np.array(rows, dtype=np.int64)))
                yield group

    def read(file: ShardFile, group: int) -> npt.NDArray[np.bool_]:
        missing = [name for name in choice.columns if name not in file.schema.names]
        if missing:
            raise ActivationsError(
                f"the rows of {file.url} have no column {missing[0]} to be chosen by"
            )
        return choice.rows_of(read_columns(file, group, choice.columns))

    chosen = []
    for number, wanted in enumerate(read_in_order(shards, groups(), read)):
        group, rows = asked[number]
        rows = rows[wanted[rows]]
        if len(rows):
            chosen.append(ChosenRows(group.url, group.number, rows))
    if not chosen:
        raise no_row(choice, n_rows)
    return tuple(chosen), n_rows


def chosen_in(table: pa.Table, choice: RowChoice) -> npt.NDArray[np.bool_]:
    """Return of each row of a table of `datasets` whether it is wanted: bool [rows].

    Raises:
        ActivationsError: it has lost a column that decides.
    """
    missing = [name for name in choice.columns if name not in table.column_names]
    if missing:
        raise ActivationsError(
            f"the dataset has no column {missing[0]} by which its rows could be chosen: choose "
            "before the column is left out"
        )
    return choice.rows_of(table)


def no_row(choice: RowChoice, n_rows: int) -> ActivationsError:
    """Return the error of a choice that no row meets."""
    return ActivationsError(f"none of the {n_rows} rows is one with {choice}: ask for others")


def _values(name: str, wanted: Wanted) -> tuple[int, ...] | tuple[str, ...]:
    """Return the values that are asked of a column, sorted.

    Raises:
        ActivationsError: there is no such column, or they are not its values.
    """
    known = [column for column in ROW_COLUMNS if column not in FLOATS]
    if name in FLOATS:
        raise ActivationsError(
            f"rows cannot be chosen by {name!r}, of which each has a value of its own: they can by "
            f"{', '.join(known)}"
        )
    if name not in known:
        raise ActivationsError(
            f"rows have no column {name!r} to be chosen by: they have {', '.join(known)}"
        )
    given = [wanted] if isinstance(wanted, int | str) else list(wanted)
    if not given:
        raise ActivationsError(f"no value of {name} is asked for, so that no row can be wanted")
    if name in STRINGS:
        texts = sorted({value for value in given if isinstance(value, str)})
        if name == KIND and (unknown := [text for text in texts if text not in (*KINDS, "")]):
            raise ActivationsError(
                f"there is no kind {unknown[0]!r}: kinds are {', '.join(KINDS)}, and '' where it "
                "is not known"
            )
        if all(isinstance(value, str) for value in given):
            return tuple(texts)
    else:
        numbers = [int(value) for value in given if _is_whole(value)]
        if len(numbers) == len(given):
            return tuple(sorted(set(numbers)))
    what = "texts" if name in STRINGS else "whole numbers"
    raise ActivationsError(f"values of {name} are {what}, and {given[0]!r} was asked for")


def _is_whole(value: object) -> TypeGuard[int | np.integer[Any]]:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        return False
    return -(2**31) <= int(value) < 2**31


def _said(values: Sequence[int] | Sequence[str]) -> str:
    if len(values) <= _MOST_VALUES_NAMED:
        return f"({', '.join(map(repr, values))})"
    digest = hashlib.sha256(repr(values).encode()).hexdigest()[:16]
    return f"{len(values)} values ({values[0]!r} to {values[-1]!r}; {digest})"
