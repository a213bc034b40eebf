"""verify of a store: read by pieces, each tensor once, whatever a chunk's size."""

import re
import shutil
import threading

import pytest
import torch
from format_1_0 import make_store_1_0
from peak_memory import mib_taken
from safetensors.torch import load_file

import builder.verify
from builder.verify import verify
from llava_amber_activations import ActivationsError
from llava_amber_activations.console.progress import Progress
from llava_amber_activations.formats.recipe import Recipe
from llava_amber_activations.store import tensor_file
from llava_amber_activations.store.chunk import write_chunk
from llava_amber_activations.store.finish import finish_store
from llava_amber_activations.store.layout import chunk_path, write_recipe
from llava_amber_activations.store.samples import SampleRecord, read_samples

# Of the smallest store, two rows and a half: pieces end inside rows.
PIECE = 80


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(tensor_file, "_PIECE_BYTES", PIECE)


@pytest.fixture(params=["1.1", "1.0"])
def store(request, small_store, tmp_path):
    """A copy of a store to damage, of either format; its chunks have 4, 3 and 2 rows."""
    shutil.copytree(small_store, tmp_path / "store")
    return make_store_1_0(tmp_path / "store") if request.param == "1.0" else tmp_path / "store"


@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_memory_does_not_grow_with_a_chunk(tmp_path, version):
    """One chunk of 192 MiB, in tensors of 48: a few MiB are held."""
    store, rows, width = tmp_path / "store", 6, 2**22
    recipe = Recipe(
        n_layers=2,
        hidden_size=width,
        n_targets=1,
        store_dtype="float16",
        n_samples=1,
        chunk_samples=1,
    )
    write_recipe(store, recipe)
    vector = torch.ones(rows, width, dtype=torch.float16)
    tensors = {f"{kind}_0{layer}": vector for kind in ("x", "mlp_out") for layer in (0, 1)}
    tensors = {name: each.clone() for name, each in tensors.items()}
    for name in ("sample", "position", "token_id"):
        tensors[name] = torch.zeros(rows, dtype=torch.int32)
    record = SampleRecord(0, 1, "AMBER_1.jpg", "Describe.", "0" * 64, rows)
    write_chunk(chunk_path(store, 0), tensors, [record])
    del tensors
    finish_store(store, recipe)
    if version == "1.0":
        make_store_1_0(store)
    imports = "import builder.verify\nfrom builder.contents import chunk_checks, store_rows"
    assert mib_taken(imports, "builder.verify.verify(Path(sys.argv[1]))", store) < 32


def test_each_byte_is_read_once(store, small_pieces, monkeypatch):
    """Bytes are hashed and looked at on one way, and the progress counts them all."""
    read, counted = [], []
    fill, update = tensor_file.TensorFile._fill, Progress.update

    def filled(file, raw, into):
        read.append(len(into))
        fill(file, raw, into)

    def updated(progress, n=1, note=None):
        counted.append(n)
        update(progress, n, note)

    monkeypatch.setattr(tensor_file.TensorFile, "_fill", filled)
    monkeypatch.setattr(Progress, "update", updated)
    verify(store)
    chunks = sorted((store / "chunks").iterdir())
    assert sum(read) == sum(each.nbytes for path in chunks for each in load_file(path).values())
    assert max(read) == PIECE
    assert sum(counted) == sum(path.stat().st_size for path in chunks)


def test_any_flipped_byte_of_a_tensor(store, small_pieces):
    """In a first, a middle and a last piece; the sentence names the tensor where it can."""
    path = store / "chunks" / "chunk-00000.safetensors"
    content = path.read_bytes()
    x = load_file(path)["x_02"].numpy().tobytes()
    begin, called = content.index(x), "it" if "SHA256SUMS" not in listed(store) else "x_02"
    match = rf"chunk-00000\.safetensors is damaged \({called} is not as it was written, its SHA-256"
    for at in range(begin, begin + len(x)):
        path.write_bytes(content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :])
        with pytest.raises(ActivationsError, match=match):
            verify(store)


def listed(folder):
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("row", range(3))
def test_a_value_that_is_not_finite_in_any_piece(small_store, tmp_path, small_pieces, row, value):
    shutil.copytree(small_store, tmp_path / "store")
    path = tmp_path / "store" / "chunks" / "chunk-00001.safetensors"
    tensors = load_file(path)
    for column in (0, 7):
        tensors["x_01"][row, column] = float(value)
    tensors["mlp_out_00"][0, 0] = float("nan")
    records = [SampleRecord(**vars(record)) for record in read_samples(tmp_path / "store")[2:4]]
    write_chunk(path, tensors, records)
    # Of two, the one that is read first; also where another has the checksum.
    match = rf"^x_01 of {re.escape(str(path))} has values that are not finite$"
    with pytest.raises(ActivationsError, match=match):
        verify(tmp_path / "store")
    make_store_1_0(tmp_path / "store")
    with pytest.raises(ActivationsError, match=match):
        verify(tmp_path / "store")


def test_the_first_of_several_damages_is_named(small_store, tmp_path):
    """Whichever thread finds one first: chunk by chunk, in a chunk by the tensors' names."""
    shutil.copytree(small_store, tmp_path / "store")
    for chunk, names in ((2, ("mlp_out_00",)), (1, ("x_03", "mlp_out_02", "x_00"))):
        path = tmp_path / "store" / "chunks" / f"chunk-0000{chunk}.safetensors"
        content = path.read_bytes()
        for name in names:
            found = load_file(path)[name].numpy().tobytes()
            content = content.replace(found, found[:-1] + bytes([found[-1] ^ 1]))
        path.write_bytes(content)
    for _ in range(20):
        with pytest.raises(ActivationsError, match=r"chunk-00001\S* is damaged .mlp_out_02 is not"):
            verify(tmp_path / "store")


@pytest.fixture
def together(monkeypatch):
    """Function that makes calls of something wait until two of them are under way."""

    def patch(owner, name):
        monkeypatch.setattr("os.cpu_count", lambda: 2)
        original, first_two, met = getattr(owner, name), iter(range(2)), threading.Barrier(2)

        def meeting(*arguments):
            if next(first_two, None) is not None:
                met.wait(60)
            return original(*arguments)

        monkeypatch.setattr(owner, name, meeting)

    return patch


def test_several_tensors_at_once(small_store, together):
    """One at a time, the first would wait for ever for the second."""
    together(tensor_file.TensorFile, "check_tensor")
    assert verify(small_store).n_rows == 9


def test_several_files_of_a_folder_at_once(small_dataset, together):
    together(builder.verify, "sha256_of")
    assert verify(small_dataset).n_rows == 9


def test_a_file_that_is_cut_while_it_is_read(small_store, tmp_path):
    """Its header was right when it was opened."""
    shutil.copytree(small_store, tmp_path / "store")
    path = chunk_path(tmp_path / "store", 0)
    found = tensor_file.TensorFile(path, "chunk", "copy it again")
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ActivationsError, match=r"damaged .it was cut short while it was read"):
        for name in sorted(found.names):
            found.check_tensor(name)
    with pytest.raises(ActivationsError, match=r"damaged .it has no tensor x_99"):
        found.check_tensor("x_99")
