"""Every split of a built folder, against the store: counts of targets, and every bit."""

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file


def floats(column):
    """The numbers of a column of lists, or of lists of lists, in order."""
    values = column.combine_chunks()
    while pa.types.is_nested(values.type):
        values = values.flatten()
    return torch.from_numpy(values.to_numpy().copy())


def test_every_layer_has_its_own_x_and_the_targets_after_it(last_dataset, last_store):
    """L0 … L15 have 16 targets, L16 has 15, L30 has one: none is padded, none repeated."""
    chunks = [load_file(path) for path in sorted((last_store / "chunks").iterdir())]
    store = {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]}
    files = sorted(path.name for path in (last_dataset / "data").iterdir())
    assert files == sorted(f"L{layer}-00000-of-00001.parquet" for layer in range(31))
    counts = [16] * 16 + [15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1]
    for layer, n_targets in enumerate(counts):
        table = pq.read_table(last_dataset / "data" / f"L{layer}-00000-of-00001.parquet")
        assert table.num_rows == 8
        assert table["targets"].combine_chunks().value_lengths().to_pylist() == [n_targets] * 8
        assert torch.equal(floats(table["x"]).view(8, 64), store[f"x_{layer:02d}"])
        names = [f"mlp_out_{number:02d}" for number in range(layer + 1, layer + 1 + n_targets)]
        targets = torch.stack([store[name] for name in names], dim=1)
        assert torch.equal(floats(table["targets"]).view(8, n_targets, 64), targets), layer
        for name in ("sample", "position", "token_id"):
            assert table[name].to_pylist() == store[name].tolist()
