"""Real photographs, from scikit-image, saved as a benchmark's pictures."""

from pathlib import Path

import skimage.data
from PIL import Image

_FOLDER = Path(skimage.data.__file__).parent
_SUFFIXES = (".png", ".jpg", ".gif")


def save_photographs(folder: Path, count: int) -> list[str]:
    """Save `count` photographs as AMBER_1.jpg …, over again where there are not as many."""
    folder.mkdir(parents=True, exist_ok=True)
    originals = sorted(path for path in _FOLDER.iterdir() if path.suffix in _SUFFIXES)
    names = []
    for number in range(count):
        name = f"AMBER_{number + 1}.jpg"
        with Image.open(originals[number % len(originals)]) as picture:
            picture.convert("RGB").save(folder / name)
        names.append(name)
    return names
