"""Bad input to `llava-amber capture`: exit 1, one line, no traceback, nothing written."""

import json
import shutil

import pytest


@pytest.fixture
def attempt(cli, tiny_llava, image_dir, query_file, tmp_path):
    """Function that captures with some options changed and returns the one line of its failure."""

    def run(**changed):
        options = {
            "model": tiny_llava,
            "dataset": query_file,
            "image-dir": image_dir,
            "output-dir": tmp_path / "store",
            **{name.replace("_", "-"): value for name, value in changed.items()},
        }
        result = cli("capture", *(part for k, v in options.items() for part in (f"--{k}", v)))
        assert result.returncode == 1, result.stderr
        assert result.stdout == ""
        assert "Traceback" not in result.stderr
        lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1 and result.stderr.rstrip().endswith(lines[0])
        return lines[0]

    return run


def entries(path, *changes):
    """Write a query file of one good entry, changed."""
    entry = {"id": 1, "image": "AMBER_1.jpg", "query": "Describe this image."}
    for change in changes:
        entry.update(change)
    path.write_text(json.dumps([{k: v for k, v in entry.items() if v is not None}]))
    return path


def test_missing_image(attempt, tmp_path):
    queries = entries(tmp_path / "q.json", {"image": "absent.jpg"})
    line = attempt(dataset=queries)
    assert "absent.jpg of sample 0 is missing" in line
    assert not (tmp_path / "store").exists()


def test_unreadable_image(attempt, image_dir, tmp_path):
    images = tmp_path / "images"
    shutil.copytree(image_dir, images)
    (images / "AMBER_2.jpg").write_bytes(b"\x00" * 100)
    line = attempt(image_dir=images)
    assert "AMBER_2.jpg of sample 1 cannot be read as a picture" in line
    assert not (tmp_path / "store").exists()


def test_picture_that_breaks_off(attempt, image_dir, tmp_path):
    """Its header is right, so only decoding finds it: what was captured before it stays."""
    images = tmp_path / "images"
    shutil.copytree(image_dir, images)
    picture = images / "AMBER_5.jpg"
    picture.write_bytes(picture.read_bytes()[: picture.stat().st_size // 2])
    line = attempt(image_dir=images, chunk_samples=2)
    assert "AMBER_5.jpg of sample 4 cannot be read as a picture" in line
    chunks = sorted(path.name for path in (tmp_path / "store" / "chunks").iterdir())
    assert chunks == ["chunk-00000.safetensors", "chunk-00001.safetensors"]


@pytest.mark.parametrize("name", ["../secret.jpg", "/etc/passwd", "a/../../b.jpg", "C:\\x.jpg"])
def test_path_that_leaves_the_image_folder(attempt, tmp_path, name):
    line = attempt(dataset=entries(tmp_path / "q.json", {"image": name}))
    assert "leaves the image folder" in line and "sample 0" in line
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{not json", "is not JSON"),
        ('{"id": 1}', "not a list"),
        ("[]", "is empty"),
        ('[{"id": 1, "image": "AMBER_1.jpg"}]', "lacks the key 'query'"),
        ('[{"id": "1", "image": "AMBER_1.jpg", "query": "?"}]', "'id' of entry 0"),
        ('["AMBER_1.jpg"]', "is not an object"),
    ],
)
def test_query_file(attempt, tmp_path, text, said):
    queries = tmp_path / "q.json"
    queries.write_text(text)
    line = attempt(dataset=queries)
    assert said in line and "q.json" in line
    assert not (tmp_path / "store").exists()


def test_missing_query_file(attempt, tmp_path):
    assert "absent.json" in attempt(dataset=tmp_path / "absent.json")


def test_output_folder_that_holds_something_else(attempt, tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "thesis.tex").write_text("dear reader")
    assert "not a capture store" in attempt()
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["thesis.tex"]


def test_store_of_another_recipe(attempt, make_store, tmp_path):
    make_store(tmp_path / "store")
    line = attempt(n_targets=4, chunk_samples=3)
    assert "n_targets (16, not 4)" in line
    assert json.loads((tmp_path / "store" / "capture.json").read_text())["n_targets"] == 16


def test_no_such_model(attempt, tmp_path):
    (tmp_path / "model").mkdir()
    assert "cannot load the model" in attempt(model=tmp_path / "model")
    assert not (tmp_path / "store").exists()


def test_value_that_the_store_cannot_hold(attempt, tiny_llava, tmp_path):
    """Weights that overflow float16: the sample and the layer are named, nothing is stored."""
    from safetensors.torch import load_file, save_file

    model = tmp_path / "hot"
    shutil.copytree(tiny_llava, model)
    weights = load_file(model / "model.safetensors")
    name = next(key for key in weights if "layers.7.mlp.down_proj" in key)
    weights[name] *= 1e6
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    line = attempt(model=model, store_dtype="float16")
    assert "mlp_out_07 of sample 0" in line and "float16" in line
    assert not list((tmp_path / "store").glob("chunks/*"))


def test_truncated_chunk(attempt, make_store, tmp_path):
    """Neither taken for whole nor written over."""
    store = make_store(tmp_path / "store")
    chunk = store / "chunks" / "chunk-00001.safetensors"
    chunk.write_bytes(chunk.read_bytes()[:-100])
    before = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    line = attempt(batch_size=5, chunk_samples=3)
    assert "chunk-00001.safetensors is damaged" in line and "delete it" in line
    assert {path: path.read_bytes() for path in store.rglob("*") if path.is_file()} == before
