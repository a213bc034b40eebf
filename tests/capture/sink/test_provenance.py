"""The recipe says what decides the values, and a store is finished only by what it was begun by."""

import hashlib
import json
import shutil
from dataclasses import replace
from importlib.metadata import version

import pytest
import torch
from safetensors import safe_open

from capture.sink.provenance import device_names, local_weights_sha256
from llava_amber_activations import ActivationsError
from llava_amber_activations.files.checksums import files_sha256
from llava_amber_activations.store.layout import read_recipe, write_recipe


def contents_of(store):
    return {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}


def header_of(path):
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["chunk"])


def test_the_recipe_names_what_decides(last_store, tiny_llava):
    """Each against what Python, the machine and the files say of themselves."""
    value = json.loads((last_store / "capture.json").read_text(encoding="utf-8"))
    assert (value["batch_size"], value["auto_batch_size"]) == (5, False)
    assert (value["compile"], value["reuse_prefix"]) == (False, False)
    assert value["versions"] == {
        "torch": torch.__version__,
        **{name: version(name) for name in ("transformers", "tokenizers", "numpy", "pillow")},
    }
    assert value["device"].endswith(f" ({torch.backends.cpu.get_cpu_capability()})")
    lines = [
        f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n"
        for path in sorted(tiny_llava.iterdir())
        if path.is_file()
    ]
    assert any(line.startswith("model.safetensors ") for line in lines)
    assert value["weights_sha256"] == hashlib.sha256("".join(lines).encode()).hexdigest()
    assert value["revision"] is None and value["dataset_revision"] is None


# torch's own call, when it first compiles.
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"batch_size": 4}, r"batch_size \(5, not 4\)"),
        ({"batch_size": None}, r"batch_size \(5, not None\), auto_batch_size \(False, not True\)"),
        ({"compile": True}, r"compile \(False, not True\)"),
        ({"reuse_prefix": True}, r"reuse_prefix \(False, not True\)"),
    ],
)
def test_options_that_change_the_last_bits_are_refused(make_store, last_store, option, said):
    """Into the same store; nothing in it changes."""
    before = contents_of(last_store)
    with pytest.raises(ActivationsError, match=said):
        make_store(last_store, **option)
    assert contents_of(last_store) == before


def test_other_weights_are_refused(make_store, tiny_llava, tmp_path):
    """A local folder whose weights changed between two runs, one byte of them."""
    model = tmp_path / "model"
    shutil.copytree(tiny_llava, model)
    store = make_store(tmp_path / "store", model=str(model))
    weights = model / "model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    with pytest.raises(ActivationsError, match="weights_sha256"):
        make_store(store, model=str(model))


def test_a_run_that_goes_on_decides_as_the_first_one_did(
    make_store, image_dir, query_file, tmp_path
):
    """Prefixes are reused for the first chunk's sake: so they are when only the last is missing."""
    entries = json.loads(query_file.read_text())
    entries[1]["image"] = entries[0]["image"]
    queries = tmp_path / "queries.json"
    queries.write_text(json.dumps(entries))
    store = make_store(tmp_path / "store", dataset=queries, batch_size=None)
    assert read_recipe(store).reuse_prefix is True
    before = contents_of(store)
    (store / "chunks" / "chunk-00002.safetensors").unlink()
    (store / "samples.jsonl").unlink()
    make_store(store, dataset=queries, batch_size=None)
    assert contents_of(store) == before
    make_store(store, dataset=queries, batch_size=None)
    assert contents_of(store) == before


@pytest.mark.parametrize(("batch_size", "recorded"), [(5, 5), (2, 2), (None, 3)])
def test_a_chunk_says_its_batch_size(make_store, tmp_path, batch_size, recorded):
    """Also the last and shorter one."""
    store = make_store(tmp_path / "store", batch_size=batch_size)
    headers = [header_of(path) for path in sorted((store / "chunks").iterdir())]
    assert [header["batch_size"] for header in headers] == [recorded] * 3


def test_one_checksum_of_many_files(tmp_path):
    """By their names in order, whatever order they are found in; names and bytes both count."""
    for name, text in (("b.bin", b"1"), ("a.bin", b"2"), ("c.bin", b"3")):
        (tmp_path / name).write_bytes(text)
    paths = sorted(tmp_path.iterdir())
    sums = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    text = "".join(f"{path.name} {digest}\n" for path, digest in zip(paths, sums, strict=True))
    expected = hashlib.sha256(text.encode()).hexdigest()
    assert files_sha256(tmp_path, paths) == files_sha256(tmp_path, reversed(paths)) == expected
    paths[0].rename(tmp_path / "d.bin")
    assert files_sha256(tmp_path, tmp_path.iterdir()) != expected


def test_models_of_the_hub_have_no_checksum():
    assert local_weights_sha256("llava-hf/llava-1.5-7b-hf") is None


def test_devices_of_one_kind_have_one_name():
    one = device_names([torch.device("cpu")])
    assert one == device_names([torch.device("cpu")] * 3) and one
    assert device_names([torch.device("meta"), torch.device("cpu")]) == ", ".join(
        sorted([one, "meta"])
    )


def test_a_store_of_another_format_is_not_gone_on_with(make_store, last_store, tmp_path):
    """Its pictures were read otherwise: one sentence, and nothing in it changes."""
    store = tmp_path / "store"
    shutil.copytree(last_store, store)
    write_recipe(store, replace(read_recipe(store), format_version="1.0"))
    (store / "chunks" / "chunk-00002.safetensors").unlink()
    before = contents_of(store)
    with pytest.raises(ActivationsError, match=r"captured in format 1\.0, and .* format 1\.1"):
        make_store(store)
    assert contents_of(store) == before


def test_sites_of_a_store(make_store, tmp_path):
    """A store begun before recipes had sites is gone on with; one of other sites is not."""
    store = make_store(tmp_path / "store")
    path = store / "capture.json"
    recipe = json.loads(path.read_text(encoding="utf-8"))
    assert recipe["sites"] == {
        "x": "input of post_attention_layernorm",
        "mlp_out": "output of mlp",
    }
    for sites, is_same in ((None, True), ({"x": "input of mlp", "mlp_out": "?"}, False)):
        (store / "chunks" / "chunk-00001.safetensors").unlink()
        path.write_text(json.dumps({**recipe, "sites": sites}), encoding="utf-8")
        if is_same:
            make_store(store)
            assert json.loads(path.read_text(encoding="utf-8"))["sites"] == recipe["sites"]
        else:
            with pytest.raises(ActivationsError, match="another recipe: sites"):
                make_store(store)
