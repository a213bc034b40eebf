"""`.pt` folders into datasets: round trips, the origin's own variants, and hostile files."""

import json
import os

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from datasets import load_dataset

from builder.export import export
from builder.import_pt import import_pt
from llava_amber_activations import ActivationsError, load_activations


def same_files(first, second):
    """Assert that two exports hold the same .pt files, byte for byte."""
    names = sorted(path.relative_to(first) for path in first.rglob("*.pt"))
    assert names and names == sorted(path.relative_to(second) for path in second.rglob("*.pt"))
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


@pytest.mark.parametrize("positions", ["last", "all"])
@pytest.mark.parametrize("layout", ["layers", "samples"])
def test_round_trip(request, tmp_path, positions, layout):
    """dataset → .pt → dataset → .pt: the same bytes, and the recipe's site travels along."""
    dataset = request.getfixturevalue(f"{positions}_dataset")
    export(dataset, tmp_path / "one", layout=layout, batch_size=5)
    manifest = import_pt(tmp_path / "one", tmp_path / "dataset")
    export(tmp_path / "dataset", tmp_path / "two", layout=layout, batch_size=5)
    same_files(tmp_path / "one", tmp_path / "two")
    expected = ["default", "all_layers"] if layout == "layers" else ["clt_features"]
    assert manifest.configs == expected
    for path in (tmp_path / "dataset").rglob("*.parquet"):
        footer = pq.read_metadata(path)
        entry = manifest.files[path.relative_to(tmp_path / "dataset").as_posix()]
        groups = [footer.row_group(number).num_rows for number in range(footer.num_row_groups)]
        assert list(entry.row_groups or ()) == groups
    assert manifest.recipe.x_site == "resid_mid"
    assert manifest.recipe.origin == f"import of .pt files ({layout} layout)"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_values_of_every_dtype(tmp_path, dtype):
    """float16 stays, bfloat16 becomes float32 without a change of value."""
    write_layers(tmp_path / "pt", dtype=dtype)
    import_pt(tmp_path / "pt", tmp_path / "dataset")
    rows = load_dataset(str(tmp_path / "dataset"), "L3", split="L3").with_format("arrow")[:]
    x = rows["x"].combine_chunks().flatten().to_numpy().reshape(-1, 8)
    expected = torch.cat([batch_tensor(3, 0, b, dtype).reshape(-1, 8) for b in range(2)])
    assert x.dtype == (np.float16 if dtype == torch.float16 else np.float32)
    assert np.array_equal(x, expected.float().numpy().astype(x.dtype))


def batch_tensor(layer, target, batch, dtype=torch.float32, shape=(3, 2, 8)):
    """Distinct values for each layer, target and batch; target 0 is x, k is mlp_out(layer + k)."""
    kind = layer if target == 0 else 1000 + layer + target
    generator = torch.Generator().manual_seed(10 * kind + batch)
    return torch.randn(shape, generator=generator).to(dtype)


def write_layers(folder, layers=range(6), n_targets=3, n_layers=7, dtype=torch.float32, pad=False):
    """Write the `layers` layout as the origin's script does: a model of seven layers."""
    for layer in layers:
        (folder / f"L{layer}").mkdir(parents=True)
        for batch in range(2):
            n = min(n_targets, n_layers - 1 - layer)
            targets = [batch_tensor(layer, 1 + k, batch, dtype) for k in range(n)]
            if pad:
                targets += [torch.zeros_like(targets[0]) for _ in range(n_targets - n)]
            x = {"x": batch_tensor(layer, 0, batch, dtype)}
            y = {"y": targets[0], "targets": targets, "n_targets": len(targets)}
            torch.save(x, folder / f"L{layer}" / f"batch_{batch}_x.pt")
            torch.save(y, folder / f"L{layer}" / f"batch_{batch}_y.pt")


