"""Files whose names are not quite the documented ones: opened by the names that they have."""

import pytest
import torch

from builder.import_pt import import_pt
from llava_amber_activations import ActivationsError


def rename(folder, pattern, change):
    for path in sorted(folder.rglob(pattern), reverse=True):
        path.rename(path.with_name(change(path.name)))


def same_shards(first, second):
    shards = sorted(path.relative_to(first) for path in first.rglob("*.parquet"))
    assert shards and shards == sorted(p.relative_to(second) for p in second.rglob("*.parquet"))
    for shard in shards:
        assert (first / shard).read_bytes() == (second / shard).read_bytes()


@pytest.mark.parametrize(
    "changes",
    [
        [("L?", lambda name: f"L0{name[1:]}")],
        [("batch_*", lambda name: name.replace("batch_", "batch_00"))],
        [("batch_0_x.pt", lambda name: "batch_000_x.pt")],
        [
            ("batch_*", lambda name: name.replace("batch_", "batch_0")),
            ("L?", lambda name: f"L00{name[1:]}"),
        ],
    ],
)
def test_numbers_with_zeros_before_them(write_layers, tmp_path, changes):
    write_layers(tmp_path / "plain")
    write_layers(tmp_path / "zeros")
    for pattern, change in changes:
        rename(tmp_path / "zeros", pattern, change)
    import_pt(tmp_path / "plain", tmp_path / "a")
    import_pt(tmp_path / "zeros", tmp_path / "b")
    same_shards(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize("digits", [1, 5, 9])
def test_sample_files_of_other_widths(write_samples_layout, tmp_path, digits):
    write_samples_layout(tmp_path / "plain")
    write_samples_layout(tmp_path / "other")
    rename(tmp_path / "other", "*.pt", lambda name: f"sample_{int(name[7:11]):0{digits}d}.pt")
    import_pt(tmp_path / "plain", tmp_path / "a")
    import_pt(tmp_path / "other", tmp_path / "b")
    same_shards(tmp_path / "a", tmp_path / "b")


def refused(folder, dataset, match):
    with pytest.raises(ActivationsError, match=match):
        import_pt(folder, dataset)
    assert not dataset.exists()


def test_two_names_of_one_number(write_layers, write_samples_layout, tmp_path):
    """Which of them is meant cannot be known."""
    dataset = tmp_path / "dataset"
    write_layers(tmp_path / "folders")
    write_layers(tmp_path / "other", layers=(1,))
    (tmp_path / "other" / "L1").rename(tmp_path / "folders" / "L01")
    refused(tmp_path / "folders", dataset, "L01 and L1, two names of one number")
    write_layers(tmp_path / "pt")
    for kind in "xy":
        path = tmp_path / "pt" / "L1" / f"batch_1_{kind}.pt"
        path.with_name(f"batch_01_{kind}.pt").write_bytes(path.read_bytes())
        refused(tmp_path / "pt", dataset, rf"batch_01_{kind}\.pt and batch_1_{kind}\.pt, two")
        path.with_name(f"batch_01_{kind}.pt").unlink()
    write_samples_layout(tmp_path / "samples")
    path = tmp_path / "samples" / "sample_0001.pt"
    path.with_name("sample_00001.pt").write_bytes(path.read_bytes())
    refused(tmp_path / "samples", dataset, r"sample_00001\.pt and sample_0001\.pt, two names")


def test_targets_without_x(write_layers, tmp_path):
    """In every layer alike: no batch is left out in silence."""
    write_layers(tmp_path / "pt")
    for layer in range(3):
        (tmp_path / "pt" / f"L{layer}" / "batch_1_x.pt").unlink()
    refused(tmp_path / "pt", tmp_path / "dataset", r"L0/batch_1_x\.pt is missing")


def test_numbers_that_no_dataset_holds(write_layers, write_samples_layout, tmp_path):
    dataset = tmp_path / "dataset"
    write_layers(tmp_path / "pt", layers=(0,))
    (tmp_path / "pt" / "L0").rename(tmp_path / "pt" / "L10000")
    refused(tmp_path / "pt", dataset, "L10000 is of no layer")
    write_samples_layout(tmp_path / "samples")
    path = tmp_path / "samples" / "sample_0002.pt"
    path.rename(path.with_name("sample_2147483648.pt"))
    refused(tmp_path / "samples", dataset, r"sample_2147483648\.pt has a number over 2147483647")
    path.with_name("sample_2147483648.pt").rename(path.with_name("sample_2147483647.pt"))
    import_pt(tmp_path / "samples", dataset)


@pytest.mark.parametrize("layer", [-1, 10_000, 2**70, True, 1.0])
def test_layer_numbers_inside_a_sample_file(write_samples_layout, tmp_path, layer):
    write_samples_layout(tmp_path / "pt")
    value = {"activations": {0: torch.zeros(8), layer: torch.zeros(8)}}
    torch.save(value, tmp_path / "pt" / "sample_0001.pt")
    refused(tmp_path / "pt", tmp_path / "dataset", r"sample_0001\.pt names the layer")
