"""Train the same transcoder with several processes, each of which reads rows of its own.

torchrun --standalone --nproc-per-node 2 train_ddp.py llava-amber-demo/dataset

On GPUs, the model and each batch go to the process's own device, and the backend is nccl.
"""

from __future__ import annotations

import argparse

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from train_transcoder import Normalised, Transcoder, train

from llava_amber_activations import Activations


def main() -> None:
    """Train as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("source", help="dataset folder, or a dataset's id on the Hub")
    parser.add_argument("--layer", type=int, default=5)
    parser.add_argument("--n-targets", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--n-features", type=int, default=256)
    parser.add_argument("--steps", type=int, default=200)
    given = parser.parse_args()

    dist.init_process_group("gloo")
    acts = Activations(given.source)
    # Rows of its own for each process, and as many batches.
    batches = acts.batches(
        given.layer, given.n_targets, batch_size=given.batch_size, shuffle=True, seed=0
    )
    normalised = Normalised(acts.statistics, given.layer, given.n_targets)
    torch.manual_seed(0)
    model = DistributedDataParallel(Transcoder(normalised.width, given.n_features, given.n_targets))
    # So many steps in every process: their epochs may differ by a batch.
    train(model, batches, normalised, steps=given.steps, say=dist.get_rank() == 0)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
