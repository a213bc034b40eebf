"""Rows gathered out of Arrow's buffers, against Arrow's own `take`."""

import pickle

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llava_amber_activations import ActivationsError
from llava_amber_activations.formats.arrow_vectors import targets_to_arrow, vectors_to_arrow
from llava_amber_activations.formats.schema import default_schema
from llava_amber_activations.vectors.gather import BatchGather
from llava_amber_activations.vectors.held_rows import (
    HeldRows,
    HeldVectors,
    join_rows,
    rows_of_block,
    rows_of_table,
)


def layer_table(rows, n, width=6, dtype="float16", seed=0):
    """A layer's table, its values all different."""
    generator = np.random.default_rng(seed)
    schema = default_schema(width, dtype, 4)
    columns = []
    for field in schema:
        if field.name == "x":
            columns.append(vectors_to_arrow(generator.standard_normal((rows, width)).astype(dtype)))
        elif field.name == "targets":
            drawn = generator.standard_normal((rows, n, width)).astype(dtype)
            columns.append(targets_to_arrow(drawn))
        elif field.name == "kind":
            kinds = ["text", "image", "generated", "", "something else"]
            columns.append(pa.array([kinds[(seed + row) % 5] for row in range(rows)]))
        elif field.type == pa.string():
            columns.append(pa.array([f"{seed}-{row}" for row in range(rows)]))
        else:
            columns.append(pa.array(generator.integers(0, 999, rows), pa.int32()))
    return pa.Table.from_arrays(columns, schema=schema)


def taken(table, rows):
    """The same rows by Arrow and Python lists."""
    found = table.take(list(rows)).to_pydict()
    columns = {name: np.array(found[name]) for name in found if name != "image"}
    codes = {"text": 0, "image": 1, "generated": 2}
    return {**columns, "kind": np.array([codes.get(name, -1) for name in found["kind"]], np.int32)}


def gathered(held, rows, *, in_parallel=True):
    return BatchGather(in_parallel=in_parallel).batch([(held, np.array(rows, np.int64))])


def check(batch, expected):
    assert batch.keys() == expected.keys()
    for name, tensor in batch.items():
        assert np.array_equal(tensor.numpy(), expected[name].astype(tensor.numpy().dtype))


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
    st.integers(1, 3),
    st.sampled_from(["float16", "float32"]),
    st.booleans(),
    st.data(),
)
def test_any_rows_of_any_chunks(sizes, n, dtype, in_parallel, data):
    """Chunked columns, sliced anywhere: any rows, in any order, also twice."""
    parts = [layer_table(size, n, dtype=dtype, seed=seed) for seed, size in enumerate(sizes)]
    table = pa.concat_tables(parts)
    start = data.draw(st.integers(0, len(table) - 1))
    table = table.slice(start, data.draw(st.integers(1, len(table) - start)))
    rows = data.draw(st.lists(st.integers(0, len(table) - 1), min_size=1, max_size=12))
    batch = gathered(rows_of_table(table), rows, in_parallel=in_parallel)
    assert batch["targets"].shape == (len(rows), n, 6) and batch["x"].dtype == getattr(torch, dtype)
    check(batch, taken(table, rows))


def test_joined_rows():
    """Rows of several tables as if they were one, and nothing is copied for it."""
    tables = [layer_table(3, 2, seed=1), layer_table(4, 2, seed=2)]
    held = join_rows([rows_of_table(table) for table in tables])
    assert len(held) == 7
    check(gathered(held, [6, 0, 3]), taken(pa.concat_tables(tables), [6, 0, 3]))


def test_an_empty_table():
    held = rows_of_table(layer_table(0, 2))
    assert len(held) == 0
    batch = gathered(held, [])
    assert batch["x"].shape == (0, 6) and len(batch["sample"]) == 0


