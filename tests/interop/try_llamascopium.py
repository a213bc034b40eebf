"""Llamascopium on an export: its loader's values, the printed code, the example.

python try_llamascopium.py ROOT REPOSITORY
"""

import sys
from pathlib import Path

import checks
from llamascopium.activation.processors.cached_activation import CachedActivationLoader


def check_values(export: Path, expected: checks.Expected) -> None:
    """Compare all that its loader gives, in its order."""
    hooks = checks.hooks_of(export)
    chunks = checks.exported_rows(export, expected)
    loader = CachedActivationLoader({hook: export / hook for hook in hooks})
    for rows, found in zip(chunks, loader.process(), strict=True):
        tokens = expected.token_id[rows].long()
        checks.check(found["tokens"].equal(tokens), "tokens are not the data set's")
        checks.check(bool(found["mask"].all()), "a row is masked")
        for hook in hooks:
            checks.check_same_bits(found[hook], expected.hooks[hook][rows], hook)
    seen = [row for chunk in chunks for row in chunk]
    checks.check_each_row_once(seen, expected, export.name, most_left_out=len(chunks) - 1)


def main() -> None:
    root, repository = (Path(argument).resolve() for argument in sys.argv[1:])
    folder = root / "llamascopium"
    expected = checks.read_expected(root)
    for name in checks.EXPORTS:
        check_values(folder / name, expected)
    said = checks.run_python(folder / "code.py", within=folder / "printed")
    checks.check_falls(checks.numbers_after(said, "loss: "), "the printed code", to=0.9)
    said = checks.run_example(
        repository, "llamascopium_clt.py", root / "dataset", folder / "example"
    )
    checks.check_falls(checks.numbers_after(said, "loss: "), "the example", to=0.9)
    checks.check_explains(said, 0.3)


if __name__ == "__main__":
    main()
