"""Who captures into a store: the ranks of one launch together, and nobody else meanwhile."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from llava_amber_activations.files.leftovers import capture_lock_path, sweep
from llava_amber_activations.files.locks import LockHeldError, clear_dead, held, read_holder
from llava_amber_activations.files.processes import this_process
from llava_amber_activations.store.features import FEATURES_DIR
from llava_amber_activations.store.layout import CHUNKS_DIR

# How long a rank tries: two launches that begin at once may both step back before one goes on.
_PATIENCE_SECONDS = 2.0


@contextmanager
def captured_into(store: Path, rank: int, world_size: int) -> Iterator[None]:
    """Hold a rank's lock of a store, and clear away what dead runs had begun to write in it.

    Each rank makes its own lock and then looks for those of others: of two launches, at least one
    sees the other. The store's folder is made where there is none.

    Raises:
        LockHeldError: another launch captures into the store, or another process as this rank.
        ActivationsError: the lock cannot be written.
    """
    with ExitStack() as stack:
        _take(stack, store, rank, _launch(world_size))
        for folder in (store, store / CHUNKS_DIR, store / FEATURES_DIR):
            sweep(folder)
        yield
        _living_locks(store)


def _take(stack: ExitStack, store: Path, rank: int, launch: str) -> None:
    what = f"{store} is being captured into"
    until = time.monotonic() + _PATIENCE_SECONDS
    while True:
        with ExitStack() as attempt:
            try:
                attempt.enter_context(held(capture_lock_path(store, rank), what, launch))
                for path in _living_locks(store):
                    holder = read_holder(path)
                    if path.exists() and (holder is None or holder.group != launch):
                        raise LockHeldError(path, holder, what)
                stack.push(attempt.pop_all())
                return
            except LockHeldError:
                if time.monotonic() > until:
                    raise
        time.sleep(random.uniform(0.02, 0.2))


def _launch(world_size: int) -> str:
    """Name what the processes of one launch have in common, and no other launch has."""
    if world_size == 1:
        process = this_process()
        return f"{process.host} {process.pid} {process.start}"
    names = ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT")
    return " ".join([f"{world_size} processes", *(os.environ.get(name, "") for name in names)])


def _living_locks(store: Path) -> list[Path]:
    """Remove the locks of ranks that have died and return the others."""
    paths = store.glob(capture_lock_path(store, 0).name.replace("00000", "*"))
    return [path for path in list(paths) if not clear_dead(path)]
