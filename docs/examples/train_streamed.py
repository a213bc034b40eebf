"""Train the same transcoder while its rows are read: nothing is downloaded or prepared first.

python train_streamed.py KOKOSde/llava-amber-activations --layer 5 --n-targets 4 --batch-size 4096
"""

from __future__ import annotations

import argparse

import torch
from torch.utils.data import DataLoader
from train_transcoder import Normalised, Transcoder, train

from llava_amber_activations import Activations


def main() -> None:
    """Train as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("source", help="dataset's id on the Hub, or a dataset folder")
    parser.add_argument("--revision", help="branch, tag or commit on the Hub")
    parser.add_argument("--layer", type=int, default=5)
    parser.add_argument("--n-targets", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--n-features", type=int, default=256)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--num-workers", type=int, default=1, help="processes that read")
    given = parser.parse_args()

    acts = Activations(given.source, given.revision)
    options = {"batch_size": given.batch_size, "shuffle": True, "seed": 0, "drop_last": True}
    batches = acts.batches(given.layer, given.n_targets, **options)
    workers = given.num_workers
    loader = DataLoader(
        batches, batch_size=None, num_workers=workers, persistent_workers=workers > 0
    )
    normalised = Normalised(acts.statistics, given.layer, given.n_targets)
    torch.manual_seed(0)
    model = Transcoder(normalised.width, given.n_features, given.n_targets)
    train(model, loader, normalised, steps=given.steps)


if __name__ == "__main__":
    main()
