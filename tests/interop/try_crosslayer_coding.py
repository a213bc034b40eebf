"""crosslayer-coding on an export: its store's values, the printed code.

python try_crosslayer_coding.py ROOT
"""

import sys
from pathlib import Path

import checks
import numpy as np
from clt.training.data.local_activation_store import LocalActivationStore


def check_values(export: Path, expected: checks.Expected) -> None:
    """Compare all that its store gives, batch by batch."""
    chunks = checks.exported_rows(export, expected)
    store = LocalActivationStore(
        export,
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
        layers = range(checks.N_LAYERS)
        found = [inputs[layer] for layer in layers] + [targets[layer] for layer in layers]
        for hook, vectors in zip(checks.hooks_of(export), found, strict=True):
            checks.check_same_bits(vectors, expected.hooks[hook][rows], hook)
    checks.check_each_row_once(seen, expected, export.name, most_left_out=len(chunks) - 1)


def main() -> None:
    root = Path(sys.argv[1]).resolve()
    folder = root / "crosslayer-coding"
    expected = checks.read_expected(root)
    for name in checks.EXPORTS:
        check_values(folder / name, expected)
    said = checks.run_python(folder / "code.py", within=folder / "printed")
    checks.check_falls(checks.numbers_after(said, "Loss: "), "the printed code", to=0.8)


if __name__ == "__main__":
    main()
