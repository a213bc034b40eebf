"""What a layout of another trainer does, whichever it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import torch

Rows = Mapping[str, torch.Tensor]


class OpenChunk(Protocol):
    """The files of a chunk, open."""

    def write(self, at: int, rows: Rows) -> None:
        """Put some rows where they belong, from row `at` on: [n, H] by hook, int32 [n] numbers."""

    def kept(self) -> dict[str, torch.Tensor]:
        """Return what is kept of the chunk beside the numbers of its rows, when it is full."""


class Layout(Protocol):
    """A trainer's layout.

    Attributes:
        equal: whether its chunks must be of one size.
    """

    equal: bool

    @property
    def last(self) -> tuple[str, ...]:
        """The files that are written when all chunks are there, in this order."""

    def files(self, chunk: int, n_chunks: int) -> list[str]:
        """Return the names of a chunk's files."""

    def open(self, paths: Sequence[Path], n_rows: int) -> AbstractContextManager[OpenChunk]:
        """Open a chunk's files at other paths; they are whole when the block ends."""

    def last_contents(self, sizes: Sequence[int], kept: Iterator[Any]) -> Iterator[bytes]:
        """Yield the contents of the last files.

        Args:
            sizes: rows of each chunk.
            kept: of each chunk, what `OpenChunk.kept` returned.
        """

    def code(self, out: Path, n_rows: int) -> str:
        """Return lines of Python that train on the export."""
