"""SAELens' side of `peer_sae_lens.py`, run by the Python of its own virtual environment.

Reads a command a line, `OUT HOOK HOOK …`, runs the runner once for each hook, and answers with the
seconds of the runs: the model has been loaded and the runners made before.
"""

import json
import logging
import shutil
import sys
import time
from pathlib import Path

from datasets import Dataset, disable_progress_bars
from sae_lens import CacheActivationsRunner, CacheActivationsRunnerConfig

TOKENS, WIDTH = int(sys.argv[2]), int(sys.argv[3])
CONTEXT, BATCH = 128, 8


def main() -> None:
    """Answer commands until there are no more."""
    disable_progress_bars()
    logging.disable(logging.WARNING)
    folder = Path(sys.argv[1])
    rows = json.loads((folder / "tokens.json").read_text())
    answers, sys.stdout = sys.stdout, sys.stderr  # what the libraries print goes elsewhere
    print('"ready"', file=answers, flush=True)
    for line in sys.stdin:
        out, *hooks = line.split()
        shutil.rmtree(out, ignore_errors=True)
        seconds = 0.0
        for hook in hooks:
            config = CacheActivationsRunnerConfig(
                dataset_path="tokens",
                model_name=str(folder / "model"),
                model_class_name="AutoModelForCausalLM",
                model_batch_size=BATCH,
                hook_name=hook,
                d_in=WIDTH,
                training_tokens=TOKENS,
                context_size=CONTEXT,
                new_cached_activations_path=f"{out}/{hook}",
                shuffle=False,
                device="cpu",
                # One batch: rounding up to whole buffers then adds nothing.
                buffer_size_gb=BATCH * CONTEXT * WIDTH * 4 / 1e9,
                prepend_bos=False,
                streaming=False,
            )
            dataset = Dataset.from_dict({"input_ids": rows})
            runner = CacheActivationsRunner(config, override_dataset=dataset)
            start = time.perf_counter()
            runner.run()
            seconds += time.perf_counter() - start
        print(json.dumps(seconds), file=answers, flush=True)


if __name__ == "__main__":
    main()
