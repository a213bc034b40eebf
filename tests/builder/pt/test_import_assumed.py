"""What a `.pt` folder does not say: how many layers the model has, and where targets begin."""

import json

import pytest
import torch
from datasets import load_dataset
from manifests import seal
from safetensors import safe_open

from builder.export import export
from builder.import_pt import import_pt
from builder.verify import verify
from llava_amber_activations import ActivationsError, load_activations

SHAPES = ((2, 3, 8), (3, 1, 8))
N_LAYERS = 4


def vector(kind, layer, batch):
    seed = {"x": 0, "mlp_out": 1000}[kind] + 10 * layer + batch
    return torch.randn(SHAPES[batch], generator=torch.Generator().manual_seed(seed))


def rows(kind, layer):
    """A vector of the model by rows: [9, 8]."""
    return torch.cat([vector(kind, layer, batch).reshape(-1, 8) for batch in range(2)])


def write(folder, *, layers=range(N_LAYERS), n_targets=1, first_target=0):
    """Write layers of a model of four, whose targets begin at the layer itself unless told."""
    for layer in layers:
        (folder / f"L{layer}").mkdir(parents=True)
        first = layer + first_target
        for batch in range(2):
            targets = [
                vector("mlp_out", k, batch) for k in range(first, min(first + n_targets, N_LAYERS))
            ]
            x = {"x": vector("x", layer, batch)}
            y = {"y": targets[0], "targets": targets, "n_targets": len(targets)}
            torch.save(x, folder / f"L{layer}" / f"batch_{batch}_x.pt")
            torch.save(y, folder / f"L{layer}" / f"batch_{batch}_y.pt")
    return folder


def check_splits(dataset, targets_of):
    """Assert that the default config is of these layers, each with `x` and these targets."""
    verify(dataset)
    splits = load_dataset(str(dataset))
    assert list(splits) == [f"L{layer}" for layer in targets_of]
    for layer, targets in targets_of.items():
        found = splits[f"L{layer}"].with_format("torch")[:]
        assert torch.equal(found["x"], rows("x", layer))
        assert found["targets"].shape[1] == len(targets)
        for number, target in enumerate(targets):
            assert torch.equal(found["targets"][:, number], rows("mlp_out", target))


@pytest.mark.parametrize(
    ("n_targets", "targets_of"),
    [
        (1, {0: [1], 1: [2], 2: [3]}),
        (2, {0: [1, 2], 1: [2, 3], 2: [3]}),
        (4, {0: [1, 2, 3], 1: [2, 3], 2: [3]}),
    ],
)
def test_all_layers_with_their_own_mlp_output(tmp_path, n_targets, targets_of):
    """Every vector is there: all_layers is whole, and the splits begin at the next layer."""
    folder = write(tmp_path / "pt", n_targets=n_targets)
    manifest = import_pt(folder, tmp_path / "dataset", first_target=0)
    assert manifest.configs == ["default", "all_layers"]
    assert manifest.recipe.n_layers == N_LAYERS
    check_splits(tmp_path / "dataset", targets_of)
    every = load_dataset(str(tmp_path / "dataset"), "all_layers", split="train")
    found = every.with_format("torch")[:]
    for layer in range(N_LAYERS):
        assert torch.equal(found[f"x_{layer:02d}"], rows("x", layer))
        assert torch.equal(found[f"mlp_out_{layer:02d}"], rows("mlp_out", layer))
    own = load_activations(
        tmp_path / "dataset", 3, n_targets=1, first_target=0, cache_dir=tmp_path / "cache"
    )
    target = own.with_format("torch")["targets"][:]
    assert torch.equal(target[:, 0], rows("mlp_out", 3))
    with safe_open(tmp_path / "dataset" / "statistics.safetensors", "pt") as statistics:
        mean = statistics.get_tensor("mlp_out_mean")[0]
    assert torch.allclose(mean, rows("mlp_out", 0).mean(0), atol=1e-6)


def test_some_layers_with_their_own_mlp_output(tmp_path):
    """A target fewer than the files hold, unless the layers after them are there."""
    folder = write(tmp_path / "pt", layers=(1, 2), n_targets=2)
    manifest = import_pt(folder, tmp_path / "dataset", n_layers=4, first_target=0)
    assert manifest.configs == ["default"]
    check_splits(tmp_path / "dataset", {1: [2, 3], 2: [3]})
    folder = write(tmp_path / "apart", layers=(0, 2), n_targets=2)
    import_pt(folder, tmp_path / "apart-dataset", n_layers=4, first_target=0)
    check_splits(tmp_path / "apart-dataset", {0: [1, 2], 2: [3]})
    folder = write(tmp_path / "alone", layers=(0,), n_targets=3)
    import_pt(folder, tmp_path / "alone-dataset", n_layers=4, first_target=0)
    check_splits(tmp_path / "alone-dataset", {0: [1, 2]})
    folder = write(tmp_path / "last", layers=(2, 3))
    manifest = import_pt(folder, tmp_path / "last-dataset", n_layers=4, first_target=0)
    check_splits(tmp_path / "last-dataset", {2: [3]})
    assert any("The x of layer 3 is left out" in said for said in manifest.warnings)


