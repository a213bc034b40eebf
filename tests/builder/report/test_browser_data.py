"""What is packed for the page's browser of samples: unpacked here as the format says it."""

import gzip
import json
import struct

import numpy as np
import pytest
from planted_store import KINDS, N_LAYERS, N_SAMPLES, TEXTS, vectors

from builder.drawn.rows import draw_rows
from builder.report.browser_data import choose_browsed, cosine_triangle, pack
from llava_amber_activations.sources.source import open_source


@pytest.fixture(scope="module")
def rows(planted_dataset):
    """All rows of the planted dataset."""
    return draw_rows(open_source(planted_dataset))


def unpack(blob):
    """Return the header, and the norms and cosines as flat arrays."""
    content = gzip.decompress(blob)
    (length,) = struct.unpack_from("<I", content)
    header = json.loads(content[4 : 4 + length])
    n_rows = [len(sample["position"]) for sample in header["samples"]]
    n_norms = 2 * len(header["layers"]) * sum(n_rows)
    norms = np.frombuffer(content, "<f4", n_norms, 4 + length)
    cosines = np.frombuffer(content, np.int8, offset=4 + length + 4 * n_norms)
    assert len(cosines) == len(header["layers"]) * sum(n * (n + 1) // 2 for n in n_rows)
    return header, norms, cosines


def test_norms_and_cosines_are_those_of_the_vectors(rows):
    browsed = choose_browsed(rows)
    known = {4: {"query": "Why, ü?"}}
    header, norms, cosines = unpack(pack(rows, browsed, known))
    assert header["layers"] == list(range(N_LAYERS)) == header["mlp_out"]
    assert [sample["sample"] for sample in header["samples"]] == list(range(N_SAMPLES))
    first = header["samples"][4]
    assert first["query"] == "Why, ü?"
    assert first["text"] == TEXTS
    assert first["kind"] == [("text", "image", "generated")[kind] for kind in KINDS]
    stored = vectors()
    wanted = [
        np.linalg.norm(stored[f"{name}_{layer:02d}"][sample].astype(np.float64), axis=1)
        for sample in range(N_SAMPLES)
        for layer in range(N_LAYERS)
        for name in ("x", "mlp_out")
    ]
    np.testing.assert_allclose(norms, np.concatenate(wanted), rtol=1e-6)
    at = 0
    for sample in range(N_SAMPLES):
        for layer in range(N_LAYERS):
            x = stored[f"x_{layer:02d}"][sample].astype(np.float64)
            for row in range(len(x)):
                for before in range(row + 1):
                    product = x[row] @ x[before]
                    cosine = product / np.linalg.norm(x[row]) / np.linalg.norm(x[before])
                    assert abs(cosines[at] / 127 - cosine) <= 0.5 / 127 + 1e-6
                    at += 1
    assert at == len(cosines)


def test_a_row_of_zeros_is_like_none():
    found = cosine_triangle(np.array([[0, 0], [3, 4], [-3, -4]], np.float32))
    assert found.tolist() == [0, 0, 127, 0, -127, 127]


def test_few_bytes_take_layers_and_then_samples_evenly(rows):
    n_cosines = len(TEXTS) * (len(TEXTS) + 1) // 2
    browsed = choose_browsed(rows, n_cosines * N_LAYERS * 3)
    assert browsed.layers == tuple(range(N_LAYERS))
    assert [each.sample for each in browsed.samples] == [0, 4, 8]
    # One sample there always is.
    assert len(choose_browsed(rows, 1).samples) == 1


def test_equal_data_gives_equal_bytes(rows):
    browsed = choose_browsed(rows)
    assert pack(rows, browsed, {}) == pack(rows, browsed, {})
