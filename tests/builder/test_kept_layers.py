"""A store of some layers: built, read, exported, described and verified as what it is."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from builder.build import build
from builder.export import export
from builder.handover.hand_over import hand_over
from builder.handover.note import HandoverAsked
from builder.import_pt import import_pt
from builder.info import describe, info
from builder.verify import verify
from llava_amber_activations import (
    Activations,
    ActivationsError,
    LlavaAmberActivations,
    activation_batches,
    load_activations,
    open_layer,
)

# Of six layers. With two targets a layer, L2 has both of them, L0 and L3 lack layer 1 and 5.
KEPT = (0, 2, 3, 4)


@pytest.fixture(scope="module")
def kept_store(make_small_store, tmp_path_factory):
    """Finished store of four layers of a model of six."""
    return make_small_store(tmp_path_factory.mktemp("kept") / "store", n_layers=6, layers=KEPT)


@pytest.fixture(scope="module")
def vectors(kept_store):
    """Every vector of the store, all rows: read by safetensors alone."""
    chunks = [load_file(path) for path in sorted((kept_store / "chunks").iterdir())]
    return {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]}


@pytest.fixture(scope="module")
def kept_dataset(kept_store, tmp_path_factory):
    """Dataset folder of it, with what a build brings unasked."""
    folder = tmp_path_factory.mktemp("kept") / "dataset"
    build(kept_store, folder)
    return folder


@pytest.fixture(scope="module")
def pairs_dataset(make_small_store, tmp_path_factory):
    """Dataset folder of two layers that are no neighbours: no layer has a target after it."""
    folder = tmp_path_factory.mktemp("pairs")
    build(make_small_store(folder / "store", n_layers=6, layers=(1, 4)), folder / "dataset")
    return folder / "dataset"


def test_what_is_built(kept_dataset, pairs_dataset, vectors):
    """The kept columns, a split of the layer with all of its targets; and what was kept is said."""
    acts = Activations(kept_dataset)
    manifest = acts.source.manifest
    assert manifest.layers("default") == (2,)
    (shard,) = manifest.shards("all_layers", "train")
    names = acts.source.open_parquet(shard).schema_arrow.names
    held = [name for name in names if name.startswith(("x_", "mlp_out_"))]
    assert held == [f"{kind}_{layer:02d}" for kind in ("x", "mlp_out") for layer in KEPT]
    said = (
        "Of the model's 6 layers the capture kept 0,2-4; 2 are splits, with all of their targets."
    )
    assert said in manifest.warnings
    pairs = Activations(pairs_dataset).source.manifest
    assert pairs.configs == ["all_layers"]
    assert "kept 1,4, none with all of its 2 targets: there are no splits." in pairs.warnings[-1]
    for dataset in (kept_dataset, pairs_dataset):
        assert verify(dataset).n_rows == len(vectors["sample"])


def test_default_without_a_split(make_small_store, tmp_path, capsys):
    """Asked for, it is refused; unasked, it is left out, and that is said."""
    store = make_small_store(tmp_path / "store", n_layers=6, layers=(1, 4))
    with pytest.raises(
        ActivationsError, match=r"default would be empty: of the layers .* 1,4, none"
    ):
        build(store, tmp_path / "dataset", configs=["default"])
    assert not (tmp_path / "dataset").exists()
    build(store, tmp_path / "dataset")
    said = capsys.readouterr().err
    assert "default is left out, because of the layers that were captured, 1,4, none has" in said
    assert "columns=['x_01', 'mlp_out_01']" in said


def test_default_alone(kept_store, tmp_path, vectors):
    """The one split is right by itself, and a layer without one is refused by name."""
    build(kept_store, tmp_path / "dataset", configs=["default"])
    assert verify(tmp_path / "dataset").n_rows == len(vectors["sample"])
    acts = Activations(tmp_path / "dataset")
    assert acts.layers == (2,)
    (batch,) = acts.batches(2, batch_size=100)
    assert torch.equal(batch["targets"][:, 0], vectors["mlp_out_03"])
    with pytest.raises(ActivationsError, match="has no layer 3: the layers it has are L2"):
        acts.batches(3)


def test_batches(kept_dataset, vectors):
    """Targets where they are kept, a layer's own MLP output always; what is not there is said."""
    acts = Activations(kept_dataset)
    assert acts.layers == (2, 3)
    (batch,) = acts.batches(2, batch_size=100)
    assert torch.equal(batch["x"], vectors["x_02"])
    assert torch.equal(batch["targets"][:, 1], vectors["mlp_out_04"])
    (batch,) = acts.batches(0, 1, first_target=0, batch_size=100)
    assert torch.equal(batch["x"], vectors["x_00"])
    assert torch.equal(batch["targets"][:, 0], vectors["mlp_out_00"])
    for layer, name in ((0, "mlp_out_01"), (1, "x_01"), (3, "mlp_out_05")):
        held = "has x of 0,2-4 and mlp_out of 0,2-4"
        with pytest.raises(ActivationsError, match=f"does not hold {name}: .* {held}"):
            list(acts.batches(layer, batch_size=100))
    assert "layers 0,2-4 of 6 of width 8" in repr(acts)


