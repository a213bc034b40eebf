"""A benchmark of drawn shapes, to try a capture on."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image, ImageDraw

_QUERIES = ("Describe this image.", "What colour is the shape?")
_COLOURS = ("red", "orange", "gold", "green", "teal", "blue", "purple", "black")


def draw_benchmark(folder: Path) -> tuple[int, int]:
    """Draw one shape a picture into `images`, and ask every query of each in `queries.json`.

    Returns:
        How many pictures and queries there are.
    """
    images = folder / "images"
    images.mkdir(parents=True)
    queries: list[dict[str, object]] = []
    for number, colour in enumerate(_COLOURS):
        picture = Image.new("RGB", (96, 64 + 8 * number), "white")
        draw = ImageDraw.Draw(picture)
        draw.regular_polygon((48, 32, 28), n_sides=3 + number, fill=colour)
        image = f"DEMO_{number}.png"
        picture.save(images / image)
        for query in _QUERIES:
            queries.append({"id": len(queries) + 1, "image": image, "query": query})
    (folder / "queries.json").write_text(json.dumps(queries, indent=2), encoding="utf-8")
    return len(_COLOURS), len(queries)