def test_padded_targets_are_left_out(tmp_path):
    """Zeros past the last layer are no targets; the dataset is that of the unpadded folder."""
    write_layers(tmp_path / "padded", pad=True)
    write_layers(tmp_path / "plain")
    import_pt(tmp_path / "padded", tmp_path / "a")
    import_pt(tmp_path / "plain", tmp_path / "b")
    for layer, n_targets in ((0, 3), (3, 3), (4, 2), (5, 1)):
        row = load_dataset(str(tmp_path / "a"), f"L{layer}", split=f"L{layer}")[0]
        assert len(row["targets"]) == n_targets
    for path in sorted((tmp_path / "a").rglob("*.parquet")):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()


def test_variants_of_the_origin(tmp_path):
    """A bare tensor, the key `data`, [N, 1, T, H], a lone `y`, and files that are not zip."""
    folder = tmp_path / "pt"
    (folder / "L0").mkdir(parents=True)
    x = [batch_tensor(0, 0, batch) for batch in range(4)]
    y = [batch_tensor(0, 1, batch) for batch in range(4)]
    torch.save(x[0], folder / "L0" / "batch_0_x.pt")
    torch.save({"data": x[1]}, folder / "L0" / "batch_1_x.pt")
    torch.save({"x": x[2].unsqueeze(1)}, folder / "L0" / "batch_2_x.pt")
    old = {"_use_new_zipfile_serialization": False}
    torch.save({"x": x[3]}, folder / "L0" / "batch_3_x.pt", **old)
    torch.save({"y": y[0]}, folder / "L0" / "batch_0_y.pt")
    torch.save(y[1], folder / "L0" / "batch_1_y.pt")
    torch.save({"y": y[2], "targets": [y[2].unsqueeze(1)]}, folder / "L0" / "batch_2_y.pt")
    torch.save({"y": y[3]}, folder / "L0" / "batch_3_y.pt", **old)
    manifest = import_pt(folder, tmp_path / "dataset")
    assert manifest.recipe.n_layers == 2 and manifest.n_rows == 4 * 3 * 2
    layer = load_activations(tmp_path / "dataset", 0, cache_dir=tmp_path / "cache")
    assert np.array_equal(layer.with_format("numpy")["x"][:], torch.cat(x).reshape(-1, 8).numpy())
    found = np.array(layer["targets"][:], dtype=np.float32)[:, 0]
    assert np.array_equal(found, torch.cat(y).reshape(-1, 8).numpy())
    assert layer["sample"][:4] == [0, 0, 1, 1] and layer["position"][:4] == [0, 1, 0, 1]


def test_some_layers_only(tmp_path):
    """Without every layer there is no all_layers, and a layer reads from its own split."""
    write_layers(tmp_path / "pt", layers=(1, 4))
    manifest = import_pt(tmp_path / "pt", tmp_path / "dataset")
    assert manifest.configs == ["default"]
    assert list(load_dataset(str(tmp_path / "dataset"))) == ["L1", "L4"]
    row = next(iter(load_activations(tmp_path / "dataset", 4, n_targets=1, streaming=True)))
    assert row["targets"] == [batch_tensor(4, 1, 0)[0, 0].tolist()]


def test_published_sample_files(tmp_path):
    """31 float32 vectors a file become config clt_features, bit for bit."""
    (tmp_path / "pt").mkdir()
    for sample in range(5):
        activations = {layer: batch_tensor(layer, 0, sample, shape=(16,)) for layer in range(31)}
        torch.save({"activations": activations}, tmp_path / "pt" / f"sample_{sample:04d}.pt")
    import_pt(tmp_path / "pt", tmp_path / "dataset")
    splits = load_dataset(str(tmp_path / "dataset"), "clt_features")
    assert list(splits) == [f"L{layer}" for layer in range(31)]
    assert splits["L30"]["sample"][:] == [0, 1, 2, 3, 4]
    for sample, features in enumerate(splits["L30"]["features"][:]):
        assert features == batch_tensor(30, 0, sample, shape=(16,)).tolist()