def test_hooks(kept_dataset, vectors):
    """All that are there where none are named; one that is not there is said."""
    (batch,) = Activations(kept_dataset).hook_batches(batch_size=100)
    assert len(batch) == 2 * len(KEPT)
    for layer in KEPT:
        assert torch.equal(batch[f"blocks.{layer}.mlp.hook_in"], vectors[f"x_{layer:02d}"])
        assert torch.equal(batch[f"blocks.{layer}.hook_mlp_out"], vectors[f"mlp_out_{layer:02d}"])
    with pytest.raises(ActivationsError, match=r"does not hold x_05: .* x of 0,2-4"):
        Activations(kept_dataset).hook_batches([0, 5])


def test_datasets(kept_dataset, pairs_dataset, vectors):
    """`load_activations`, `open_layer` and the builder class, which makes a split of L2 alone."""
    dataset = load_activations(kept_dataset, layer=3, n_targets=1)
    np.testing.assert_array_equal(dataset.with_format("numpy")["x"], vectors["x_03"])
    (batch,) = activation_batches(open_layer(kept_dataset, 2), batch_size=100)
    assert torch.equal(batch["x"], vectors["x_02"])
    with pytest.raises(ActivationsError, match="does not hold mlp_out_05"):
        load_activations(kept_dataset, layer=3)
    for dataset, options, splits in (
        (kept_dataset, {"n_targets": 2}, ["L2"]),
        (kept_dataset, {"n_targets": 1}, ["L2", "L3"]),
        (pairs_dataset, {"n_targets": 1, "first_target": 0}, ["L1", "L4"]),
    ):
        builder = LlavaAmberActivations(
            dataset_name="kept", data_files=f"{dataset}/all_layers/*.parquet", **options
        )
        assert list(builder.as_streaming_dataset()) == splits


def test_exported(kept_dataset, pairs_dataset, vectors, tmp_path):
    """Layers with all their targets, sample files of every kept x; others are refused."""
    export(kept_dataset, tmp_path / "layers", layout="layers")
    assert [path.name for path in (tmp_path / "layers").glob("L*")] == ["L2"]
    x = torch.load(tmp_path / "layers" / "L2" / "batch_0_x.pt", weights_only=True)["x"]
    assert torch.equal(x.reshape(-1, 8), vectors["x_02"][: x.shape[0] * x.shape[1]])
    export(kept_dataset, tmp_path / "samples", layout="samples")
    sample = torch.load(tmp_path / "samples" / "sample_0001.pt", weights_only=True)["activations"]
    assert list(sample) == list(KEPT)
    assert torch.equal(sample[4].reshape(-1), vectors["x_04"][vectors["sample"] == 1][0])
    with pytest.raises(ActivationsError, match=r"\[0\] are not in this data with all of their tar"):
        export(kept_dataset, tmp_path / "none", layout="layers", layers="0,2")
    with pytest.raises(ActivationsError, match="has the layers 1,4, and of none of them all 2"):
        export(pairs_dataset, tmp_path / "none", layout="layers")
    export(pairs_dataset, tmp_path / "own", layout="layers", n_targets=1, first_target=0)
    assert sorted(path.name for path in (tmp_path / "own").glob("L*")) == ["L1", "L4"]


def test_an_export_of_it_imported(kept_dataset, vectors, tmp_path):
    """Every vector of the split comes back, under a recipe that still says what was kept."""
    export(kept_dataset, tmp_path / "layers", layout="layers")
    import_pt(tmp_path / "layers", tmp_path / "again")
    again = Activations(tmp_path / "again")
    assert again.layers == (2,) and again.recipe.layers == KEPT
    (batch,) = again.batches(2, batch_size=100)
    assert torch.equal(batch["x"], vectors["x_02"])
    verify(tmp_path / "again")


def test_handed_over(kept_dataset, tmp_path):
    """A trainer's layout takes all pairs that are there, or those that are asked for."""
    found = hand_over(kept_dataset, tmp_path / "out", HandoverAsked("llamascopium"))
    assert found.note.layers == KEPT
    with pytest.raises(ActivationsError, match=r"\[1\] are not in this data: it has 0,2-4"):
        hand_over(kept_dataset, tmp_path / "none", HandoverAsked("llamascopium", layers="0-2"))


def test_described(kept_store, kept_dataset, pairs_dataset):
    """`info` of the store and of the datasets, and the card, name the layers."""
    assert dict(info(kept_store))["layers"] == "0,2-4 of 0 … 5, width 8"
    assert describe(kept_dataset).to_json()["recipe"]["layers"] == list(KEPT)
    table = dict(info(kept_dataset))
    assert (table["layers"], table["targets"]) == ("0,2-4 of 0 … 5", "2 for L2")
    assert dict(info(pairs_dataset))["targets"] == "none of the layers has all 2"
    card = (kept_dataset / "README.md").read_text()
    for said in (
        "6 layers, of which 0,2-4 were kept.",
        "| layers | 0,2-4 |",
        "acts.batches(\n    layer=2, n_targets=2,",
        "residual stream at each kept layer",
    ):
        assert said in card
    of_pairs = (pairs_dataset / "README.md").read_text()
    assert "acts.batches(\n    layer=1, n_targets=1, first_target=0,\n" in of_pairs


def test_statistics(kept_dataset, vectors):
    """Those of the kept layers; the others have no rows, and no numbers."""
    statistics = Activations(kept_dataset).statistics
    n_rows = len(vectors["sample"])
    assert statistics.x_count.tolist() == [n_rows, 0, n_rows, n_rows, n_rows, 0]
    np.testing.assert_allclose(statistics.x_mean[3], vectors["x_03"].mean(dim=0), atol=1e-6)
    assert statistics.x_mean[1].isnan().all()
