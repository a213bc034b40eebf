"""What is installed only where it is asked for.

pip install llava-amber-activations               reads, verifies and exports
pip install 'llava-amber-activations[capture]'    runs models too
pip install 'llava-amber-activations[figures]'    builds dataset folders, with their figures
pip install 'llava-amber-activations[labels]'     finds annotated words in answers
pip install 'llava-amber-activations[crosslayer-coding]'    exports for that trainer (HDF5)
pip install 'llava-amber-activations[report]'     makes reports, a page of what a dataset looks like
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal

from llava_amber_activations.errors import ActivationsError

Extra = Literal["capture", "crosslayer-coding", "figures", "labels", "report"]

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
    "report": (("PIL", "pillow"), ("plotly", "plotly")),
}


def need_extras(what: str, *extras: Extra) -> None:
    """Check that extras are installed, without the seconds that importing them takes.

    Args:
        what: needs them; the beginning of the error's sentence.

    Raises:
        ActivationsError: one is not, with the command that installs what is missing.
    """
    names: list[str] = []
    wanted: list[Extra] = []
    for extra in extras:
        # What another of them brings too is named once.
        missing = [
            package
            for module, package in EXTRAS[extra]
            if find_spec(module) is None and package not in names
        ]
        if missing:
            wanted.append(extra)
            names += missing
    if names:
        raise ActivationsError(
            f"{what} needs {', '.join(names)}, not installed here: "
            f"pip install 'llava-amber-activations[{','.join(wanted)}]'"
        )
