"""A chunk's batches in the order of the query file, and what of them is not finite."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from capture.passes.host_copy import HostCopy
from capture.passes.preparation import PlannedBatch, PreparedBatch
from capture.samples.queries import Query
from capture.sink.chunk import CapturedBatch, row_tensors
from capture.sink.joining import FiniteVectors, check_finite, join_chunk
from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.store.layout import vector_names
from llava_amber_activations.vectors.finite import finite_slots

N_LAYERS, WIDTH = 2, 3
MODEL = SimpleNamespace(
    decoder=SimpleNamespace(layers=[None] * N_LAYERS, hidden_size=WIDTH), processor=None
)
NAMES = vector_names(range(N_LAYERS))


def batch_of(samples, generator, finite=False):
    """A batch with the rows of samples in the order given, each value told by its row."""
    rows = torch.tensor([sample for sample, n_rows in samples for _ in range(n_rows)])
    position = torch.tensor([row for _, n_rows in samples for row in range(n_rows)])
    vectors = torch.randn(2 * N_LAYERS, len(rows), WIDTH, generator=generator)
    columns = {name: torch.zeros(len(rows), dtype=torch.int32) for name in row_tensors(())}
    columns |= {"sample": rows.to(torch.int32), "position": position.to(torch.int32)}
    plan = PreparedBatch(PlannedBatch(0, ()))
    said = HostCopy(finite_slots(vectors)) if finite else None
    return CapturedBatch(plan, HostCopy(vectors), columns, finite=said)


def queries_of(n_samples):
    return [Query(sample, sample + 1, "a.jpg", "What?") for sample in range(n_samples)]


@given(st.data())
def test_rows_are_in_the_order_of_the_file(data):
    """However samples are dealt to batches: by a sort of all rows, taken one by one."""
    n_rows = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=9))
    shuffled = data.draw(st.permutations(list(enumerate(n_rows))))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(shuffled)), max_size=3)))
    generator = torch.Generator().manual_seed(0)
    edges = zip([0, *cuts], [*cuts, len(shuffled)], strict=True)
    batches = [batch_of(shuffled[start:stop], generator, finite=True) for start, stop in edges]
    joined = join_chunk(queries_of(len(n_rows)), batches, MODEL, torch.float32)

    rows = [
        (int(sample), int(position), batch.vectors.tensor()[:, row])
        for batch in batches
        for row, (sample, position) in enumerate(
            zip(batch.columns["sample"], batch.columns["position"], strict=True)
        )
    ]
    rows.sort(key=lambda row: row[:2])
    assert torch.cat(joined.pieces["sample"]).tolist() == [row[0] for row in rows]
    assert torch.cat(joined.pieces["position"]).tolist() == [row[1] for row in rows]
    for slot, name in enumerate(NAMES):
        expected = [row[2][slot].tolist() for row in rows]
        assert torch.cat(joined.pieces[name]).tolist() == expected
        assert joined.finite[name].tolist() == [True] * len(rows)
    assert [record.n_rows for record in joined.records] == n_rows


def test_nothing_is_copied():
    """The pieces of vectors are the batches' own memory."""
    generator = torch.Generator().manual_seed(0)
    batches = [batch_of([(1, 2)], generator), batch_of([(0, 1), (2, 3)], generator)]
    joined = join_chunk(queries_of(3), batches, MODEL, torch.float32)
    own = {batch.vectors.tensor().untyped_storage().data_ptr() for batch in batches}
    pieces = joined.pieces["mlp_out_01"]
    assert [len(piece) for piece in pieces] == [1, 2, 3]
    assert {piece.untyped_storage().data_ptr() for piece in pieces} == own


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_the_first_vector_that_is_not_finite_is_named(known, value):
    """In the order in which the model computes them, whichever thread found which first."""
    vectors = {name: torch.ones(4, WIDTH) for name in NAMES}
    vectors["mlp_out_00"][2, 1] = value
    vectors["x_01"][0, 0] = value
    sample = torch.tensor([5, 5, 6, 7], dtype=torch.int32)
    finite = dict(zip(NAMES, finite_slots(torch.stack(list(vectors.values()))), strict=True))
    check = FiniteVectors(range(N_LAYERS), torch.float32, sample, finite if known else None)
    for name in reversed(NAMES):
        for start in (0, 2):
            check.look(name, start, vectors[name][start : start + 2])
    with pytest.raises(ActivationsError, match=r"^mlp_out_00 of sample 6 has a value that torch"):
        check.conclude()
    with pytest.raises(ActivationsError, match=r"^mlp_out_00 of sample 6 "):
        check_finite({**vectors, "sample": sample}, range(N_LAYERS))


def test_what_is_finite_is_left_alone():
    vectors = {name: torch.full((4, WIDTH), 65504.0).half() for name in NAMES}
    check_finite({**vectors, "sample": torch.zeros(4, dtype=torch.int32)}, range(N_LAYERS))
