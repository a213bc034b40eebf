"""What one of several training processes reads, run by torchrun: python rank_side.py FOLDER OUT.

Writes OUT/RANK.json: of every way of opening, number of workers and `drop_last`, the (sample,
position) of every row of every batch.
"""

import json
import os
import sys
from pathlib import Path

import datasets
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader

from llava_amber_activations import (
    Activations,
    ActivationsError,
    activation_batches,
    load_activations,
    open_layer,
)

BATCH = 12
EPOCHS = 2


def places(batches):
    return [
        list(zip(batch["sample"].tolist(), batch["position"].tolist(), strict=True))
        for batch in batches
    ]


def epochs_of(layer, workers, epochs=1, **options):
    options = {"batch_size": BATCH, "shuffle": True, **options}
    if isinstance(layer, Activations):
        batches = layer.hook_batches([4, 5], rows=True, **options)
    else:
        batches = activation_batches(layer, **options)
    if workers is not None:
        batches = DataLoader(
            batches, batch_size=None, num_workers=2, multiprocessing_context=workers
        )
    return [places(batches) for _ in range(epochs)]


def main(folder, out):
    torch.set_num_threads(1)
    prepared = load_activations(folder, 4, 1, cache_dir=out / "cache")
    layers = {
        "prepared": prepared,
        "streaming": load_activations(folder, 4, 1, streaming=True),
        "open_layer": open_layer(folder, 4, 1),
        "hooks": Activations(folder),
        "load_dataset": datasets.load_dataset(str(folder), "L4", split="L4", streaming=True),
        "one_shard": prepared.to_iterable_dataset(),
    }
    found = {}
    batches = activation_batches(layers["open_layer"], BATCH)
    try:
        next(iter(batches))
    except ActivationsError as error:
        found["before"] = str(error)
    # Made before, and read when iteration begins.
    dist.init_process_group("gloo")
    found["after"] = places(batches)
    found["len"] = {
        way: len(activation_batches(layers[way], BATCH))
        for way in ("prepared", "streaming", "open_layer")
    }
    found["len"]["hooks"] = len(layers["hooks"].hook_batches([4, 5], batch_size=BATCH))
    for way, layer in layers.items():
        for workers in (None, "fork"):
            for drop_last in (False, True):
                key = f"{way} {workers} {drop_last}"
                epochs = 1 if drop_last else EPOCHS
                found[key] = epochs_of(layer, workers, epochs, drop_last=drop_last)
    found["open_layer spawn False"] = epochs_of(layers["open_layer"], "spawn")
    found["all"] = epochs_of(layers["open_layer"], None, rank=0, world_size=1)
    (out / f"{os.environ['RANK']}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
