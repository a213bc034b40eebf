"""What is installed only where it is asked for.

pip install llava-amber-activations               reads, verifies and exports
pip install 'llava-amber-activations[capture]'    runs models too
pip install 'llava-amber-activations[figures]'    builds dataset folders, with their figures
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal

from llava_amber_activations.errors import ActivationsError

Extra = Literal["capture", "figures"]

# What pyproject.toml lists for each, by the name that is imported: (module, package).
EXTRAS: dict[Extra, tuple[tuple[str, str], ...]] = {
    "capture": (
        ("accelerate", "accelerate"),
        ("PIL", "pillow"),
        ("tokenizers", "tokenizers"),
        ("transformers", "transformers"),
    ),
    "figures": (("matplotlib", "matplotlib"),),
}


def need_extra(extra: Extra, what: str) -> None:
    """Check that an extra is installed, without the seconds that importing it takes.

    Args:
        what: needs it; the beginning of the error's sentence.

    Raises:
        ActivationsError: it is not, with the command that installs it.
    """
    missing = [package for module, package in EXTRAS[extra] if find_spec(module) is None]
    if missing:
        raise ActivationsError(
            f"{what} needs {', '.join(missing)}, not installed here: "
            f"pip install 'llava-amber-activations[{extra}]'"
        )
