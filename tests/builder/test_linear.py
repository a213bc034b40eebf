"""What is done for every shard or batch does not grow with the number of samples or files."""

import dataclasses
import pickle

import pytest
from random_store import make_random_store

import builder.pt.layers_folder as layers_folder
import builder.pt.samples_folder as samples_folder
from builder.contents.store_rows import store_contents
from llava_amber_activations.store.layout import read_recipe
from llava_amber_activations.store.samples import read_samples


def test_what_is_sent_to_a_process_with_every_shard(tmp_path):
    """The ids and names of all samples were: here of 4 samples and of 400, in two chunks."""
    sizes = []
    for n_samples in (4, 400):
        store = make_random_store(tmp_path / f"of-{n_samples}", n_samples, width=2)
        contents = store_contents(store, read_recipe(store), read_samples(store))
        leading = contents.reader(None).leading(range(n_samples))
        assert leading["id"].to_pylist() == [1 + number for number in range(n_samples)]
        expected = [f"AMBER_{1 + number}.jpg" for number in range(n_samples)]
        assert leading["image"].to_pylist() == expected
        sizes.append(len(pickle.dumps(contents)))
    # The folder's name and the numbers of rows have more digits.
    assert abs(sizes[1] - sizes[0]) < 16


class Counted(tuple):
    """A tuple that counts how many of its items are looked at."""

    looked_at = 0

    def __iter__(self):
        for each in super().__iter__():
            Counted.looked_at += 1
            yield each

    def __getitem__(self, place):
        found = super().__getitem__(place)
        Counted.looked_at += len(found) if isinstance(place, slice) else 1
        return found


@pytest.fixture
def counted(monkeypatch):
    monkeypatch.setattr(Counted, "looked_at", 0)


def test_batches_are_opened_without_counting_those_before_them(write_layers, tmp_path, counted):
    """All of them: each batch summed up the samples of all earlier ones."""
    shapes = ((1, 1, 8),) * 150
    write_layers(tmp_path / "pt", layers=(2,), shapes=shapes)
    found = layers_folder.scan_layers(tmp_path / "pt")
    found = dataclasses.replace(found, shapes=Counted(found.shapes))
    for number in range(len(shapes)):
        assert found.open_part(number)["x_02"].shape == (1, 8)
    # Twice for each of two tensors, and once for the sum.
    assert Counted.looked_at <= 5 * len(shapes)


def test_leading_columns_look_at_every_sample_once(
    write_layers, write_samples_layout, tmp_path, counted
):
    """Whatever the number of row groups that they are asked for."""
    lengths = (1, 3, 2) * 50
    write_layers(tmp_path / "layers", layers=(2,), shapes=[(1, n, 8) for n in lengths])
    write_samples_layout(tmp_path / "samples", lengths=lengths)
    layers = layers_folder.scan_layers(tmp_path / "layers")
    layers = dataclasses.replace(layers, shapes=Counted(layers.shapes))
    samples = samples_folder.scan_samples(tmp_path / "samples")
    samples = dataclasses.replace(samples, rows_of_samples=Counted(samples.rows_of_samples))
    expected = [sample for sample, n in enumerate(lengths) for _ in range(n)]
    for folder in (layers, samples):
        Counted.looked_at = 0
        rows = range(0, sum(lengths), 2)
        found = [folder.leading(range(row, row + 2))["sample"].to_pylist() for row in rows]
        assert [sample for group in found for sample in group] == expected
        assert Counted.looked_at <= 3 * len(lengths)
