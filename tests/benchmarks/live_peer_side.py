"""SAELens' side of `live_peer.py`, run by the Python of its own virtual environment.

`python live_peer_side.py FOLDER HOOK CONTEXT PER_PASS BATCH MIX_ROWS` loads the model of
FOLDER/text. Then each line that it reads is a number of rows to take, answered with the seconds;
`vectors` is answered with the norms of the vectors of the first pass.
"""

import json
import sys
import time
import warnings
from pathlib import Path

import torch
from datasets import Dataset, disable_progress_bars
from sae_lens.load_model import load_model
from sae_lens.training.activations_store import ActivationsStore


def main() -> None:
    """Answer commands until there are no more."""
    disable_progress_bars()
    warnings.simplefilter("ignore")  # each epoch's end is one
    folder, hook = Path(sys.argv[1]), sys.argv[2]
    context, per_pass, batch_size, mix_rows = map(int, sys.argv[3:7])
    answers, sys.stdout = sys.stdout, sys.stderr  # what the libraries print goes elsewhere
    rows = json.loads((folder / "tokens.json").read_text())
    model = load_model("AutoModelForCausalLM", str(folder / "text"), device="cpu")

    def store() -> ActivationsStore:
        return ActivationsStore(
            model=model,
            dataset=Dataset.from_dict({"input_ids": rows}),
            streaming=False,
            hook_name=hook,
            hook_head_index=None,
            context_size=context,
            d_in=model.model.config.hidden_size,
            n_batches_in_buffer=mix_rows // context,
            total_training_tokens=len(rows) * context,
            store_batch_size_prompts=per_pass,
            train_batch_size_tokens=batch_size,
            prepend_bos=False,
            normalize_activations="none",
            device=torch.device("cpu"),
            dtype="float32",
        )

    taken = store()
    print('"ready"', file=answers, flush=True)
    for line in sys.stdin:
        command = line.strip()
        if command == "vectors":
            vectors, _ = store().get_raw_llm_batch()
            print(json.dumps(vectors.norm(dim=-1).tolist()), file=answers, flush=True)
            continue
        start = time.perf_counter()
        for _ in range(int(command) // batch_size):
            next(taken).contiguous().view(torch.uint8).view(-1)[::4096].sum()
        print(json.dumps(time.perf_counter() - start), file=answers, flush=True)


if __name__ == "__main__":
    main()
