"""A `.pt` folder is read once: whatever is checked or written is, while its files are open."""

import pytest
import torch

import builder.pt.layers_folder as layers_folder
import builder.pt.samples_folder as samples_folder
from builder.import_pt import import_pt
from llava_amber_activations import ActivationsError
from llava_amber_activations.parsing.safe_pt import check_pt


@pytest.fixture
def checked(monkeypatch):
    """The files whose values were checked, in order; `checked.then(path)` is called after each."""

    class Checked(list):
        then = staticmethod(lambda path: None)

    checked = Checked()

    def check(path, *, values=True):
        has_checksums = check_pt(path, values=values)
        if values:
            checked.append(path)
            checked.then(path)
        return has_checksums

    for module in (layers_folder, samples_folder):
        monkeypatch.setattr(module, "check_pt", check)
    return checked


def same_shards(first, second):
    shards = sorted(path.relative_to(first) for path in first.rglob("*.parquet"))
    assert shards and shards == sorted(p.relative_to(second) for p in second.rglob("*.parquet"))
    for shard in shards:
        assert (first / shard).read_bytes() == (second / shard).read_bytes(), shard


SHAPES = tuple((2, 3, 8) for _ in range(6))


def test_batches_that_are_gone_once_they_were_read(write_layers, tmp_path, checked):
    """When a batch is opened, those two before it are overwritten with nothing: none is missed."""
    write_layers(tmp_path / "kept", shapes=SHAPES)
    import_pt(tmp_path / "kept", tmp_path / "expected")
    checked.clear()
    write_layers(tmp_path / "pt", shapes=SHAPES)

    def empty_those_before(path):
        number = int(path.name.split("_")[1])
        for old in (tmp_path / "pt").rglob(f"batch_{number - 2}_?.pt"):
            old.unlink(missing_ok=True)
            old.touch()

    checked.then = empty_those_before
    import_pt(tmp_path / "pt", tmp_path / "dataset")
    same_shards(tmp_path / "expected", tmp_path / "dataset")
    assert sorted(checked) == sorted((tmp_path / "pt").rglob("*.pt")), "each once"
    numbers = [int(path.name.split("_")[1]) for path in checked]
    assert numbers == sorted(numbers)


def test_samples_that_are_gone_once_they_were_read(write_samples_layout, tmp_path, checked):
    """Of all layers at once; a row group of 64 rows waits for the files that it is made from."""
    lengths = (40,) * 8
    write_samples_layout(tmp_path / "kept", lengths=lengths)
    import_pt(tmp_path / "kept", tmp_path / "expected")
    checked.clear()
    write_samples_layout(tmp_path / "pt", lengths=lengths)
    paths = sorted((tmp_path / "pt").iterdir())

    def empty_those_before(path):
        number = paths.index(path)
        for old in paths[max(0, number - 3) : max(0, number - 2)]:
            old.unlink()
            old.touch()

    checked.then = empty_those_before
    import_pt(tmp_path / "pt", tmp_path / "dataset")
    same_shards(tmp_path / "expected", tmp_path / "dataset")
    assert checked == paths


@pytest.mark.parametrize("layout", ["layers", "samples"])
def test_a_folder_is_looked_through_without_its_values(
    write_layers, write_samples_layout, tmp_path, checked, layout
):
    """The values of every file are damaged, and only the import of them finds it."""
    write, scan = write_layers, layers_folder.scan_layers
    if layout == "samples":
        write, scan = write_samples_layout, samples_folder.scan_samples
    write(tmp_path / "pt")
    for path in (tmp_path / "pt").rglob("*.pt"):
        content = bytearray(path.read_bytes())
        (tensor, *_) = tensors_in(torch.load(path, weights_only=True))
        content[content.index(tensor.numpy().tobytes()) + 17] ^= 0x10
        path.write_bytes(content)
    scan(tmp_path / "pt")
    with pytest.raises(ActivationsError, match="is truncated or damaged"):
        import_pt(tmp_path / "pt", tmp_path / "dataset")
    assert [path.name for path in tmp_path.iterdir()] == ["pt"]


def tensors_in(value):
    """Yield the tensors of a loaded file."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from tensors_in(each)


def test_a_file_that_changes_between_the_two_looks(write_layers, tmp_path, checked):
    """Its shape was another when the folder was looked through."""
    write_layers(tmp_path / "pt", shapes=SHAPES)
    changed = tmp_path / "pt" / "L1" / "batch_3_x.pt"

    def change(path):
        if path.name == "batch_0_x.pt":
            torch.save({"x": torch.zeros(2, 4, 8)}, changed)

    checked.then = change
    with pytest.raises(ActivationsError, match=r"L1/batch_3_x\.pt changed while it was imported"):
        import_pt(tmp_path / "pt", tmp_path / "dataset")
    assert [path.name for path in tmp_path.iterdir()] == ["pt"]


@pytest.mark.parametrize("num_proc", [1, 3, 9])
def test_the_same_files_whatever_writes_at_once(write_layers, tmp_path, num_proc):
    """Row groups and shards that end where no batch does."""
    shapes = ((5, 7, 8), (3, 9, 8), (30, 1, 8), (4, 20, 8), (1, 150, 8))
    write_layers(tmp_path / "pt", shapes=shapes)
    import_pt(tmp_path / "pt", tmp_path / "one", max_shard_size="10kB", num_proc=1)
    import_pt(tmp_path / "pt", tmp_path / "many", max_shard_size="10kB", num_proc=num_proc)
    same_shards(tmp_path / "one", tmp_path / "many")
    assert len(list((tmp_path / "one" / "data").glob("L0-*"))) > 1
