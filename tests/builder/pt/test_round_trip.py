"""`.pt` → dataset → `.pt`, and store → dataset → `.pt`: the tensors that went in come out."""

import pytest
import torch
from safetensors import safe_open

from builder.build import build
from builder.export import export
from builder.import_pt import import_pt
from builder.verify import verify

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def loaded(folder):
    """Every `.pt` file of a folder by its path, read by torch alone."""
    return {
        path.relative_to(folder).as_posix(): torch.load(path, weights_only=True)
        for path in folder.rglob("*.pt")
    }


def same(first, second):
    """Whether two tensors are of one dtype, one shape and the same bits."""
    return first.dtype == second.dtype and torch.equal(first, second)


@pytest.mark.parametrize("old_format", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_layers(write_layers, tmp_path, dtype, old_format):
    """Batches of three positions and of one, in both of torch's file formats."""
    options = {"_use_new_zipfile_serialization": False} if old_format else {}
    written = write_layers(tmp_path / "in", dtype=dtype, **options)
    import_pt(tmp_path / "in", tmp_path / "dataset")
    export(tmp_path / "dataset", tmp_path / "out", layout="layers")
    found = loaded(tmp_path / "out")
    assert sorted(found) == sorted(written)
    for path, value in found.items():
        if path.endswith("_x.pt"):
            assert list(value) == ["x"]
            assert same(value["x"], written[path]["x"]), path
        else:
            targets = written[path]["targets"]
            assert list(value) == ["y", "targets", "n_targets"]
            assert value["n_targets"] == len(value["targets"]) == len(targets)
            assert same(value["y"], targets[0]), path
            for mine, theirs in zip(value["targets"], targets, strict=True):
                assert same(mine, theirs), path


@pytest.mark.parametrize("lengths", [(1, 1, 1), (3, 1, 2)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_samples(write_samples_layout, tmp_path, dtype, lengths):
    """[H] where a sample has one position, [T, H] where it has more."""
    written = write_samples_layout(tmp_path / "in", dtype=dtype, lengths=lengths)
    import_pt(tmp_path / "in", tmp_path / "dataset")
    export(tmp_path / "dataset", tmp_path / "out", layout="samples")
    found = loaded(tmp_path / "out")
    assert sorted(found) == sorted(written)
    for path, value in found.items():
        assert list(value) == ["activations"]
        assert list(value["activations"]) == [0, 1, 2]
        for layer, tensor in value["activations"].items():
            assert same(tensor, written[path]["activations"][layer]), path


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("first_target", [0, 1])
def test_store(make_small_store, tmp_path, dtype, first_target):
    """x and each target of each layer, against the store as safetensors reads it."""
    store = make_small_store(tmp_path / "store", str(dtype).removeprefix("torch."))
    build(store, tmp_path / "dataset")
    export(tmp_path / "dataset", tmp_path / "out", layout="layers", first_target=first_target)
    found = loaded(tmp_path / "out")
    # Samples of 3, 1, 3 and 2 positions: no two neighbours share a file.
    shapes = [(1, 3, 8), (1, 1, 8), (1, 3, 8), (1, 2, 8)]
    n_layers = 3 if first_target else 4
    assert sorted(found) == sorted(
        f"L{layer}/batch_{batch}_{kind}.pt"
        for layer in range(n_layers)
        for batch in range(4)
        for kind in "xy"
    )
    chunks = [safe_open(path, "pt") for path in sorted((store / "chunks").iterdir())]
    starts = [0, 3, 4, 7, 9]

    def expected(name, batch):
        whole = torch.cat([chunk.get_tensor(name) for chunk in chunks])
        return whole[starts[batch] : starts[batch + 1]].reshape(shapes[batch])

    for layer in range(n_layers):
        first = layer + first_target
        for batch in range(4):
            x = found[f"L{layer}/batch_{batch}_x.pt"]["x"]
            assert same(x, expected(f"x_{layer:02d}", batch))
            targets = found[f"L{layer}/batch_{batch}_y.pt"]["targets"]
            assert len(targets) == min(2, 4 - first)
            for number, target in enumerate(targets, start=first):
                assert same(target, expected(f"mlp_out_{number:02d}", batch))


def test_part_of_a_model_is_known_as_a_part(small_dataset, tmp_path):
    """Layers 0 and 1 of four, one target each, are not taken for a whole model of three."""
    export(small_dataset, tmp_path / "pt", layout="layers", layers="0-1", n_targets=1)
    manifest = import_pt(tmp_path / "pt", tmp_path / "dataset")
    assert manifest.recipe.n_layers == 4
    assert manifest.configs == ["default"]


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        ((torch.float16, torch.float16), torch.float16),
        ((torch.float16, torch.bfloat16), torch.float32),
        ((torch.float16, torch.float32), torch.float32),
        ((torch.bfloat16, torch.float32), torch.float32),
    ],
)
@pytest.mark.parametrize("by", ["batch", "layer", "kind"])
def test_files_of_several_dtypes(write_layers, tmp_path, by, dtypes, expected):
    """The dataset's dtype holds every value exactly, whichever of the files differ."""

    def change(tensor, layer, target, batch):
        # Exact in all three dtypes, so that what several layers share stays the same.
        number = {"batch": batch, "layer": layer % 2, "kind": min(target, 1)}[by]
        return tensor.mul(8).round().to(dtypes[number])

    written = write_layers(tmp_path / "in", change=change)
    import_pt(tmp_path / "in", tmp_path / "dataset")
    export(tmp_path / "dataset", tmp_path / "out", layout="layers")
    found = loaded(tmp_path / "out")
    assert sorted(found) == sorted(written)
    for path, value in found.items():
        mine = [value["x"]] if "x" in value else value["targets"]
        theirs = [written[path]["x"]] if "x" in value else written[path]["targets"]
        for one, other in zip(mine, theirs, strict=True):
            assert one.dtype == expected and torch.equal(one.float(), other.float()), path


def test_a_zero_whose_sign_differs(write_layers, tmp_path):
    """Two layers agree in a value and not in its bits; the dataset holds one of them everywhere."""

    def change(tensor, layer, target, batch):
        if layer + target == 2 and target > 0:
            tensor[0, 0, 3] = -0.0 if layer == 0 else 0.0
        return tensor

    write_layers(tmp_path / "in", change=change)
    import_pt(tmp_path / "in", tmp_path / "dataset")
    verify(tmp_path / "dataset")
