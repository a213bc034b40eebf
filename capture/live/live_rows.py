"""The rows of a running model in batches: chunk after chunk of its samples, in order or mixed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch.utils.data import get_worker_info

from capture.live.chunk_rows import ChunkRows, RowFilter, Tensors, keep_wanted
from capture.live.delivery import deliver
from capture.live.live_model import LiveModel
from capture.live.wanted import WantedVectors
from capture.live.windows import (
    FIRST_WINDOW_ROWS,
    Place,
    Window,
    mixed_windows,
    permutation,
    windows_in_order,
)
from capture.passes.preparation import PlannedBatch
from capture.pipeline import run_chunks
from llava_amber_activations.batches.gathered import BatchOrder, RowSource
from llava_amber_activations.batches.loader_state import Position
from llava_amber_activations.console.sizes import readable_size
from llava_amber_activations.console.verbosity import note
from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.formats.columns import ID, IMAGE, SAMPLE, SOURCE
from llava_amber_activations.store.layout import recipe_chunks
from llava_amber_activations.streams.parts import Part
from llava_amber_activations.streams.row_choice import RowChoice
from llava_amber_activations.vectors.batch import Batch


@dataclass(frozen=True)
class LiveSource(RowSource):
    """A model that runs, and which vectors of its rows are wanted.

    Attributes:
        live: the model.
        wanted: the vectors of a batch.
        columns: whether a batch says which rows it holds.
    """

    live: LiveModel
    wanted: WantedVectors
    columns: bool

    def batched(
        self,
        order: BatchOrder,
        choice: RowChoice | None,
        dtype: torch.dtype | None,
        device: torch.device | None,
        *,
        pin_memory: bool,
    ) -> LiveRows:
        """Return its rows in batches.

        Raises:
            ActivationsError: no sample has a row that is wanted, `mix_rows` is less than two
                batches, or memory is to be pinned of what is on another device.
        """
        rows = LiveRows(self, order, choice, dtype, device)
        there = device or self.live.device
        if pin_memory and there.type != "cpu":
            raise ActivationsError(
                f"pin_memory=True is for batches on the CPU, and these are on {there}, where the "
                "model is: leave it out, or give device='cpu'"
            )
        return rows

    def __reduce__(self) -> Any:
        raise _not_in_workers()


class LiveRows:
    """The batches of a source, in the order of the samples, or mixed.

    Args:
        dtype: of the batches' vectors; as they are kept where it is None.
        device: of the batches; where the model is if it is None.

    Raises:
        ActivationsError: no sample has a row that is wanted, or `mix_rows` is less than two
            batches.
    """

    def __init__(
        self,
        source: LiveSource,
        order: BatchOrder,
        choice: RowChoice | None,
        dtype: torch.dtype | None,
        device: torch.device | None,
    ) -> None:
        live = source.live
        if order.shuffle and live.mix_rows < 2 * order.batch_size:
            raise ActivationsError(
                f"mix_rows={live.mix_rows} is less than two batches of {order.batch_size} rows, "
                "which would hardly be mixed: give more, or smaller batches"
            )
        self._live = live
        self._wanted = source.wanted
        self._columns = source.columns
        self._order = order
        self._choice = choice
        self._dtype = dtype
        self._device = device
        self._free_buffers: list[Tensors] = []
        self._n_skipped_said = 0
        queries = live.opened.benchmark.queries
        self._filter = RowFilter(choice, {query.sample: query for query in queries})
        self._ids = {query.sample: query.id for query in queries}
        self._samples = {q.sample for q in queries if self._filter.may_have(q)}
        if not self._samples:
            raise ActivationsError(
                f"none of the {len(queries)} samples has a row with {choice}: ask for others"
            )
        chunks = enumerate(recipe_chunks(live.opened.recipe))
        self._chunks = {n: chunk for n, chunk in chunks if not self._samples.isdisjoint(chunk)}

    def __reduce__(self) -> Any:
        raise _not_in_workers()

    @property
    def n_rows(self) -> int | None:
        """Rows of all ranks; None before the model has run, unless each sample has one."""
        settings = self._live.opened.settings
        is_one = settings.positions == "last" and settings.on_error == "stop"
        of_samples = self._choice is None or all(
            name in (SAMPLE, ID, IMAGE, SOURCE) for name in self._choice.columns
        )
        return len(self._samples) if is_one and of_samples else None

    @property
    def n_left_out(self) -> int | None:
        """Rows that were not chosen; None before the model has run."""
        return 0 if self._choice is None else None

    def n_batches(self, part: Part) -> int | None:
        """Batches of an epoch of a rank; None where its rows are not known."""
        if self.n_rows is None or (part.world_size > 1 and self._order.shuffle):
            return None
        mine = self._chunks_of(0, part)
        n_rows = sum(sample in self._samples for n in mine for sample in self._chunks[n])
        size = self._order.batch_size
        return n_rows // size if self._order.drop_last else math.ceil(n_rows / size)

    def identity(self) -> dict[str, Any]:
        """Say which rows these are, of which model and queries."""
        about = {"dataset": self._digest, **self._wanted.about}
        if self._order.shuffle:
            about["mix_rows"] = self._live.mix_rows
        if self._choice is not None:
            about["where"] = str(self._choice)
        return about

    @cached_property
    def _digest(self) -> str:
        return self._live.digest()

    def batches(self, part: Part, begin: Position) -> Iterator[tuple[Position, Batch]]:
        """Yield a rank's batches of an epoch from `begin` on, and where each of them ends.

        Raises:
            ActivationsError: these are worker processes, a sample cannot be run and `on_error` is
                "stop", a value is not finite, or none of the rows is wanted.
        """
        if get_worker_info() is not None:
            raise _not_in_workers()
        order, position = self._order, begin
        held: list[Tensors] = []
        n_held = n_found = 0
        place = Place.of(begin.place)
        for window in self._windows(part, begin.epoch, place):
            given = min(place.given, window.n_rows)
            place = Place()
            while given < window.n_rows:
                stop = min(window.n_rows, given + order.batch_size - n_held)
                held.append(window.take(given, stop))
                n_held += stop - given
                n_found += stop - given
                given = stop
                if n_held == order.batch_size:
                    position = position.after(n_held, window.after(given).numbers())
                    batch, held, n_held = self._delivered(held), [], 0
                    yield position, batch
            last = window.after(given).numbers()
            del window
        if n_held and not order.drop_last:
            yield position.after(n_held, last), self._delivered(held)
        self._say_skipped()
        if not n_found and not begin.rows_done:
            raise self._nothing()

    def _windows(self, part: Part, epoch: int, begin: Place) -> Iterator[Window]:
        """Yield the windows of a rank's epoch, from a place on."""
        numbers = self._chunks_of(epoch, part)
        chunks = self._run(numbers[begin.chunk :])
        if not self._order.shuffle:
            yield from windows_in_order(chunks, begin, self._empty)
            return
        seed = (self._order.seed, epoch, part.rank)
        buffer = self._free_buffers.pop() if self._free_buffers else self._buffer()
        try:
            yield from mixed_windows(
                chunks,
                begin,
                buffer,
                max(FIRST_WINDOW_ROWS, self._order.batch_size),
                lambda window, n: permutation((*seed, window), n, self._live.device),
            )
        finally:
            self._free_buffers.append(buffer)

    def _chunks_of(self, epoch: int, part: Part) -> list[int]:
        """Return the numbers of a rank's chunks, in the epoch's order.

        Raises:
            ActivationsError: there are fewer chunks than ranks.
        """
        numbers = list(self._chunks)
        if len(numbers) < part.world_size:
            raise ActivationsError(
                f"{len(numbers)} chunks of samples cannot be shared by {part.world_size} ranks, "
                "each of which needs one: give fewer chunk_samples"
            )
        if self._order.shuffle:
            order = np.random.default_rng((self._order.seed, epoch)).permutation(len(numbers))
            numbers = [numbers[number] for number in order]
        return numbers[part.rank :: part.world_size]

    def _run(self, numbers: list[int]) -> Iterator[ChunkRows]:
        """Run chunks, in this order, each when it is asked for."""
        opened, wanted, dtype = self._live.opened, self._wanted, self._live.dtype
        queries = opened.benchmark.queries
        todo = {n: [queries[sample] for sample in self._chunks[n]] for n in numbers}
        keep = keep_wanted(wanted, self._filter)

        def has_wanted(plan: PlannedBatch) -> bool:
            return any(query.sample in self._samples for query in plan.queries)

        with wanted.tapping(opened.model.decoder, dtype) as taps:
            for chunk in run_chunks(todo, opened.setup, taps, keep, wanted=has_wanted):
                for batch in chunk.batches:
                    self._live.skipped.update(batch.skipped)
                # Nothing here holds the rows while they are used, or what they are made of while
                # the next chunk runs.
                batches = [chunk.batches.pop(0) for _ in range(len(chunk.batches))]
                yield ChunkRows(batches, wanted, self._ids, dtype)

    def _delivered(self, parts: list[Tensors]) -> Batch:
        return deliver(parts, self._wanted.named, self._dtype, self._device)

    def _buffer(self) -> Tensors:
        """Make the memory that rows are mixed in.

        Raises:
            ActivationsError: the device has not so much.
        """
        n_rows, n_known = self._live.mix_rows, self.n_rows
        if n_known is not None:
            n_rows = min(n_rows, n_known)
        try:
            return self._empty(n_rows)
        # On a CPU it is no OutOfMemoryError.
        except RuntimeError as error:
            size = readable_size(n_rows * self._live.row_bytes(len(self._wanted.all)))
            raise ActivationsError(
                f"the buffer in which {n_rows} rows are mixed takes {size}, which "
                f"{self._live.device} does not have: give a smaller mix_rows"
            ) from error

    def _empty(self, n_rows: int) -> Tensors:
        return self._live.empty(n_rows, self._wanted, columns=self._columns)

    def _say_skipped(self) -> None:
        skipped = self._live.skipped
        if len(skipped) > self._n_skipped_said:
            self._n_skipped_said = len(skipped)
            sample = min(skipped)
            note(f"{len(skipped)} samples were skipped, the first of them: {skipped[sample]}")

    def _nothing(self) -> ActivationsError:
        skipped = self._live.skipped
        if skipped and len(skipped) >= len(self._samples):
            return ActivationsError(f"every sample was skipped: {skipped[min(skipped)]}")
        return ActivationsError(
            f"none of the rows that the model gave is one with {self._choice}: ask for others"
        )


def _not_in_workers() -> ActivationsError:
    return ActivationsError(
        "these batches come from a model that runs in this process, which a DataLoader's worker "
        "processes do not have: iterate them themselves, or use num_workers=0 (what reads the "
        "pictures ahead is LiveActivations(…, num_workers=…))"
    )
