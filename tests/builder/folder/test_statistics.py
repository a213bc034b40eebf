"""`statistics.safetensors` of built and imported folders, against numpy over all rows at once."""

import json

import numpy as np
import pytest
import torch
from random_store import N_LAYERS, make_random_store, read_vectors
from safetensors import safe_open
from safetensors.numpy import load_file

from builder.build import build
from builder.export import export
from builder.import_pt import import_pt
from llava_amber_activations import load_statistics

ROWS, WIDTH = 200, 16
# By the codes of a store: text, image, generated; -1 is not known, and counted last.
KIND_CODES = [0, 1, 2, 3, 4, -1]
VECTORS = [f"{kind}_{layer:02d}" for kind in ("x", "mlp_out") for layer in range(N_LAYERS)]


def times(rows, factor):
    """Function that makes rows of every vector so many times as large."""

    def change(name, vectors, samples):
        vectors[np.isin(samples, rows)] *= factor

    return change


def in_one_dimension(name, vectors, samples):
    """What language models do: a few dimensions of the first position are huge."""
    vectors[samples % 50 == 0, 3] = 60000


def each_its_own(name, vectors, samples):
    """Rows that are outliers of one vector and not of another."""
    vectors[samples == VECTORS.index(name)] *= 500


# What is planted, and how many rows of x_05 are outliers then.
PLANTED = {
    "none": (times([], 1), 0),
    "three": (times([3, 50, 199], 1000), 3),
    "of many sizes": (lambda *of: [times([n], 20.0 * 1.1**n)(*of) for n in range(60)], 60),
    "large, and no outliers": (times([3, 50, 199], 7), 0),
    "one dimension": (in_one_dimension, 4),
    "each its own": (each_its_own, 1),
    "all of the first row groups": (times(range(80), 1000), 80),
    "more than half": (times(range(90, 200), 1000), 0),
    "more than half, first": (times(range(110), 1000), 0),
    "most are zeros": (times(range(120), 0), 0),
}


@pytest.fixture(scope="module")
def planted_store(tmp_path_factory):
    """Function that makes a store in which something of PLANTED is; each is made once."""
    made = {}

    def make(what):
        if what not in made:
            made[what] = tmp_path_factory.mktemp("planted") / "store"
            change = PLANTED[what][0]

            def plant(tensors):
                samples = tensors["sample"].numpy()
                for name in VECTORS:
                    change(name, tensors[name].numpy(), samples)
                tensors["kind"] = torch.tensor(
                    [KIND_CODES[s % len(KIND_CODES)] for s in samples]
                ).int()

            make_random_store(made[what], ROWS, WIDTH, change=plant)
        return made[what]

    return make


def of_rows(rows, kinds):
    """Moments of rows [n, H] whose kinds are 0 to 5, in float64."""
    norms = np.sqrt((rows**2).sum(1))
    return {
        "mean": rows.mean(0),
        "std": rows.std(0),
        "mean_norm": norms.mean(),
        "count": len(rows),
        "mean_norm_by_kind": [
            norms[kinds == kind].mean() if (kinds == kind).any() else np.nan for kind in range(6)
        ],
        "count_by_kind": [(kinds == kind).sum() for kind in range(6)],
    }


