"""dictionary_learning on the data set itself: it takes any iterator of [B, H].

python try_dictionary_learning.py ROOT
"""

import contextlib
import io
import sys
from pathlib import Path

import checks
import torch
from dictionary_learning.trainers.top_k import TopKTrainer
from dictionary_learning.training import trainSAE

from llava_amber_activations import Activations

HOOK, WIDTH, STEPS = "blocks.2.hook_mlp_out", 32, 200


def main() -> None:
    root = Path(sys.argv[1]).resolve()
    expected = checks.read_expected(root)
    acts = Activations(root / "dataset")
    options = {"batch_size": 256, "shuffle": True, "skip_first": True}
    rows = []
    for batch in acts.hook_batches([2], rows=True, **options):
        places = zip(batch["sample"].tolist(), batch["position"].tolist(), strict=True)
        mine = [expected.row_of[place] for place in places]
        checks.check_same_bits(batch[HOOK], expected.hooks[HOOK][mine], HOOK)
        rows += mine
    checks.check_each_row_once(rows, expected, "hook_batches", most_left_out=0)

    batches = acts.hook_batches([2], epochs=None, dtype="float32", **options)
    config = {"trainer": TopKTrainer, "activation_dim": WIDTH, "dict_size": 256, "k": 8}
    config |= {"layer": 2, "lm_name": "tiny", "steps": STEPS, "warmup_steps": 1, "lr": 1e-3}
    config |= {"device": "cpu", "seed": 0}
    with contextlib.redirect_stdout(io.StringIO()) as said:
        data = (batch[HOOK] for batch in batches)
        trainSAE(data, [config], steps=STEPS, log_steps=10, verbose=True, device="cpu")
    shares = checks.numbers_after(said.getvalue(), "frac_variance_explained = ")
    checks.check_falls([1 - share for share in shares], "what it leaves unexplained", to=0.7)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
