"""Exports: documented keys, shapes and dtypes, written out; values bit for bit the store's."""

import pytest
import torch
from safetensors.torch import load_file

from builder.build import build
from builder.export import export
from llava_amber_activations import ActivationsError


@pytest.fixture(scope="module")
def last_tensors(last_store):
    chunks = [load_file(path) for path in sorted((last_store / "chunks").iterdir())]
    return {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]}


@pytest.fixture(scope="module")
def all_tensors(all_store):
    chunks = [load_file(path) for path in sorted((all_store / "chunks").iterdir())]
    return {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]}


def test_layers_layout(last_dataset, last_tensors, tmp_path):
    """Every key, shape and dtype of the documented layout, for 8 samples of one position."""
    export(last_dataset, tmp_path / "pt", layout="layers", batch_size=5)
    folders = sorted(path.name for path in (tmp_path / "pt").iterdir())
    assert folders == sorted(["export.json", *(f"L{layer}" for layer in range(31))])
    assert sorted(path.name for path in (tmp_path / "pt" / "L0").iterdir()) == [
        "batch_0_x.pt",
        "batch_0_y.pt",
        "batch_1_x.pt",
        "batch_1_y.pt",
    ]
    for layer, n_targets in ((0, 16), (15, 16), (16, 15), (30, 1)):
        for batch, rows in ((0, slice(0, 5)), (1, slice(5, 8))):
            x = torch.load(tmp_path / "pt" / f"L{layer}" / f"batch_{batch}_x.pt", weights_only=True)
            y = torch.load(tmp_path / "pt" / f"L{layer}" / f"batch_{batch}_y.pt", weights_only=True)
            n = rows.stop - rows.start
            assert list(x) == ["x"]
            assert x["x"].shape == (n, 1, 64) and x["x"].dtype == torch.float32
            assert list(y) == ["y", "targets", "n_targets"]
            assert y["n_targets"] == n_targets and len(y["targets"]) == n_targets
            assert torch.equal(y["y"], y["targets"][0])
            assert torch.equal(x["x"][:, 0], last_tensors[f"x_{layer:02d}"][rows])
            for k, target in enumerate(y["targets"]):
                assert target.shape == (n, 1, 64) and target.dtype == torch.float32
                expected = last_tensors[f"mlp_out_{layer + 1 + k:02d}"][rows]
                assert torch.equal(target[:, 0], expected)


def test_batches_hold_samples_of_equal_length(all_dataset, all_tensors, tmp_path):
    """Unequal samples never share a file, equal neighbours do, nothing is padded."""
    export(all_dataset, tmp_path / "pt", layout="layers", layers="7", n_targets=2)
    lengths = torch.bincount(all_tensors["sample"]).tolist()
    assert lengths[0] == lengths[4] and len(set(lengths)) > 3
    files = sorted((tmp_path / "pt" / "L7").glob("*_x.pt"), key=lambda p: int(p.name.split("_")[1]))
    row = 0
    for number, path in enumerate(files):
        x = torch.load(path, weights_only=True)["x"]
        y = torch.load(path.with_name(f"batch_{number}_y.pt"), weights_only=True)
        n, t = x.shape[:2]
        assert [t] * n == lengths[:n]
        lengths = lengths[n:]
        flat = x.reshape(n * t, 64)
        assert torch.equal(flat, all_tensors["x_07"][row : row + n * t])
        for k, target in enumerate(y["targets"]):
            expected = all_tensors[f"mlp_out_{8 + k:02d}"][row : row + n * t]
            assert torch.equal(target.reshape(n * t, 64), expected)
        row += n * t
    assert lengths == []