def is_outlier(rows, limit):
    """Which rows the rule leaves out; the limit is checked against the exact median."""
    rms = np.sqrt((rows**2).mean(1))
    # Of an even number, the lesser of the two in the middle.
    median = np.sort(rms)[(len(rms) - 1) // 2]
    if median == 0:
        assert limit == np.inf
    else:
        assert 0.99 * 10 * median <= limit <= 1.01 * 2 ** (1 / 8) * 10 * median
        eighths = 8 * np.log2(np.float64(limit))
        assert eighths == pytest.approx(round(eighths), abs=1e-4)
    return rms >= limit


def check(folder, vectors, names=VECTORS):
    """Compare every number of a folder's file with numpy's; return the outliers of each vector."""
    found = load_file(folder / "statistics.safetensors")
    kinds = np.array([KIND_CODES.index(code) for code in vectors["kind"]])
    outliers, seen = {}, set()
    for name in VECTORS:
        kind, layer = name.rsplit("_", 1)
        limit = found[f"robust_{kind}_rms_limit"][int(layer)]
        seen.add(f"robust_{kind}_rms_limit")
        rows = vectors[name].astype(np.float64)
        if name in names:
            outliers[name] = is_outlier(rows, limit)
            kept = ~outliers[name]
            expected = {"": of_rows(rows, kinds), "robust_": of_rows(rows[kept], kinds[kept])}
        else:
            assert np.isnan(limit)
            none = of_rows(np.full((1, WIDTH), np.nan), np.array([-1])) | {"count": 0}
            expected = {"": none, "robust_": none}
        for prefix, values in expected.items():
            for what, value in values.items():
                tensor = found[f"{prefix}{kind}_{what}"]
                seen.add(f"{prefix}{kind}_{what}")
                assert tensor.dtype == (np.int64 if "count" in what else np.float32)
                # A deviation is compared beside the mean: of few rows, either may be near zero.
                np.testing.assert_allclose(
                    tensor[int(layer)],
                    value,
                    rtol=1e-6,
                    atol=1e-6,
                    err_msg=f"{prefix}{name} {what}",
                )
    assert found.keys() == seen
    return outliers


@pytest.mark.parametrize("what", PLANTED)
def test_every_number_is_that_of_all_rows_at_once(planted_store, tmp_path, what):
    """With outliers and without, of one shard and of several, written or only read."""
    store = planted_store(what)
    vectors = read_vectors(store)
    build(store, tmp_path / "one", configs=["all_layers"])
    outliers = check(tmp_path / "one", vectors)
    assert outliers["x_05"].sum() == PLANTED[what][1]
    build(store, tmp_path / "shards", configs=["all_layers"], max_shard_size="100KB", num_proc=2)
    assert len(list((tmp_path / "shards" / "all_layers").iterdir())) > 2
    check(tmp_path / "shards", vectors)
    build(store, tmp_path / "read", n_targets=1, configs=["default"])
    one, read = (
        (tmp_path / name / "statistics.safetensors").read_bytes() for name in ("one", "read")
    )
    assert read == one
    if not sum(each.sum() for each in outliers.values()):
        found = load_file(tmp_path / "one" / "statistics.safetensors")
        for name in found:
            if f"robust_{name}" in found:
                np.testing.assert_array_equal(found[name], found[f"robust_{name}"])


@pytest.mark.parametrize("what", ["three", "all of the first row groups"])
def test_processes_change_nothing(planted_store, tmp_path, what):
    """Threads, and the five processes of num_proc=5: the same bytes."""
    for num_proc in (1, 2, 5):
        build(
            planted_store(what),
            tmp_path / str(num_proc),
            configs=["all_layers"],
            max_shard_size="100KB",
            num_proc=num_proc,
        )
    one, two, five = (
        (tmp_path / name / "statistics.safetensors").read_bytes() for name in ("1", "2", "5")
    )
    assert one == two == five


@pytest.mark.parametrize("what", ["none", "three", "all of the first row groups"])
def test_of_an_import(planted_store, tmp_path, what):
    """No kind is known; x of the last layer and mlp_out of the first are in no file of it."""
    store = planted_store(what)
    build(store, tmp_path / "dataset", configs=["default"])
    export(tmp_path / "dataset", tmp_path / "pt", layout="layers", batch_size=32)
    import_pt(tmp_path / "pt", tmp_path / "import", max_shard_size="100KB")
    vectors = read_vectors(store) | {"kind": np.full(ROWS, -1)}
    names = [name for name in VECTORS if name not in (f"x_{N_LAYERS - 1}", "mlp_out_00")]
    outliers = check(tmp_path / "import", vectors, names)
    assert outliers["x_05"].sum() == PLANTED[what][1]


def test_of_some_layers_imported(planted_store, tmp_path):
    """No all_layers is written then: the vectors are read for the statistics alone."""
    store = planted_store("three")
    build(store, tmp_path / "dataset", n_targets=1, configs=["default"])
    export(tmp_path / "dataset", tmp_path / "pt", layout="layers", layers="3,8")
    import_pt(tmp_path / "pt", tmp_path / "import")
    vectors = read_vectors(store) | {"kind": np.full(ROWS, -1)}
    check(tmp_path / "import", vectors, ["x_03", "mlp_out_04", "x_08", "mlp_out_09"])


def test_of_a_models_store(all_dataset, all_store):
    """Every position of a LLaVA's prompts: text and image rows."""
    vectors = read_vectors(all_store)
    statistics = load_statistics(all_dataset)
    kinds = vectors["kind"]
    assert statistics.x_count_by_kind[5].tolist() == [
        (kinds == k).sum() for k in (0, 1, 2, 3, 4, -1)
    ]
    assert {0, 1} <= set(kinds.tolist())
    for kind in ("x", "mlp_out"):
        for layer in range(32):
            rows = vectors[f"{kind}_{layer:02d}"].astype(np.float64)
            norms = np.linalg.norm(rows, axis=1)
            for name, expected in (
                ("mean", rows.mean(0)),
                ("std", rows.std(0)),
                ("mean_norm", norms.mean()),
                ("mean_norm_by_kind", [*(norms[kinds == k].mean() for k in (0, 1)), *[np.nan] * 4]),
            ):
                found = getattr(statistics, f"{kind}_{name}")[layer]
                np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_the_file_states_the_rule(planted_store, tmp_path):
    build(planted_store("three"), tmp_path / "dataset", configs=["all_layers"])
    with safe_open(tmp_path / "dataset" / "statistics.safetensors", "np") as file:
        said = json.loads(file.metadata()["statistics"])
    assert said["outlier_times"] == 10 and said["limits_per_octave"] == 8
    assert said["kinds"] == ["text", "image", "generated", "answer", "system", "unknown"]
    assert "10 times the median" in said["rule"]