class Hostile:
    """What an attacker pickles: unpickling it would make a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def refused(folder, dataset, match):
    before = sorted(dataset.parent.rglob("*"))
    with pytest.raises(ActivationsError, match=match) as caught:
        import_pt(folder, dataset)
    assert sorted(dataset.parent.rglob("*")) == before
    return str(caught.value)


@pytest.mark.parametrize("name", ["batch_0_x.pt", "batch_1_y.pt"])
def test_code_is_not_executed(tmp_path, cli, name):
    """A pickle that would run code is refused, by name, and has not run."""
    write_layers(tmp_path / "pt", layers=(0,))
    marker = tmp_path / "executed"
    torch.save({"x": Hostile(marker)}, tmp_path / "pt" / "L0" / name)
    assert name in refused(tmp_path / "pt", tmp_path / "dataset", "could run code")
    assert not marker.exists()
    result = cli("import", tmp_path / "pt", tmp_path / "dataset")
    assert result.returncode == 1 and len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("error: ") and name in result.stderr
    assert not marker.exists() and not (tmp_path / "dataset").exists()


def test_code_in_a_sample_file_is_not_executed(tmp_path):
    (tmp_path / "pt").mkdir()
    torch.save({"activations": Hostile(tmp_path / "m")}, tmp_path / "pt" / "sample_0000.pt")
    assert "sample_0000.pt" in refused(tmp_path / "pt", tmp_path / "dataset", "could run code")
    assert not (tmp_path / "m").exists()


def test_truncated_file(tmp_path, cli):
    write_layers(tmp_path / "pt", layers=(0,))
    path = tmp_path / "pt" / "L0" / "batch_1_y.pt"
    path.write_bytes(path.read_bytes()[:-200])
    assert "batch_1_y.pt" in refused(tmp_path / "pt", tmp_path / "dataset", "truncated or damaged")
    result = cli("import", tmp_path / "pt", tmp_path / "dataset")
    assert result.returncode == 1 and len(result.stderr.splitlines()) == 1
    assert "batch_1_y.pt is truncated or damaged" in result.stderr


def test_files_that_do_not_fit_together(tmp_path):
    """A batch without targets, layers of other batches or samples, doubles, no layout at all."""
    dataset = tmp_path / "dataset"
    folder = tmp_path / "pt"
    write_layers(folder)
    (folder / "L2" / "batch_1_y.pt").rename(folder / "L2" / "aside")
    refused(folder, dataset, r"batch_1_y\.pt is missing")
    (folder / "L2" / "aside").rename(folder / "L2" / "batch_1_y.pt")
    (folder / "L2" / "batch_1_x.pt").rename(folder / "L2" / "aside")
    refused(folder, dataset, r"differ in their batches \[1\]")
    (folder / "L2" / "aside").unlink()
    torch.save({"x": torch.zeros(3, 3, 8)}, folder / "L2" / "batch_1_x.pt")
    refused(folder, dataset, r"batch_1_y.*must be equal")
    torch.save({"x": torch.zeros(3, 2, 8).double()}, folder / "L2" / "batch_1_x.pt")
    refused(folder, dataset, r"batch_1_x\.pt is torch\.float64")
    torch.save({"x": torch.zeros(6, 8)}, folder / "L2" / "batch_1_x.pt")
    refused(folder, dataset, r"shape \[6, 8\]")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", dataset, "no layout that is known")
    refused(tmp_path / "absent", dataset, "does not exist")


def test_recipe_of_a_foreign_folder_is_unknown(tmp_path):
    write_layers(tmp_path / "pt")
    import_pt(tmp_path / "pt", tmp_path / "dataset")
    recipe = json.loads((tmp_path / "dataset" / "manifest.json").read_text())["recipe"]
    assert recipe["x_site"] is None and recipe["model"] is None
    assert (recipe["n_layers"], recipe["n_targets"], recipe["n_samples"]) == (7, 3, 6)
