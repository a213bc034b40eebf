"""What is installed only where it is asked for.

pip install llava-amber-activations               reads, verifies and exports
pip install 'llava-amber-activations[capture]'    runs models too
pip install 'llava-amber-activations[figures]'    builds dataset folders, with their figures
pip install 'llava-amber-activations[labels]'     finds annotated words in answers
pip install 'llava-amber-activations[crosslayer-coding]'    exports for that trainer (HDF5)
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal

from llava_amber_activations.errors import ActivationsError

Extra = Literal["capture", "crosslayer-coding", "figures", "labels"]

# What pyproject.toml lists for each, by the name that is imported: (module, package).
EXTRAS: dict[Extra, tuple[tuple[str, str], ...]] = {
    "capture": (
        ("accelerate", "accelerate"),
        ("PIL", "pillow"),
        ("tokenizers", "tokenizers"),
        ("transformers", "transformers"),
    ),
    "crosslayer-coding": (("h5py", "h5py"),),
    "figures": (("matplotlib", "matplotlib"),),
    "labels": (("simplemma", "simplemma"),),
}


def need_extras(what: str, *extras: Extra) -> None:
    """Check that extras are installed, without the seconds that importing them takes.

    Args:
        what: needs them; the beginning of the error's sentence.

    Raises:
        ActivationsError: one is not, with the command that installs what is missing.
    """
    missing = {
        extra: packages
        for extra in extras
        if (packages := [package for module, package in EXTRAS[extra] if find_spec(module) is None])
    }
    if missing:
        names = ", ".join(name for packages in missing.values() for name in packages)
        raise ActivationsError(
            f"{what} needs {names}, not installed here: "
            f"pip install 'llava-amber-activations[{','.join(missing)}]'"
        )
