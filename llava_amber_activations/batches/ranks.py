"""Which training process this is, of how many, and which of its DataLoader workers."""

from __future__ import annotations

import os
import sys

import torch.distributed as dist
from torch.utils.data import get_worker_info

from llava_amber_activations.errors import ActivationsError


def this_worker() -> tuple[int, int]:
    """Return which of a DataLoader's worker processes this is, of how many; (0, 1) if of none."""
    info = get_worker_info()
    return (0, 1) if info is None else (info.id, info.num_workers)


def live_ranks() -> tuple[int, int] | None:
    """Return (rank, world size) of torch.distributed; None where it is not initialised.

    Raises:
        ActivationsError: accelerate's own loader is what reads, and would deal the rows again.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return None
    rank, world_size = dist.get_rank(), dist.get_world_size()
    if world_size > 1 and _accelerate_reads():
        raise ActivationsError(
            "a loader that accelerate has prepared deals the batches of one process out to all, "
            "and these batches are this rank's own already: do not prepare the loader, or pass "
            "rank=0, world_size=1 to activation_batches"
        )
    return rank, world_size


def environment_ranks() -> tuple[int, int]:
    """Return (0, 1) where nothing says that there are several processes.

    Raises:
        ActivationsError: torchrun's environment says so, but torch.distributed does not yet.
    """
    world_size = os.environ.get("WORLD_SIZE", "1")
    if "RANK" in os.environ and world_size.isdecimal() and int(world_size) > 1:
        raise ActivationsError(
            f"the environment says RANK={os.environ['RANK']} and WORLD_SIZE={world_size}, but "
            "torch.distributed is not initialised, so that which rows are this process's is not "
            "known: call torch.distributed.init_process_group (or make accelerate's Accelerator) "
            "before iterating, or pass rank= and world_size= to activation_batches (0 and 1 for "
            "all rows)"
        )
    return 0, 1


def check_ranks(rank: int | None, world_size: int | None) -> tuple[int, int] | None:
    """Return what a caller has given as one pair; None where nothing was given.

    Raises:
        ActivationsError: only one was given, or the rank is none of the world.
    """
    if rank is None and world_size is None:
        return None
    if rank is None or world_size is None:
        raise ActivationsError("give both rank and world_size, or neither")
    if not 0 <= rank < world_size:
        raise ActivationsError(f"rank must be 0 to world_size - 1, got {rank} of {world_size}")
    return rank, world_size


def _accelerate_reads() -> bool:
    """Whether a loader of accelerate's is among the callers.

    Nothing else tells it from a plain one: it hands the dataset on as it is.
    """
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_globals.get("__name__") == "accelerate.data_loader":
            return True
    return False
