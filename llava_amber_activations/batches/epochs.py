"""Which epoch an iteration is, the same in every worker process of a loader.

A loader's workers are forked, or get a copy; they may live through many epochs or one; one may
begin late, or never. What they share is a small table in memory, in which every process writes
only rows of its own: who sets the epoch the first, who iterates without workers the second, and
worker w row 2 + w. An iteration that a worker finds in nobody's row follows the last one that is
there, so that two that begin it at once find the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import get_worker_info

from llava_amber_activations.errors import ActivationsError

# Rows' columns. A key names an iteration of one loader; 0 is none.
_KEY, _NUMBER, _GENERATION, _EPOCH = range(4)
_SET, _HERE, _FIRST_WORKER = range(3)
_MOST_WORKERS = 1024


class Epochs:
    """Counts the epochs of one object's iterations, wherever they happen.

    torch's multiprocessing hands the table itself to other processes; a plain pickle and a deep
    copy make another one, which goes on from here by itself.

    Raises:
        ActivationsError: there is no shared memory for it.
    """

    def __init__(self) -> None:
        self._shared = torch.zeros((_FIRST_WORKER + _MOST_WORKERS, 4), dtype=torch.int64)
        _share(self._shared)
        self._begun = 0

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if not self._shared.is_shared():
            _share(self._shared)

    def set(self, epoch: int) -> None:
        """Have the next iteration that begins be of `epoch`, and those after it follow."""
        row = self._rows[_SET]
        row[_EPOCH] = epoch
        row[_GENERATION] += 1

    @property
    def next(self) -> int:
        """The epoch of the next iteration."""
        return self._following(self._rows.copy())

    @property
    def last_was_in_workers(self) -> bool:
        """Whether the latest iteration was in worker processes."""
        numbers = self._rows[_HERE:, _NUMBER]
        return bool(numbers[_FIRST_WORKER - _HERE :].max() > numbers[0])

    def begin(self, resumed: int | None = None) -> int:
        """Begin an iteration in this process; return its epoch.

        Args:
            resumed: the epoch of the saved state that it goes on from, where there is one.
        """
        self._begun += 1
        info = get_worker_info()
        if info is None:
            key, own = self._begun, _HERE
        else:
            # The seed is the loader iterator's and the worker's number; what a worker has begun
            # before tells the epochs of a persistent one apart.
            key = ((info.seed - info.id) * 1_000_003 + self._begun) % 2**62 + 2**62
            own = _FIRST_WORKER + info.id
            if info.id >= _MOST_WORKERS:
                raise ActivationsError(
                    f"batches can be read by {_MOST_WORKERS} workers, not {info.num_workers}"
                )
        rows = self._rows.copy()
        of_siblings = rows[rows[:, _KEY] == key]
        if rows[own, _KEY] == key:
            # A generator was seeded alike for two iterations.
            of_siblings = of_siblings[of_siblings[:, _NUMBER] > rows[own, _NUMBER]]
        if len(of_siblings):
            _, number, generation, epoch = of_siblings[of_siblings[:, _NUMBER].argmax()].tolist()
        else:
            number = int(rows[:, _NUMBER].max()) + 1
            generation = int(rows[_SET, _GENERATION])
            epoch = self._following(rows)
        epoch = epoch if resumed is None else resumed
        row = self._rows[own]
        row[_KEY] = 0
        row[_NUMBER:] = number, generation, epoch
        row[_KEY] = key
        return int(epoch)

    def advance(self, epoch: int) -> None:
        """Say that the iteration that this process has begun has come to a later epoch."""
        info = get_worker_info()
        self._rows[_HERE if info is None else _FIRST_WORKER + info.id, _EPOCH] = epoch

    @staticmethod
    def _following(rows: npt.NDArray[np.int64]) -> int:
        last = rows[_HERE + rows[_HERE:, _NUMBER].argmax()]
        given = rows[_SET]
        if not last[_NUMBER] or last[_GENERATION] < given[_GENERATION]:
            return int(given[_EPOCH])
        return int(last[_EPOCH]) + 1

    @property
    def _rows(self) -> npt.NDArray[np.int64]:
        rows: npt.NDArray[np.int64] = self._shared.numpy()
        return rows


def _share(table: torch.Tensor) -> None:
    """Move a table into memory that processes forked from this one have, too."""
    try:
        table.share_memory_()
    except (RuntimeError, OSError) as error:
        raise ActivationsError(
            f"batches need {table.nbytes} bytes of shared memory, and the system gives none "
            f"({error}): make room in /dev/shm, or raise `ulimit -f`, and try again"
        ) from error
