"""Several layers at once: names, values against the store's own tensors, order, every row once."""

import pickle
from collections import Counter

import pytest
import torch
from torch.utils.data import DataLoader

from builder.build import build
from llava_amber_activations import ActivationsError, hook_batches
from llava_amber_activations.batches.hook_batches import LayerPairs

LAYERS = [0, 5, 31]


@pytest.fixture(scope="module")
def tensors(all_store, read_store):
    """The store's own tensors; rows by (sample, position)."""
    return read_store(all_store)


@pytest.fixture(scope="module")
def row_of(tensors):
    places = zip(tensors["sample"].tolist(), tensors["position"].tolist(), strict=True)
    return {place: number for number, place in enumerate(places)}


@pytest.fixture(params=[False, True], ids=["shards", "prepared"])
def kept(request, tmp_path):
    return {"prepared": True, "cache_dir": tmp_path} if request.param else {}


@pytest.mark.parametrize("shuffle", [False, True])
def test_rows_are_aligned_over_layers(folder, tensors, row_of, kept, shuffle):
    """Every row once; each hook of a row is that row's own vector of that layer."""
    batches = hook_batches(folder, LAYERS, batch_size=40, shuffle=shuffle, rows=True, **kept)
    seen = []
    for batch in batches:
        places = list(zip(batch["sample"].tolist(), batch["position"].tolist(), strict=True))
        rows = torch.tensor([row_of[place] for place in places])
        for layer in LAYERS:
            x, mlp_out = tensors[f"x_{layer:02d}"], tensors[f"mlp_out_{layer:02d}"]
            assert torch.equal(batch[f"blocks.{layer}.hook_resid_mid"], x[rows])
            assert torch.equal(batch[f"blocks.{layer}.hook_mlp_out"], mlp_out[rows])
        assert torch.equal(batch["kind"], tensors["kind"][rows])
        seen += places
    assert sorted(seen) == sorted(row_of)
    assert (seen == list(row_of)) is not shuffle


def test_names_and_shapes(folder):
    batch = next(iter(hook_batches(folder, batch_size=16)))
    layers = range(32)
    assert list(batch) == [
        *(f"blocks.{layer}.hook_resid_mid" for layer in layers),
        *(f"blocks.{layer}.hook_mlp_out" for layer in layers),
    ]
    assert all(tensor.shape == (16, 64) for tensor in batch.values())
    alone = next(iter(hook_batches(folder, [3], batch_size=16, mlp_out=False)))
    assert list(alone) == ["blocks.3.hook_resid_mid"]
    outputs = next(iter(hook_batches(folder, [3], batch_size=16, x_site=[])))
    assert list(outputs) == ["blocks.3.hook_mlp_out"]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batch_size", [None, 1], ids=["as it should be", "plain"])
def test_pairs_by_layer(folder, tensors, kept, workers, batch_size):
    """As dictionaries by layer, through a loader too, told that these are batches or not."""
    batches = hook_batches(folder, LAYERS, names="layers", batch_size=64, **kept)
    loader = DataLoader(batches, batch_size=batch_size, num_workers=workers)
    found = list(loader)
    assert all(isinstance(pair, LayerPairs) for pair in found)
    assert all(list(pair.x) == list(pair.mlp_out) == LAYERS for pair in found)
    for layer in LAYERS:
        x = torch.cat([x[layer] for x, _ in found])
        assert len(x) == len(tensors["x_05"])
        mine = Counter(row.numpy().tobytes() for row in x)
        assert mine == Counter(row.numpy().tobytes() for row in tensors[f"x_{layer:02d}"])


