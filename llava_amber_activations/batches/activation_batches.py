"""Batches of torch tensors out of a layer's dataset."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch.utils.data import IterableDataset, get_worker_info

from llava_amber_activations.batches.epochs import Epochs
from llava_amber_activations.batches.loader_state import check_state
from llava_amber_activations.batches.orders import Block, Order, order_of
from llava_amber_activations.batches.ranks import (
    check_ranks,
    environment_ranks,
    live_ranks,
    this_worker,
)
from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.streams.parts import Part
from llava_amber_activations.vectors.batch import Batch
from llava_amber_activations.vectors.gather import BatchGather

if TYPE_CHECKING:
    import datasets

    from llava_amber_activations.streams.layer_stream import LayerStream


def activation_batches(
    dataset: LayerStream | datasets.Dataset | datasets.IterableDataset,
    batch_size: int = 4096,
    *,
    shuffle: bool = False,
    seed: int = 0,
    drop_last: bool = False,
    rank: int | None = None,
    world_size: int | None = None,
) -> ActivationBatches:
    """Return the batches of a layer: of what `open_layer` or `load_activations` returned.

    What `load_dataset` returned does as well. `take`, `skip`, `shard` and `with_format` of a stream
    of `load_activations` are read from the shards as it is; `filter`, `map`, `select_columns`,
    `cast` and `shuffle` of it `datasets` reads, which is slower. For random order pass `shuffle`
    here.

    Vectors go from Arrow's buffers into tensors of their own dtype (float16 stays float16), never
    through Python lists. The tensors are the caller's own to change; those of one batch share
    memory, so that one which is kept alone is better cloned.

    Every row comes once an epoch over all ranks and all of their DataLoader workers. How the
    remainder falls: a prepared dataset's batches are dealt out in turn, and a layer that is read
    from its shards is cut into a run of whole batches each, so that ranks differ by one batch at
    most, and only the last batch of the epoch has fewer rows. Other streams of `datasets` are cut
    between their files or row groups: what each rank (and worker) has left over is a smaller batch
    of its own.

    Each iteration is the next epoch, and with `shuffle` in another order, unless `set_epoch` names
    the epoch, or a loaded state does. One that was left in the middle counts.

    Args:
        dataset: a layer, or one split, prepared or streaming.
        batch_size: rows of a batch, B.
        shuffle: visit a prepared dataset's rows in random order; a stream's row groups in random
            order, and its rows mixed over 4096 of them (two batches where those are more), over
            fewer at its beginning.
        seed: of the order, 0 or more; the same on every rank.
        drop_last: leave out the last batch if it has fewer rows: one of the epoch, however many
            ranks and workers there are; in another stream of `datasets` one a rank at most, for
            which each worker reads all of its rank's rows.
        rank: which process this is, for training on several. Where it is not given,
            torch.distributed says so when iteration begins (`accelerate` initialises it). 0 of 1
            gives all rows to every process: for a dataset that was cut for this rank before, and
            for a loader that accelerate's `prepare` deals out.
        world_size: how many processes there are; given with `rank`, or not at all.

    Returns:
        An iterable of `{'x': [B, H], 'targets': [B, n, H], 'sample': [B], …}`: every column but the
        strings; integers are int32. For `torch.utils.data.DataLoader`, pass `batch_size=None`.

    Raises:
        ActivationsError: `dataset` is not one split, or an argument is out of range. When iteration
            begins: torchrun's environment names several processes and torch.distributed is not
            initialised, or a shard is damaged.
    """
    if batch_size < 1:
        raise ActivationsError(f"batch_size must be at least 1, got {batch_size}")
    if seed < 0:
        raise ActivationsError(f"seed must be 0 or more, got {seed}")
    order = order_of(dataset, batch_size, shuffle=shuffle, drop_last=drop_last)
    options = {"shuffle": shuffle, "seed": seed, "batch_size": batch_size, "drop_last": drop_last}
    return ActivationBatches(order, options, check_ranks(rank, world_size))


class ActivationBatches(IterableDataset[Batch]):
    """Batches in an order that `seed` and the epoch decide, whose position can be saved.

    `state_dict` after any batch, and `load_state_dict` on new batches of the same dataset and
    arguments, go on with the next row: none is dropped, none comes twice. With worker processes
    each worker has its own rows and its own state, as torchdata's `StatefulDataLoader` keeps them.

    Iterating again goes on to the next epoch, also in the worker processes of a DataLoader,
    persistent or not.
    """

    def __init__(
        self, order: Order, options: dict[str, Any], ranks: tuple[int, int] | None
    ) -> None:
        self._order = order
        self._options = options
        self._ranks = ranks
        # Of the process that this one was made by, where torch.distributed is not initialised.
        self._ranks_there: tuple[int, int] | None = None
        self._epochs = Epochs()
        self._loaded: dict[str, Any] | None = None
        self._position: tuple[int, int] | None = None
        self._gather = BatchGather(in_parallel=True)

    def __getstate__(self) -> dict[str, Any]:
        ranks = self._ranks or live_ranks() or self._ranks_there
        return {**self.__dict__, "_ranks_there": ranks}

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
        epoch, rows_done = self._position or (self._epochs.next, 0)
        return {**self._about(self._part()), "epoch": epoch, "rows_done": rows_done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on, at the next iteration, where `state` was taken.

        Raises:
            ActivationsError: it was taken of other data, or with other arguments, ranks or workers,
                or it is no state.
        """
        check_state(state, self._about(self._part()), self._order.n_rows)
        self._loaded = dict(state)

    def __iter__(self) -> Iterator[Batch]:
        part = self._part()
        loaded, self._loaded = self._loaded, None
        if loaded is None:
            epoch, skip = self._epochs.begin(), 0
        else:
            # Loaded before the workers were there, or the ranks known, it may be no part's own.
            epoch, skip = check_state(loaded, self._about(part), self._order.n_rows)
            self._epochs.begin(resumed=epoch)
        self._position = epoch, skip
        return self._batches(part, epoch, skip)

    def _batches(self, part: Part, epoch: int, skip: int) -> Iterator[Batch]:
        blocks = self._order.blocks((self._options["seed"], epoch), part, skip)
        # What a stream has read is not kept till the next epoch.
        gather = self._gather if self._order.in_memory else BatchGather(in_parallel=False)
        rows_done, batch_size = skip, self._options["batch_size"]
        for batch in _batches(blocks, batch_size, gather):
            n_rows = len(next(iter(batch.values())))
            if n_rows < batch_size and self._options["drop_last"]:
                return
            rows_done += n_rows
            self._position = epoch, rows_done
            yield batch

    def _part(self) -> Part:
        ranks = self._ranks or live_ranks() or self._ranks_there or environment_ranks()
        return Part(*ranks, *this_worker())

    def _about(self, part: Part) -> dict[str, Any]:
        """Say which batches these are: what a state of them must have in common."""
        return {
            **self._order.identity(),
            **self._options,
            "rank": part.rank,
            "world_size": part.world_size,
            "worker": part.worker,
            "n_workers": part.n_workers,
        }


def _batches(blocks: Iterator[Block], batch_size: int, gather: BatchGather) -> Iterator[Batch]:
    """Cut and join blocks into batches; the last one may be smaller."""
    kept: list[Block] = []
    n_kept = 0
    for held, rows in blocks:
        start = 0
        while n_kept + len(rows) - start >= batch_size:
            stop = start + batch_size - n_kept
            yield gather.batch([*kept, (held, rows[start:stop])])
            kept, n_kept, start = [], 0, stop
        if start < len(rows):
            kept.append((held, rows[start:]))
            n_kept += len(rows) - start
    if kept:
        yield gather.batch(kept)
