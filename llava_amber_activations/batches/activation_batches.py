"""Batches of torch tensors out of a layer's dataset."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import IterableDataset, get_worker_info

from llava_amber_activations.batches.epochs import Epochs
from llava_amber_activations.batches.gathered import (
    BatchedRows,
    BatchOrder,
    GatheredRows,
    RowSource,
)
from llava_amber_activations.batches.loader_state import Position, check_state
from llava_amber_activations.batches.on_device import device_of, on_device
from llava_amber_activations.batches.orders import order_of
from llava_amber_activations.batches.ranks import (
    check_ranks,
    environment_ranks,
    live_ranks,
    this_worker,
)
from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.streams.parts import Part
from llava_amber_activations.streams.row_choice import Wanted, row_choice
from llava_amber_activations.vectors.batch import Batch

if TYPE_CHECKING:
    import datasets

    from llava_amber_activations.streams.shard_stream import ShardStream


def activation_batches(
    dataset: ShardStream | datasets.Dataset | datasets.IterableDataset | RowSource,
    batch_size: int = 4096,
    *,
    shuffle: bool = False,
    seed: int = 0,
    epochs: int | None = 1,
    drop_last: bool = False,
    rank: int | None = None,
    world_size: int | None = None,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | int | None = None,
    pin_memory: bool = False,
    where: Mapping[str, Wanted] | None = None,
    samples: Iterable[int] | None = None,
    positions: Iterable[int] | None = None,
    skip_first: bool = False,
) -> ActivationBatches:
    """Return the batches of a layer: of what `open_layer` or `load_activations` returned.

    What `load_dataset` returned does as well. `take`, `skip`, `shard` and `with_format` of a stream
    of `load_activations` are read from the shards as it is; `filter`, `map`, `select_columns`,
    `cast` and `shuffle` of it `datasets` reads, which is slower. For random order pass `shuffle`
    here, and for some of the rows `where`, `samples`, `positions` or `skip_first`.

    Vectors go from Arrow's buffers into tensors of their own dtype (float16 stays float16), or of
    `dtype`, never through Python lists. The tensors are the caller's own to change; those of one
    batch share memory, so that one which is kept alone is better cloned.

    Every row comes once an epoch over all ranks and all of their DataLoader workers. How the
    remainder falls: of n rows each of W ranks has n // W or one more, as a run of the epoch's
    order, and each has the same number of batches. A rank's last batch is smaller; where its rows
    would fill one batch fewer than another rank's, its last two batches share them. Other streams
    of `datasets` are cut between their files or row groups: what each rank (and worker) has left
    over is a smaller batch of its own, and ranks may differ in their number of batches.

    Each iteration is the next epoch, and with `shuffle` in another order, unless `set_epoch` names
    the epoch, or a loaded state does. One that was left in the middle counts.

    Args:
        dataset: a layer, or one split, prepared or streaming, or rows of a running model.
        batch_size: rows of a batch, B.
        shuffle: visit a prepared dataset's rows in random order; a stream's row groups in random
            order, and its rows mixed over 4096 of them (two batches where those are more), over
            fewer at its beginning.
        seed: of the order, 0 or more; the same on every rank.
        epochs: how many epochs one iteration has, one after the other; without end where it is
            None, for trainers that call `next` on `iter(batches)`.
        drop_last: leave out smaller batches: each rank has n // (B * W) full ones. In another
            stream of `datasets` a rank leaves out one at most, for which each worker reads all of
            its rank's rows.
        rank: which process this is, for training on several. Where it is not given,
            torch.distributed says so when iteration begins (`accelerate` initialises it). 0 of 1
            gives all rows to every process: for a dataset that was cut for this rank before, and
            for a loader that accelerate's `prepare` deals out.
        world_size: how many processes there are; given with `rank`, or not at all.
        dtype: of the batches' vectors: `torch.float32`, `torch.float16`, `torch.bfloat16`, or its
            name; they are converted as they are gathered.
        device: where batches go, one ahead of whoever consumes them; on CUDA by a stream of its
            own.
        pin_memory: have batches that stay on the CPU in pinned memory.
        where: by the name of a column (`sample`, `id`, `image`, `position`, `token_id`, `kind`,
            `patch_row`, `patch_col`; `source`, `tile` where the rows have them), the value or the
            values of the wanted rows, as in `{"kind": "image"}`. Of shards, only the row groups
            that hold a wanted row are read.
        samples: the wanted values of `sample`.
        positions: the wanted values of `position`.
        skip_first: leave out position 0 of each sample, whose vector is a thousand times as large
            as any other in many models. `n_left_out` says how many rows that is.

    Returns:
        An iterable of `{'x': [B, H], 'targets': [B, n, H], 'sample': [B], …}`: every column but the
        strings; integers are int32, `logprob` is float32 whatever `dtype` is, and `kind` is its
        code, the place in `KINDS` (-1 where it is not known). For `torch.utils.data.DataLoader`,
        pass `batch_size=None`.

    Raises:
        ActivationsError: `dataset` is not one split, an argument is out of range, or no row is one
            of those that are asked for. When iteration begins: torchrun's environment names several
            processes and torch.distributed is not initialised, or there are fewer rows than ranks,
            or a shard is damaged.
    """
    order = BatchOrder(batch_size, shuffle, seed, drop_last)
    ranks = check_ranks(rank, world_size)
    if epochs is not None and epochs < 1:
        raise ActivationsError(f"epochs must be 1 or more, or None for no end, got {epochs}")
    form = BatchForm(dtype_of(dtype), device_of(device, pin_memory=pin_memory), pin_memory)
    choice = row_choice(where, samples, positions, skip_first=skip_first)
    if isinstance(dataset, RowSource):
        made = dataset.batched(order, choice, form.dtype, form.device, pin_memory=pin_memory)
        return ActivationBatches(made, order, epochs, ranks, replace(form, device=None))
    rows = order_of(dataset, batch_size, choice, shuffle=shuffle, drop_last=drop_last)
    return ActivationBatches(GatheredRows(rows, order, form.dtype), order, epochs, ranks, form)


@dataclass(frozen=True)
class BatchForm:
    """What becomes of a batch's tensors.

    Attributes:
        dtype: of its vectors; as they are stored where it is None.
        device: where they go; nowhere else where it is None.
        pin_memory: whether what stays on the CPU is in pinned memory.
        made_by: what a gathered batch becomes before it goes anywhere; itself where it is None.
        about: what `made_by` makes of the rows: what a saved state must have in common.
        given_as: what the caller gets of the dictionary; itself where it is None.
    """

    dtype: torch.dtype | None = None
    device: torch.device | None = None
    pin_memory: bool = False
    made_by: Callable[[Batch], Batch] | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    given_as: Callable[[Batch], Any] | None = None


_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def dtype_of(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """Return a dtype that somebody gave, or its name.

    Raises:
        ActivationsError: it is none that vectors can have.
    """
    if dtype is None:
        return None
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if found not in _DTYPES:
        names = ", ".join(str(each).removeprefix("torch.") for each in _DTYPES)
        raise ActivationsError(f"vectors cannot be {dtype}: dtype is one of {names}")
    return found


class ActivationBatches(IterableDataset[Any]):
    """Batches in an order that `seed` and the epoch decide, whose position can be saved.

    `state_dict` after any batch, and `load_state_dict` on new batches of the same dataset and
    arguments, go on with the next row: none is dropped, none comes twice. With worker processes
    each worker has its own rows and its own state, as torchdata's `StatefulDataLoader` keeps them.

    Iterating again goes on to the next epoch, also in the worker processes of a DataLoader,
    persistent or not.
    """

    def __init__(
        self,
        rows: BatchedRows,
        order: BatchOrder,
        epochs: int | None,
        ranks: tuple[int, int] | None,
        form: BatchForm,
    ) -> None:
        self._rows = rows
        self._order = order
        self._form = form
        self._ranks = ranks
        self._n_epochs = epochs
        # Of the process that this one was made by, where torch.distributed is not initialised.
        self._ranks_there: tuple[int, int] | None = None
        self._epochs = Epochs()
        self._loaded: dict[str, Any] | None = None
        self._position: Position | None = None

    def __len__(self) -> int:
        """Return how many batches an iteration gives this rank, over all of its workers.

        Raises:
            TypeError: that is not known: epochs have no end, or rows are not counted before they
                are read.
        """
        if self._n_epochs is None:
            raise TypeError("these batches have no end (epochs=None), and so no length")
        n_batches = self._rows.n_batches(Part(*self._ranks_now()))
        if n_batches is None:
            raise TypeError("how many rows there are is not known before they are read")
        return self._n_epochs * n_batches

    @property
    def n_rows(self) -> int | None:
        """Rows of an epoch over all ranks; None where they are not counted before they are read."""
        return self._rows.n_rows

    @property
    def n_left_out(self) -> int | None:
        """Rows that `where`, `samples`, `positions` or `skip_first` leave out; None as above."""
        return self._rows.n_left_out

    def __getstate__(self) -> dict[str, Any]:
        ranks = self._ranks or live_ranks() or self._ranks_there
        return {**self.__dict__, "_ranks_there": ranks}

    def given_as(self, form: Callable[[Batch], Any]) -> ActivationBatches:
        """Return the same batches in another form, which can be sent to worker processes."""
        return self._formed(replace(self._form, given_as=form))

    def made_by(
        self, make: Callable[[Batch], Batch], about: Mapping[str, Any]
    ) -> ActivationBatches:
        """Return batches that are made of these, on the CPU, before they go to their device.

        Args:
            make: it can be sent to worker processes.
            about: what it makes of the rows, as a saved state says it.
        """
        return self._formed(replace(self._form, made_by=make, about=dict(about)))

    def _formed(self, form: BatchForm) -> ActivationBatches:
        return ActivationBatches(self._rows, self._order, self._n_epochs, self._ranks, form)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration, also in worker processes; the next ones follow.

        A loaded state decides its own epoch.

        Raises:
            ActivationsError: `epoch` is negative.
        """
        if epoch < 0:
            raise ActivationsError(f"an epoch must be 0 or more, got {epoch}")
        self._epochs.set(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return where this process is: what the order depends on, and the rows of it done.

        Raises:
            ActivationsError: worker processes iterate, which this one does not see.
        """
        if self._loaded is not None:
            return dict(self._loaded)
        if get_worker_info() is None and self._epochs.last_was_in_workers:
            raise ActivationsError(
                "these batches are read in a DataLoader's worker processes, and this one does not "
                "know where they are: take the state_dict of torchdata's StatefulDataLoader, or "
                "use num_workers=0"
            )
        position = self._position or Position(self._epochs.next)
        return {**self._about(self._part()), **position.state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on, at the next iteration, where `state` was taken.

        Raises:
            ActivationsError: it was taken of other data, or with other arguments, ranks or workers,
                or it is no state.
        """
        check_state(state, self._about(self._part()), self._rows.n_rows)
        self._loaded = dict(state)

    def __iter__(self) -> Iterator[Any]:
        part = self._part()
        loaded, self._loaded = self._loaded, None
        if loaded is None:
            position = Position(self._epochs.begin())
        else:
            # Loaded before the workers were there, or the ranks known, it may be no part's own.
            position = check_state(loaded, self._about(part), self._rows.n_rows)
            self._epochs.begin(resumed=position.epoch)
        self._position = position
        return self._given(part, position)

    def _given(self, part: Part, begin: Position) -> Iterator[Any]:
        form = self._form
        batches = self._epochs_from(part, begin)
        make = form.made_by
        if make is not None:
            batches = ((position, make(batch)) for position, batch in batches)
        for position, batch in on_device(batches, form.device, pin_memory=form.pin_memory):
            self._position = position
            yield batch if form.given_as is None else form.given_as(batch)

    def _epochs_from(self, part: Part, begin: Position) -> Iterator[tuple[Position, Batch]]:
        """Yield the batches of this iteration's epochs, and where each of them ends."""
        position = begin
        while True:
            for position, batch in self._rows.batches(part, begin):
                yield position, batch
            found = position.rows_done > begin.rows_done
            position = position.next_epoch()
            n_epochs = self._n_epochs
            if n_epochs is not None and position.epochs_done >= n_epochs:
                return
            if not found and not begin.rows_done:
                return  # There is no batch for this part, and so none in any epoch.
            begin = position
            self._epochs.advance(position.epoch)

    def _ranks_now(self) -> tuple[int, int]:
        return self._ranks or live_ranks() or self._ranks_there or environment_ranks()

    def _part(self) -> Part:
        return Part(*self._ranks_now(), *this_worker())

    def _about(self, part: Part) -> dict[str, Any]:
        """Say which batches these are: what a state of them must have in common."""
        return {
            **self._rows.identity(),
            **self._form.about,
            "shuffle": self._order.shuffle,
            "seed": self._order.seed,
            "batch_size": self._order.batch_size,
            "drop_last": self._order.drop_last,
            "rank": part.rank,
            "world_size": part.world_size,
            "worker": part.worker,
            "n_workers": part.n_workers,
            # Releases before this one dealt the rows out to ranks in another way.
            **({"ranks": "equal batches"} if part.world_size > 1 else {}),
        }