def test_a_row_group_is_read_once(folder, monkeypatch):
    """And of it every column once, however many names want it."""
    from llava_amber_activations.reading import hook_rows

    read = Counter()
    plain = hook_rows.read_vectors

    def counting(shard, group, names, **options):
        read.update((shard.url, group, name) for name in names)
        return plain(shard, group, names, **options)

    monkeypatch.setattr(hook_rows, "read_vectors", counting)
    list(hook_batches(folder, LAYERS, batch_size=10, shuffle=True))
    assert set(read.values()) == {1}
    assert {name for *_, name in read} == {
        f"{kind}_{layer:02d}" for kind in ("x", "mlp_out") for layer in LAYERS
    }


def test_left_and_taken_up(folder, kept):
    options = {"batch_size": 24, "shuffle": True, **kept}
    whole = list(hook_batches(folder, LAYERS, **options))
    batches = hook_batches(folder, LAYERS, **options)
    iterator = iter(batches)
    for _ in range(3):
        next(iterator)
    again = hook_batches(folder, LAYERS, **options)
    again.load_state_dict(pickle.loads(pickle.dumps(batches.state_dict())))
    rest = list(again)
    assert len(rest) == len(whole) - 3
    for one, other in zip(rest, whole[3:], strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_state_of_other_layers(folder):
    state = hook_batches(folder, [3], batch_size=24).state_dict()
    with pytest.raises(ActivationsError, match="hooks"):
        hook_batches(folder, [4], batch_size=24).load_state_dict(state)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"layers": [32]}, "no layer 32"),
        ({"layers": [-1]}, "no layer -1"),
        ({"layers": []}, "no layer is asked for"),
        ({"layers": [3, 3]}, "twice"),
        ({"names": "short"}, "names must be"),
        ({"names": "layers", "rows": True}, "rows=True goes with"),
        ({"x_site": [], "mlp_out": False}, "nothing to read"),
        ({"x_site": "resid_post"}, "resid_post"),
        ({"x_site": "resid_pre"}, "resid_pre"),
        ({"cache_dir": "here"}, "prepared=True"),
    ],
)
def test_what_cannot_be_had(folder, options, says):
    with pytest.raises(ActivationsError, match=says):
        hook_batches(folder, **options)


def test_a_window_is_bounded_in_bytes(folder, monkeypatch):
    """Not by rows alone: of 64 vectors a row, fewer are mixed than of two; two batches at least."""
    from llava_amber_activations.sources.source import open_source
    from llava_amber_activations.streams import hook_stream

    monkeypatch.setattr(hook_stream, "_WINDOW_BYTES", 300 * 64 * 64 * 4)
    options = {"mlp_out": True, "leading": False}
    whole = hook_stream.hooks_of_source(open_source(folder), None, None, **options)
    few = hook_stream.hooks_of_source(open_source(folder), [3], None, **options)
    assert whole.window_rows(64) == 300
    assert whole.window_rows(512) == 1024
    assert few.window_rows(64) == 4096


def test_an_import_that_lacks_vectors(all_dataset, tmp_path):
    """All that are there where no layer is named; of one that is not, which vector is missing."""
    from builder.export import export
    from builder.import_pt import import_pt

    export(all_dataset, tmp_path / "pt", layout="layers", batch_size=64)
    (tmp_path / "pt" / "export.json").unlink()  # It would say what the data is of.
    import_pt(tmp_path / "pt", tmp_path / "dataset")
    names = list(next(iter(hook_batches(tmp_path / "dataset", x_site="resid_mid"))))
    assert names == [
        *(f"blocks.{layer}.hook_resid_mid" for layer in range(1, 31)),
        *(f"blocks.{layer}.hook_mlp_out" for layer in range(1, 31)),
    ]
    with pytest.raises(ActivationsError, match="does not hold x_31"):
        hook_batches(tmp_path / "dataset", [31], x_site="resid_mid")
    with pytest.raises(ActivationsError, match="does not say where its x was read"):
        hook_batches(tmp_path / "dataset", [5])


def test_half_of_it_is_there(last_store, tmp_path):
    build(last_store, tmp_path / "dataset", configs=["default"])
    with pytest.raises(ActivationsError, match="--configs all_layers"):
        hook_batches(tmp_path / "dataset")