def test_samples_layout(last_dataset, all_dataset, last_tensors, all_tensors, tmp_path):
    """[H] for a sample of one position, [T, H] for more; integer keys 0 … 30."""
    export(last_dataset, tmp_path / "last", layout="samples")
    export(all_dataset, tmp_path / "all", layout="samples")
    names = [f"sample_{number:04d}.pt" for number in range(8)]
    assert sorted(p.name for p in (tmp_path / "last").iterdir()) == ["export.json", *names]
    for sample, name in enumerate(names):
        value = torch.load(tmp_path / "last" / name, weights_only=True)
        assert list(value) == ["activations"]
        assert list(value["activations"]) == list(range(31))
        for layer, tensor in value["activations"].items():
            assert tensor.shape == (64,) and tensor.dtype == torch.float32
            assert torch.equal(tensor, last_tensors[f"x_{layer:02d}"][sample])
        value = torch.load(tmp_path / "all" / name, weights_only=True)
        rows = all_tensors["sample"] == sample
        for layer, tensor in value["activations"].items():
            assert torch.equal(tensor, all_tensors[f"x_{layer:02d}"][rows])


def test_options(last_dataset, last_tensors, tmp_path):
    """Layers, the number of targets, targets from L itself, padding past the last layer."""
    out = tmp_path / "own"
    export(last_dataset, out, layout="layers", layers="0,29-31", n_targets=3, first_target=0)
    assert sorted(p.name for p in out.iterdir()) == ["L0", "L29", "L30", "L31", "export.json"]
    for layer, targets in ((0, [0, 1, 2]), (30, [30, 31]), (31, [31])):
        y = torch.load(out / f"L{layer}" / "batch_0_y.pt", weights_only=True)
        for found, target in zip(y["targets"], targets, strict=True):
            assert torch.equal(found[:, 0], last_tensors[f"mlp_out_{target:02d}"])
    out = tmp_path / "padded"
    export(last_dataset, out, layout="layers", layers="29", n_targets=4, pad_targets=True)
    y = torch.load(out / "L29" / "batch_0_y.pt", weights_only=True)
    assert y["n_targets"] == 4 and len(y["targets"]) == 4
    assert torch.equal(y["targets"][1][:, 0], last_tensors["mlp_out_31"])
    for target in y["targets"][2:]:
        assert target.shape == (8, 1, 64) and not target.any()


def test_without_all_layers(last_store, last_dataset, tmp_path):
    """From a folder that has only the layers' own splits: the same files."""
    build(last_store, tmp_path / "dataset", configs=["default"])
    for layout in ("layers", "samples"):
        export(last_dataset, tmp_path / "a", layout=layout, layers="3-5")
        export(tmp_path / "dataset", tmp_path / "b", layout=layout, layers="3-5")
        files = sorted((tmp_path / "a").rglob("*.pt"))
        assert files
        for path in files:
            again = tmp_path / "b" / path.relative_to(tmp_path / "a")
            assert path.read_bytes() == again.read_bytes()
        for folder in ("a", "b"):
            (tmp_path / folder).rename(tmp_path / f"{folder}-{layout}")
    with pytest.raises(ActivationsError, match="first_target=0 cannot be had"):
        export(tmp_path / "dataset", tmp_path / "c", layout="layers", layers="3", first_target=0)


def test_run_again(last_dataset, tmp_path):
    """Completes what is missing, leaves what is there, refuses other options and other folders."""
    out = tmp_path / "pt"
    options = {"layout": "layers", "layers": "1,2", "batch_size": 3}
    export(last_dataset, out, **options)
    whole = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.rglob("*.pt")}
    (out / "L2" / "batch_1_y.pt").unlink()
    result = export(last_dataset, out, **options)
    assert (result.n_files, result.n_written) == (12, 2)
    for path, (content, time) in whole.items():
        assert path.read_bytes() == content
        if path.parent.name == "L1":
            assert path.stat().st_mtime_ns == time
    with pytest.raises(ActivationsError, match="another n_targets"):
        export(last_dataset, out, **options, n_targets=2)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(ActivationsError, match="already holds something"):
        export(last_dataset, tmp_path / "mine", layout="layers")
    with pytest.raises(ActivationsError, match=r"layers \[40\] are not in this data"):
        export(last_dataset, tmp_path / "new", layout="layers", layers="40")
    assert not (tmp_path / "new").exists()