@pytest.mark.parametrize(
    ("layers", "match"),
    [
        ((0, 1), "no MLP output of the layer after L1"),
        ((1, 3), "no MLP output of the layer after L1"),
        ((3,), "only the last layer of a model of 4"),
    ],
)
def test_no_target_after_a_layer(tmp_path, layers, match):
    """Same-layer pairs of a part of the model, where a layer has no target after it."""
    folder = write(tmp_path / "pt", layers=layers)
    with pytest.raises(ActivationsError, match=match):
        import_pt(folder, tmp_path / "dataset", n_layers=4, first_target=0)
    assert not (tmp_path / "dataset").exists()


def test_what_is_assumed_is_said(tmp_path, cli):
    """Layers 0 and 1 of four with one target each look like a whole model of three."""
    folder = write(tmp_path / "pt", layers=(0, 1), first_target=1)
    manifest = import_pt(folder, tmp_path / "dataset")
    assert manifest.recipe.n_layers == 3 and manifest.configs == ["default", "all_layers"]
    assert any("of a model of 3 decoder layers" in said for said in manifest.warnings)
    assert any("the MLP output of the next layer" in said for said in manifest.warnings)
    result = cli("import", folder, tmp_path / "by-command")
    assert "note: Taken for layers of a model of 3 decoder layers" in result.stdout
    result = cli("import", folder, tmp_path / "told", "--n-layers", 4, "--first-target", 1)
    assert result.returncode == 0, result.stderr
    assert "Taken for" not in result.stdout and "is taken for" not in result.stdout
    told = load_dataset(str(tmp_path / "told"))
    assert list(told) == ["L0", "L1"]
    assert import_pt(folder, tmp_path / "again", n_layers=4).recipe.n_layers == 4
    assert not (tmp_path / "again" / "all_layers").exists()


def test_fewer_layers_than_the_files_show(tmp_path, write_samples_layout):
    folder = write(tmp_path / "pt", n_targets=2)
    for n_layers, match in ((3, "layer 3, so the model has more than 3"), (0, "at least 1")):
        with pytest.raises(ActivationsError, match=match):
            import_pt(folder, tmp_path / "dataset", n_layers=n_layers, first_target=0)
    write_samples_layout(tmp_path / "samples")
    with pytest.raises(ActivationsError, match="layer 2, so the model has more than 2"):
        import_pt(tmp_path / "samples", tmp_path / "dataset", n_layers=2)
    with pytest.raises(ActivationsError, match="have no targets"):
        import_pt(tmp_path / "samples", tmp_path / "dataset", first_target=0)
    manifest = import_pt(tmp_path / "samples", tmp_path / "dataset", n_layers=7)
    assert manifest.recipe.n_layers == 7


def test_export_from_the_layer_itself_comes_back(small_dataset, tmp_path):
    """export.json says first_target=0: the dataset is the one that was exported."""
    export(small_dataset, tmp_path / "pt", layout="layers", first_target=0)
    manifest = import_pt(tmp_path / "pt", tmp_path / "dataset")
    assert manifest.configs == ["default", "all_layers"]
    assert not any("taken for" in said.lower() for said in manifest.warnings)
    for config, split in (("L0", "L0"), ("L2", "L2"), ("all_layers", "train")):
        first = load_dataset(str(small_dataset), config, split=split)
        second = load_dataset(str(tmp_path / "dataset"), config, split=split)
        columns = [name for name in first.column_names if name.startswith(("x", "targets", "mlp"))]
        assert len(columns) in (2, 8)
        for column in columns:
            assert first[column][:] == second[column][:]
    for argument, given in (("first_target", 1), ("n_layers", 5)):
        with pytest.raises(ActivationsError, match=f"exported with {argument}="):
            import_pt(tmp_path / "pt", tmp_path / "new", **{argument: given})


@pytest.mark.parametrize(
    "change",
    [
        {"first_target": 7},
        {"first_target": "0"},
        {"layers": 3},
        {"recipe": []},
        {"recipe": {"format_version": "1.0", "n_layers": "many"}},
        {"data_sha256": 5},
        {"format": "tensors"},
    ],
)
def test_export_note_that_was_changed(small_dataset, tmp_path, change):
    """export.json is read into typed values: one sentence that names it."""
    export(small_dataset, tmp_path / "pt", layout="layers")
    path = tmp_path / "pt" / "export.json"
    note = {**json.loads(path.read_text()), **change}
    path.write_text(json.dumps({**note, "self_sha256": seal(note)}))
    with pytest.raises(ActivationsError, match=r"export\.json"):
        import_pt(tmp_path / "pt", tmp_path / "dataset")
    with pytest.raises(ActivationsError, match=r"export\.json"):
        export(small_dataset, tmp_path / "pt", layout="layers")


def test_export_note_has_its_own_checksum(small_dataset, tmp_path):
    """A recipe that was changed is none that `export` wrote; release 1.0 wrote no checksum."""
    export(small_dataset, tmp_path / "pt", layout="layers")
    path = tmp_path / "pt" / "export.json"
    note = json.loads(path.read_text())
    assert note["self_sha256"] == seal(note)
    changed = {**note, "recipe": {**note["recipe"], "model": "another/model"}}
    for key in (None, "self_sha256", "format_version"):
        damaged = {name: value for name, value in changed.items() if name != key}
        path.write_text(json.dumps(damaged))
        with pytest.raises(ActivationsError, match=r"export\.json .*checksum"):
            import_pt(tmp_path / "pt", tmp_path / "dataset")
    old = {name: changed[name] for name in note if name not in ("self_sha256", "format_version")}
    path.write_text(json.dumps(old))
    assert import_pt(tmp_path / "pt", tmp_path / "dataset").recipe.model == "another/model"
