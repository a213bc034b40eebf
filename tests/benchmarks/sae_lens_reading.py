"""SAELens' side of `peer_reading.py`, run by the Python of its own virtual environment.

`python sae_lens_reading.py ROWS CACHE HOOK CONTEXT BATCH` makes its cache of one hook out of the
rows of a safetensors file, in the layout of its own runner (a context a row). Then each line that
it reads, a dtype, is an epoch; it answers with the seconds. `rows` answers with the first number of
each row of an epoch.
"""

import json
import shutil
import sys
import time
import warnings
from pathlib import Path

import torch
from datasets import Array2D, Dataset, Features, disable_progress_bars
from sae_lens.training.activations_store import ActivationsStore
from safetensors.torch import load_file


def main() -> None:
    """Make the cache, then answer commands until there are no more."""
    disable_progress_bars()
    warnings.simplefilter("ignore")  # each epoch's end is one
    rows, cache, hook = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    context, batch_size = int(sys.argv[4]), int(sys.argv[5])
    answers, sys.stdout = sys.stdout, sys.stderr  # what the libraries print goes elsewhere
    n_rows, width = make_cache(rows, cache, hook, context)
    print('"ready"', file=answers, flush=True)

    def batches(dtype: str):
        store = ActivationsStore(
            model=None,  # which reading does not ask for
            dataset=None,
            streaming=False,
            hook_name=hook,
            hook_head_index=None,
            context_size=context,
            d_in=width,
            n_batches_in_buffer=20,
            total_training_tokens=n_rows,
            store_batch_size_prompts=8,
            train_batch_size_tokens=batch_size,
            prepend_bos=False,
            normalize_activations="none",
            device=torch.device("cpu"),
            dtype=dtype,
            cached_activations_path=str(cache),
        )
        for _ in range(n_rows // batch_size):
            yield next(store)

    for line in sys.stdin:
        command = line.strip()
        if command == "rows":
            numbers = torch.cat([batch[:, 0] for batch in batches("float16")]).tolist()
            print(json.dumps(numbers), file=answers, flush=True)
            continue
        start = time.perf_counter()
        for batch in batches(command):
            batch.contiguous().view(torch.uint8).view(-1)[::4096].sum()
        print(json.dumps(time.perf_counter() - start), file=answers, flush=True)


def make_cache(rows: Path, cache: Path, hook: str, context: int) -> tuple[int, int]:
    """Write the rows as its runner does, and return how many there are, and how wide."""
    vectors = load_file(rows)[hook]
    n_rows, width = vectors.shape
    shutil.rmtree(cache, ignore_errors=True)
    Dataset.from_dict(
        {hook: vectors.view(-1, context, width).numpy()},
        features=Features({hook: Array2D((context, width), "float16")}),
    ).save_to_disk(str(cache))
    return n_rows, width


if __name__ == "__main__":
    main()
