"""Shards written side by side, row after row, so that what they are made from is read once."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path

from builder.contents.parts import OpenParts, PartedContents
from builder.shards.tasks import ShardTask, plan_outliers, schema_of
from builder.shards.vector_moments import VectorMoments
from builder.shards.write import Joined, n_threads, write_shard
from llava_amber_activations.console.progress import Progress
from llava_amber_activations.formats.dataset_folder import FileEntry


def write_side_by_side(
    folder: Path,
    contents: PartedContents,
    tasks: Sequence[ShardTask],
    num_proc: int,
    label: str,
) -> tuple[dict[str, FileEntry], dict[str, VectorMoments]]:
    """Write shards of splits that advance together: a part is opened once, and serves all of them.

    The next part is opened while rows of the one before it are written.

    Args:
        tasks: the shards of each split one after the other, in the order of their rows.
        num_proc: shards written at once, or more, by threads.

    Returns:
        As `write_shards`, and the same files.
    """
    parts = OpenParts(contents)
    splits = [
        _Split(folder, parts, list(shards))
        for _, shards in groupby(tasks, key=lambda task: (task.config, task.layer))
    ]
    with ExitStack() as stack:
        # Last, when no thread writes any more.
        for split in splits:
            stack.callback(split.close)
        progress = stack.enter_context(Progress(label, total=parts.starts[-1], unit="row"))
        pool = stack.enter_context(ThreadPoolExecutor(n_threads(num_proc)))
        opener = stack.enter_context(ThreadPoolExecutor(1))
        opening = opener.submit(contents.open_part, 0)
        for number in range(len(parts.starts) - 1):
            parts.add(number, opening.result())
            if number + 2 < len(parts.starts):
                opening = opener.submit(contents.open_part, number + 1)
            stop = parts.starts[number + 1]
            for writing in [pool.submit(s.advance, stop) for s in splits if s.can_advance(stop)]:
                writing.result()
            parts.close_before(min((s.wanted.start for s in splits if s.wanted), default=stop))
            progress.update(stop - parts.starts[number])
    entries: dict[str, FileEntry] = {}
    moments: dict[str, VectorMoments] = {}
    for split in splits:
        entries |= split.joined.entries
        # Those of one split: of all layers.
        moments |= split.joined.moments
    again = plan_outliers(tasks, moments)
    if again:
        moments |= write_side_by_side(folder, contents, again, num_proc, "outliers")[1]
    return entries, moments


class _Split:
    """The shards of one split, written one after the other as far as their rows can be read.

    Attributes:
        wanted: rows of the next row group; None where all is written.
        joined: what the shards gave that are written.
    """

    def __init__(self, folder: Path, parts: OpenParts, tasks: Sequence[ShardTask]) -> None:
        self.wanted: range | None = range(0)
        self.joined = Joined()
        self._writing = self._write(folder, parts, tasks)

    def _write(
        self, folder: Path, parts: OpenParts, tasks: Sequence[ShardTask]
    ) -> Generator[range, None, None]:
        for task in tasks:
            schema = schema_of(parts, task)
            self.joined.add(task, (yield from write_shard(folder, parts, task, schema)))

    def can_advance(self, stop: int) -> bool:
        """Whether there is something to write where rows up to `stop` can be read."""
        return self.wanted is not None and self.wanted.stop <= stop

    def advance(self, stop: int) -> None:
        """Write the row groups of which all rows can be read, those up to `stop`."""
        while self.can_advance(stop):
            self.wanted = next(self._writing, None)

    def close(self) -> None:
        """Leave a shard that is not whole, and its file."""
        self._writing.close()
