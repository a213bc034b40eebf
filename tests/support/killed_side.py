"""A training process that is killed on the way: python killed_side.py FOLDER OUT KILL_AFTER.

After each batch OUT/RANK.pt holds the loader's state and the (sample, position) of every row so
far, renamed into place. After KILL_AFTER batches rank 0 is killed, unless that is 0; run again, it
goes on from the file.
"""

import os
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torchdata.stateful_dataloader import StatefulDataLoader

from llava_amber_activations import Activations


def main(folder, out, kill_after):
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    mine = out / f"{dist.get_rank()}.pt"
    batches = Activations(folder).batches(4, 1, batch_size=12, shuffle=True, seed=0, epochs=2)
    loader = StatefulDataLoader(batches, batch_size=None, num_workers=2)
    rows = []
    if mine.exists():
        saved = torch.load(mine, weights_only=True)
        rows = saved["rows"]
        loader.load_state_dict(saved["state"])
    for number, batch in enumerate(loader, start=1):
        rows += zip(batch["sample"].tolist(), batch["position"].tolist(), strict=True)
        torch.save({"state": loader.state_dict(), "rows": rows}, mine.with_suffix(".partial"))
        mine.with_suffix(".partial").replace(mine)
        if number == kill_after and dist.get_rank() == 0:
            os.kill(os.getpid(), signal.SIGKILL)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