def test_batches_that_are_kept_stay_as_they_are():
    """Memory is used again only when nothing refers to it, a view or numpy's array included."""
    table = layer_table(40, 2)
    gather, held = BatchGather(in_parallel=True), rows_of_table(table)
    kept = [gather.batch([(held, np.arange(n, n + 4))]) for n in range(8)]
    views = [gather.batch([(held, np.arange(n, n + 4))])["x"][1:, :3] for n in range(8, 16)]
    arrays = [gather.batch([(held, np.arange(n, n + 4))])["targets"].numpy() for n in range(16, 24)]
    for n in range(24, 36):
        gather.batch([(held, np.arange(n, n + 4))])
    for n, batch in enumerate(kept):
        check(batch, taken(table, list(range(n, n + 4))))
    for n, view in enumerate(views, start=8):
        assert np.array_equal(view.numpy(), taken(table, range(n + 1, n + 4))["x"][:, :3])
    for n, array in enumerate(arrays, start=16):
        assert np.array_equal(array, taken(table, range(n, n + 4))["targets"])


def test_memory_is_used_again():
    gather, held = BatchGather(in_parallel=True), rows_of_table(layer_table(40, 2))
    addresses = {gather.batch([(held, np.arange(n, n + 4))])["x"].data_ptr() for n in range(30)}
    assert len(addresses) == 1


def test_batches_are_the_callers_own():
    """Writing to one changes neither the data nor the next batch."""
    table = layer_table(4, 1)
    gather, held = BatchGather(in_parallel=True), rows_of_table(table)
    gather.batch([(held, np.arange(4))])["x"].zero_()
    check(gather.batch([(held, np.arange(4))]), taken(table, range(4)))


def test_rows_that_differ_in_their_targets():
    parts = [layer_table(2, 1), layer_table(2, 2)]
    with pytest.raises(ActivationsError, match="differ in their number of targets"):
        rows_of_table(pa.concat_tables(parts))


@pytest.mark.parametrize("value", [None, [None, 1.0]])
def test_missing_values(value):
    column = pa.array([[0.0, 1.0], value], pa.list_(pa.float32(), 2))
    with pytest.raises(ActivationsError, match="is missing"):
        rows_of_table(pa.table({"x": column}))


def test_held_rows_do_not_travel():
    """To another process they would be somebody else's memory."""
    with pytest.raises(TypeError, match="another process"):
        pickle.dumps(rows_of_table(layer_table(2, 1)))


