"""Damaged `.pt` files: refused by their checksums, or said to have none."""

import pytest
import torch

from builder.import_pt import import_pt
from builder.pt.layers_layout import read_x
from llava_amber_activations import ActivationsError

LEGACY = {"_use_new_zipfile_serialization": False}


def test_each_flipped_byte_of_an_archive(tmp_path):
    """One after the other: refused, or the values that were written. None imports silently."""
    path = tmp_path / "file.pt"
    values = torch.arange(48.0).view(2, 3, 8)
    torch.save({"x": values}, path)
    content = path.read_bytes()
    outcomes = {"right": 0, "refused": 0}
    for at in range(len(content)):
        for bits in (0x01, 0x80):
            damaged = bytearray(content)
            damaged[at] ^= bits
            path.write_bytes(damaged)
            try:
                found = read_x(path)
            except ActivationsError as error:
                assert "file.pt" in str(error)
                outcomes["refused"] += 1
            else:
                assert torch.equal(found, values), at
                outcomes["right"] += 1
    assert outcomes["refused"] > 2 * values.nbytes


def test_flipped_value_is_not_imported(tmp_path, write_layers):
    """The bits of a value in the middle of a file, in each of its files in turn."""
    values = write_layers(tmp_path / "pt", layers=(0,))
    for name in values:
        path = tmp_path / "pt" / name
        content = path.read_bytes()
        damaged = bytearray(content)
        tensor = values[name].get("x", values[name].get("y"))
        damaged[content.index(tensor.numpy().tobytes()) + 17] ^= 0x10
        path.write_bytes(damaged)
        with pytest.raises(ActivationsError, match=f"{name} is truncated or damaged"):
            import_pt(tmp_path / "pt", tmp_path / "dataset")
        assert not (tmp_path / "dataset").exists()
        path.write_bytes(content)
    import_pt(tmp_path / "pt", tmp_path / "dataset")


@pytest.mark.parametrize("how", ["old", "without"])
def test_files_without_checksums_are_said_to_be(tmp_path, write_layers, write_samples_layout, how):
    """Files of torch before 1.6, and such as were told to leave the checksums out."""
    kept = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(how != "without")
    try:
        write_layers(tmp_path / "pt", **(LEGACY if how == "old" else {}))
    finally:
        torch.serialization.set_crc32_options(kept)
    assert "12 of the .pt files have no checksums" in warnings_of(tmp_path / "pt", tmp_path / "a")
    write_layers(tmp_path / "with")
    write_samples_layout(tmp_path / "samples")
    for folder in ("with", "samples"):
        said = warnings_of(tmp_path / folder, tmp_path / f"{folder}-dataset")
        assert "checksums" not in said


def warnings_of(folder, dataset):
    return " ".join(import_pt(folder, dataset).warnings)
