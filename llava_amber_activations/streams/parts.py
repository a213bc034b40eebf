"""Which of the rows are whose: the share of one worker process of one rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llava_amber_activations.errors import ActivationsError


@dataclass(frozen=True)
class Part:
    """One of the processes that share the rows of an epoch.

    Attributes:
        rank, world_size: which training process it reads for, of how many.
        worker, n_workers: which of that process's DataLoader workers it is; 0 of 1 without any.
    """

    rank: int = 0
    world_size: int = 1
    worker: int = 0
    n_workers: int = 1

    @property
    def n_parts(self) -> int:
        """How many processes share the rows."""
        return self.world_size * self.n_workers

    @property
    def number(self) -> int:
        """Which of them this one is."""
        return self.rank * self.n_workers + self.worker

    def rows(self, n_rows: int, batch_size: int, *, drop_last: bool) -> range:
        """Return this part's run of `n_rows` rows in an order: whole batches, but for the last.

        Ranks differ by a batch at most, and so do the workers of one. The last rows that fill no
        batch go to the last part, or with `drop_last` to nobody.
        """
        n_batches = n_rows // batch_size if drop_last else -(-n_rows // batch_size)
        first, stop = (n_batches * n // self.n_parts for n in (self.number, self.number + 1))
        return range(first * batch_size, min(stop * batch_size, n_rows))


def cut(counts: Sequence[int], rows: range) -> list[tuple[int, range]]:
    """Return which of several runs of rows hold `rows`, and which of its own rows each gives."""
    pieces = []
    first = 0
    for number, count in enumerate(counts):
        wanted = range(max(rows.start - first, 0), min(rows.stop - first, count))
        if wanted:
            pieces.append((number, wanted))
        first += count
    return pieces


def check_skip(skip: int, n_rows: int) -> None:
    """Check that a part has as many rows as a saved state says are done.

    Raises:
        ActivationsError: it has fewer.
    """
    if skip > n_rows:
        raise ActivationsError(
            f"the saved state says that {skip} rows are done (rows_done), and there are {n_rows}: "
            "it is not a state of these batches"
        )
