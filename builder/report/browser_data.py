"""What the page's browser of samples shows: their rows' sizes and cosines, packed for the page.

    blob = gzip(length of the header, uint32; header, JSON, padded with spaces to a multiple of 4;
                norms, float32; cosines, int8)

All numbers are little-endian. The header says of each sample what is known of it; its rows stand in
the order of their positions. The norms are, sample by sample and layer by layer, those of `x` and
then those of `mlp_out`: 0 where that vector is not there. The cosines are, in the same order, the
lower triangle of each layer's matrix, its diagonal too, row by row: the cosine of two rows' `x`
times 127, rounded.
"""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from builder.drawn.by_layer import row_norms
from builder.drawn.rows import DrawnRows, DrawnSample
from llava_amber_activations.formats.arrow_vectors import Vectors
from llava_amber_activations.formats.columns import kind_name

# Of the cosines, before compression.
DEFAULT_MAX_BYTES = 16_000_000
MOST_SAMPLES = 48
_FEW_SAMPLES = 8
_LEAST_LAYERS = 5
_COSINE_STEPS = 127
# Little larger than at the most, in a fraction of the time.
_COMPRESSION = 4

Int8s = npt.NDArray[np.int8]
_T = TypeVar("_T")


@dataclass(frozen=True)
class Browsed:
    """Which samples and layers the browser shows.

    Attributes:
        samples: of those that were drawn, ascending.
        layers: of those whose `x` was drawn, ascending.
    """

    samples: tuple[DrawnSample, ...]
    layers: tuple[int, ...]


def choose_browsed(rows: DrawnRows, max_bytes: int = DEFAULT_MAX_BYTES) -> Browsed:
    """Choose what fits the page: layers evenly apart where few samples of all would, then samples.

    Args:
        max_bytes: of all cosines; a single sample of few layers may take more.
    """
    with_x = [layer for layer in rows.layers if rows.x(layer) is not None]
    if not with_x:
        return Browsed((), ())
    sizes = sorted(_n_cosines(sample) for sample in rows.samples)
    typical = sizes[len(sizes) // 2]
    most_layers = max(_LEAST_LAYERS, max_bytes // (typical * min(_FEW_SAMPLES, len(sizes))))
    layers = _evenly(with_x, most_layers)
    samples: list[DrawnSample] = []
    left = max_bytes
    most = min(MOST_SAMPLES, max(1, max_bytes // (typical * len(layers))))
    for sample in _evenly(rows.samples, most):
        n_bytes = _n_cosines(sample) * len(layers)
        if n_bytes <= left or not samples:
            samples.append(sample)
            left -= n_bytes
    return Browsed(tuple(samples), tuple(layers))


def pack(rows: DrawnRows, browsed: Browsed, known: Mapping[int, Mapping[str, Any]]) -> bytes:
    """Return the blob that the page decodes.

    Args:
        known: what is known of each sample beside its rows, as JSON values; by its number.
    """
    norms: list[npt.NDArray[np.float32]] = []
    cosines: list[Int8s] = []
    samples = []
    for sample in browsed.samples:
        at = slice(sample.rows.start, sample.rows.stop)
        samples.append({**_rows_of(rows, sample), **known.get(sample.sample, {})})
        for layer in browsed.layers:
            x, mlp_out = rows.x(layer), rows.mlp_out(layer)
            assert x is not None
            norms.append(row_norms(x[at]).astype(np.float32))
            norms.append(
                np.zeros(len(sample.rows), np.float32)
                if mlp_out is None
                else row_norms(mlp_out[at]).astype(np.float32)
            )
            cosines.append(cosine_triangle(x[at]))
    with_mlp_out = [layer for layer in browsed.layers if rows.mlp_out(layer) is not None]
    header = {"layers": browsed.layers, "mlp_out": with_mlp_out, "samples": samples}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    parts: list[npt.NDArray[Any]] = [*norms, *cosines]
    numbers = [part.tobytes() for part in parts]
    content = b"".join([struct.pack("<I", len(text)), text, *numbers])
    # Without the time in it, equal data gives equal pages.
    return gzip.compress(content, _COMPRESSION, mtime=0)


def cosine_triangle(x: Vectors) -> Int8s:
    """Return the cosines of rows with those before them and themselves: int8 [T (T + 1) / 2].

    Args:
        x: [T, H]. The cosine with a row of zeros is 0.
    """
    norms = row_norms(x)[:, np.newaxis]
    units = np.divide(x, norms, out=np.zeros(x.shape), where=norms > 0).astype(np.float32)
    cosines = (units @ units.T)[np.tril_indices(len(units))]
    triangle: Int8s = np.rint(cosines * _COSINE_STEPS).astype(np.int8)
    return triangle


def _n_cosines(sample: DrawnSample) -> int:
    return len(sample.rows) * (len(sample.rows) + 1) // 2


def _evenly(found: Sequence[_T], most: int) -> list[_T]:
    if most >= len(found):
        return list(found)
    return [found[round(n)] for n in np.linspace(0, len(found) - 1, most)]


def _rows_of(rows: DrawnRows, sample: DrawnSample) -> dict[str, Any]:
    at = slice(sample.rows.start, sample.rows.stop)
    return {
        "sample": sample.sample,
        "id": sample.id,
        "image": sample.image,
        "position": rows.position[at].tolist(),
        "kind": [kind_name(code) for code in rows.kind[at].tolist()],
        "patch": np.stack([rows.patch_row[at], rows.patch_col[at]], axis=1).tolist(),
        "text": [rows.token_text(row) for row in sample.rows],
    }
