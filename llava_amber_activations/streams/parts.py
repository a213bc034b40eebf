"""Which of the rows are whose: the share of one worker process of one rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

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

    def batches(
        self, n_rows: int, batch_size: int, *, drop_last: bool, in_turn: bool = False
    ) -> list[range]:
        """Return this part's batches of `n_rows` rows in an order, as runs of those rows.

        Each rank has one run of the rows, of n // W or one row more, and all ranks have the same
        number of batches: where a rank's rows would fill one batch fewer than another's, its last
        two batches share them (of batches of one row, the last one may have two). With `drop_last`
        ranks have only full batches, the same number each, and the rows behind them are nobody's.

        Args:
            in_turn: a rank's batches are dealt out to its workers in turn, so that a loader, which
                asks its workers in turn, gives them in order. Otherwise each worker has a run.

        Raises:
            ActivationsError: there are fewer rows than ranks.
        """
        bounds = self._bounds(n_rows, batch_size, drop_last=drop_last)
        runs = [range(start, stop) for start, stop in pairwise(bounds)]
        if in_turn:
            return runs[self.worker :: self.n_workers]
        first, stop = (
            len(runs) * worker // self.n_workers for worker in (self.worker, self.worker + 1)
        )
        return runs[first:stop]

    def rows(self, n_rows: int, batch_size: int, *, drop_last: bool) -> range:
        """Return the rows of this part's batches, which are one run.

        Raises:
            ActivationsError: there are fewer rows than ranks.
        """
        if self.n_parts == 1:
            # No list as long as what a manifest claims, of which nothing has been read yet.
            return range(n_rows // batch_size * batch_size if drop_last else n_rows)
        batches = self.batches(n_rows, batch_size, drop_last=drop_last)
        return range(batches[0].start, batches[-1].stop) if batches else range(0)

    def _bounds(self, n_rows: int, batch_size: int, *, drop_last: bool) -> list[int]:
        """Return where this rank's batches begin, and where the last one ends."""
        world = self.world_size
        if drop_last:
            rows = n_rows // (batch_size * world) * batch_size
            return list(range(self.rank * rows, (self.rank + 1) * rows + 1, batch_size))
        if 0 < n_rows < world:
            raise ActivationsError(
                f"{n_rows} rows cannot be shared by {world} ranks, each of which needs one"
            )
        start, stop = (n_rows * rank // world for rank in (self.rank, self.rank + 1))
        longest = n_rows // world if batch_size == 1 else -(-n_rows // world)
        bounds = list(range(start, start + longest, batch_size))
        if bounds and bounds[-1] == stop:
            bounds[-1] -= 1
        return [*bounds, stop]


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
