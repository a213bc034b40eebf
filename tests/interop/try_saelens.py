"""SAELens on an export: its own store's values, its trainer on that, the printed code, the example.

python try_saelens.py ROOT REPOSITORY
"""

import sys
from pathlib import Path

import checks
import torch
from sae_lens.training.activations_store import ActivationsStore

BATCH = 64


def open_store(export: Path, hook: str, **options: object) -> ActivationsStore:
    """Open an export as activations that SAELens has cached itself; no model is needed."""
    return ActivationsStore(
        **{
            "model": None,
            "dataset": None,
            "cached_activations_path": str(export),
            "streaming": False,
            "hook_name": hook,
            "hook_head_index": None,
            "context_size": 1,
            "d_in": 32,
            "dtype": "float16",
            "device": torch.device("cpu"),
            "n_batches_in_buffer": BATCH,  # contexts: rows, since a context is one
            "store_batch_size_prompts": BATCH,
            "train_batch_size_tokens": BATCH,
            "total_training_tokens": 10**6,
            "prepend_bos": False,
            "normalize_activations": "none",
            **options,
        }
    )


def check_values(export: Path, expected: checks.Expected) -> None:
    """Compare all that its store gives of each hook, in its order, and the second epoch."""
    rows = [row for chunk in checks.exported_rows(export, expected) for row in chunk]
    for hook in checks.hooks_of(export):
        vectors = expected.hooks[hook]
        store = open_store(export, hook, activations_mixing_fraction=0.0)
        for at in range(0, len(rows) - BATCH + 1, BATCH):
            checks.check_same_bits(next(store), vectors[rows[at : at + BATCH]], hook)
        checks.check_same_bits(next(store), vectors[rows[:BATCH]], f"{hook}, its second epoch,")
    at_once = {"store_batch_size_prompts": len(rows), "dtype": "float32"}
    _, token_ids = open_store(export, hook, **at_once).get_raw_llm_batch()
    checks.check(token_ids.equal(expected.token_id[rows].float()), "tokens are not the data set's")
    checks.check_each_row_once(rows, expected, export.name, most_left_out=0)


def main() -> None:
    root, repository = (Path(argument).resolve() for argument in sys.argv[1:])
    folder = root / "saelens"
    expected = checks.read_expected(root)
    for name in checks.EXPORTS:
        check_values(folder / name, expected)
    code = folder / "code.py"
    said = checks.run_python(code, within=folder / "printed")
    checks.check_falls(checks.numbers_after(said, "mse_loss: "), "the printed code", to=0.7)
    said = checks.run_python(Path(__file__), "train", code, within=folder / "own-store")
    checks.check_falls(checks.numbers_after(said, "mse_loss: "), "from its own store", to=0.7)
    said = checks.run_example(repository, "saelens_sae.py", root / "dataset", folder / "example")
    checks.check_explains(said, 0.5)


def train_from_own_store(code: str) -> None:
    """Run the printed code, with SAELens' own store in the place of its generator."""
    before, given, after = code.partition("SAETrainer(cfg, sae, batches())")
    checks.check(bool(given), "the printed code no longer gives `batches()` to SAETrainer")
    names: dict[str, object] = {}
    exec(compile(before, "code.py", "exec"), names)
    names["store"] = open_store(
        Path(sys.argv[2]).parent / "export",
        names["hook"],
        dtype="float32",
        n_batches_in_buffer=4 * names["batch_size"],
        train_batch_size_tokens=names["batch_size"],
    )
    exec(compile(f"SAETrainer(cfg, sae, store){after}", "code.py", "exec"), names)


if __name__ == "__main__":
    if sys.argv[1] == "train":
        train_from_own_store(Path(sys.argv[2]).read_text(encoding="utf-8"))
    else:
        main()
