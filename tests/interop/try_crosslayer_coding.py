"""crosslayer-coding on an export: its store's values, the printed code.

python try_crosslayer_coding.py ROOT
"""

import sys
from pathlib import Path

import checks
import numpy as np
from clt.training.data.local_activation_store import LocalActivationStore


def main() -> None:
    root = Path(sys.argv[1]).resolve()
    folder = root / "crosslayer-coding"
    expected = checks.read_expected(root)
    chunks = checks.exported_rows(folder / "export", expected)
    store = LocalActivationStore(
        folder / "export",
        train_batch_size_tokens=len(chunks[0]),  # a batch is of one chunk, its rest is dropped
        device="cpu",
        dtype="float16",
        normalization_method="none",
    )
    seen = []
    for batch in map(np.array, store.sampler):
        inputs, targets = store._fetch_and_parse_batch(batch)
        rows = [chunks[chunk][row] for chunk, row in batch]
        seen += rows
        for layer in range(checks.N_LAYERS):
            for name, found in (("hook_resid_mid", inputs), ("hook_mlp_out", targets)):
                hook = f"blocks.{layer}.{name}"
                checks.check_same_bits(found[layer], expected.hooks[hook][rows], hook)
    checks.check_each_row_once(seen, expected, most_left_out=len(chunks) - 1)

    said = checks.run_python(folder / "code.py", within=folder / "printed")
    checks.check_falls(checks.numbers_after(said, "Loss: "), "the printed code", to=0.8)


if __name__ == "__main__":
    main()