def shifted(array, by):
    """The same array of vectors, its numbers `by` bytes past a multiple of eight."""
    numbers = array.values
    content = numbers.buffers()[1].to_pybytes()[: len(numbers) * numbers.type.bit_width // 8]
    room = bytearray(len(content) + 16)
    begin = -np.frombuffer(room, np.uint8).__array_interface__["data"][0] % 8 + by
    room[begin : begin + len(content)] = content
    buffer = pa.py_buffer(room)[begin : begin + len(content)]
    moved = pa.Array.from_buffers(numbers.type, len(numbers), [None, buffer])
    return pa.FixedSizeListArray.from_arrays(moved, type=array.type)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("by", [0, 1, 2, 3])
def test_buffers_that_do_not_begin_at_an_element(dtype, by):
    """As those of a mapped file may: one chunk is aligned, the other is not."""
    vectors = np.arange(24).reshape(4, 6).astype(dtype)
    whole = vectors_to_arrow(vectors)
    table = pa.table({"x": pa.chunked_array([whole, shifted(whole, by)])})
    batch = gathered(rows_of_table(table), range(8))
    assert np.array_equal(batch["x"].numpy(), np.concatenate([vectors, vectors]))


@pytest.mark.parametrize("other", [{"width": 4}, {"dtype": "float32"}, {"n": 3}], ids=str)
def test_rows_of_other_vectors_are_no_batch(other):
    """Otherwise the second table's vectors would be read past their ends."""
    tables = layer_table(3, 2), layer_table(3, **{"n": 2, **other})
    parts = [(rows_of_table(table), np.arange(3)) for table in tables]
    with pytest.raises(ActivationsError, match=r"differ in their columns.*build or download"):
        BatchGather(in_parallel=True).batch(parts)


@pytest.mark.parametrize("start", [-1, 7, 10**6])
def test_what_is_no_vector_is_not_copied(start):
    """One before, past the last of, and far from the windows of the memory that is held."""
    windows = torch.arange(12, dtype=torch.float16).as_strided((7, 6), (1, 1))
    vectors = HeldVectors(np.zeros(2, np.int64), np.array([[0], [start]]), (6,), np.dtype("f2"))
    with pytest.raises(ActivationsError, match="do not lie where"):
        HeldRows({}, {"x": vectors}, {(6, "<f2"): (windows,)})


def test_lists_that_lie_are_refused():
    """A file whose offsets claim more vectors than there are: pyarrow does not look."""
    targets = targets_to_arrow(np.arange(36, dtype=np.float16).reshape(3, 2, 6))
    table = pa.table({"targets": targets})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    content = sink.getvalue().to_pybytes()
    honest, lying = (np.arange(4, dtype=np.int32) * n for n in (2, 3))
    assert content.count(honest.tobytes()) == 1
    damaged = content.replace(honest.tobytes(), lying.tobytes())
    with pytest.raises(ActivationsError, match="do not lie where"):
        rows_of_table(pa.ipc.open_stream(damaged).read_all())


def test_a_prepared_file_is_one_buffer(tmp_path):
    """Every column of every record batch of a mapped Arrow file: what is held is the mapping."""
    table = pa.concat_tables([layer_table(5, 2, seed=seed) for seed in range(3)])
    path = str(tmp_path / "rows.arrow")
    with pa.OSFile(path, "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    with pa.memory_map(path) as file:
        held = rows_of_table(pa.ipc.open_stream(file).read_all())
    (windows,) = held.windows[6, "<f2"]
    assert len(windows) == (tmp_path / "rows.arrow").stat().st_size // 2 - 5
    check(gathered(held, [14, 0, 7, 7]), taken(table, [14, 0, 7, 7]))


@pytest.mark.parametrize("in_parallel", [False, True])
def test_rows_of_an_array_of_vectors(in_parallel):
    """As pages are decoded: the vectors of a row side by side."""
    block = np.random.default_rng(0).standard_normal((7, 4, 6)).astype(np.float16)
    held = rows_of_block({"sample": np.arange(7)}, block, {"x": (6,), "targets": (3, 6)})
    batch = gathered(held, [6, 2, 2], in_parallel=in_parallel)
    assert np.array_equal(batch["x"].numpy(), block[[6, 2, 2], 0])
    assert np.array_equal(batch["targets"].numpy(), block[[6, 2, 2], 1:])


@pytest.mark.parametrize("in_parallel", [False, True])
def test_a_batch_of_several_parts(in_parallel):
    """Rows of an array, of one table in two pieces, and of another of several chunks."""
    tables = [
        layer_table(5, 2, seed=1),
        pa.concat_tables([layer_table(2, 2, seed=n) for n in (2, 3)]),
    ]
    block = np.random.default_rng(4).standard_normal((3, 3, 6)).astype(np.float16)
    integers = {name: np.arange(3, dtype=np.int32) for name in rows_of_table(tables[0]).numbers}
    first, second = map(rows_of_table, tables)
    third = rows_of_block(integers, block, {"x": (6,), "targets": (2, 6)})
    wanted = [(third, [2, 0]), (first, [4, 3]), (second, [3, 0, 1]), (first, [0])]
    batch = BatchGather(in_parallel=in_parallel).batch(
        [(held, np.array(rows)) for held, rows in wanted]
    )
    for name in ("x", "targets"):
        one, other = (taken(table, range(len(table)))[name] for table in tables)
        own = block[:, 0] if name == "x" else block[:, 1:]
        expected = np.concatenate([own[[2, 0]], one[[4, 3]], other[[3, 0, 1]], one[[0]]])
        assert np.array_equal(batch[name].numpy(), expected.astype(np.float16))


def test_an_empty_part_of_a_batch():
    """A row group of no rows says nothing of how many targets there are."""
    tables = layer_table(0, 2), layer_table(3, 2)
    batch = BatchGather(in_parallel=True).batch(
        [(rows_of_table(table), np.arange(len(table))) for table in tables]
    )
    check(batch, taken(tables[1], [0, 1, 2]))


@pytest.mark.parametrize("kind", ["uint8", "int8", "int64"])
def test_numbers_keep_their_sign(kind):
    """A stranger's column of unsigned numbers is not read as if they had a sign."""
    numbers = np.array([0, 100, np.iinfo(kind).max]).astype(kind)
    held = rows_of_table(pa.table({"n": pa.array(numbers)}))
    assert np.array_equal(held.numbers["n"], numbers)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(numbers), 3)
    batch = gathered(rows_of_table(pa.table({"pixels": lists})), [0])
    assert batch["pixels"].tolist() == [numbers.tolist()]
