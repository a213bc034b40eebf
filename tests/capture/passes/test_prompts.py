"""Queries that cannot be asked are found before anything runs; odd ones that can are right."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from capture.model.load import CaptureModel, load_model
from capture.passes import preparation
from capture.passes.inputs import all_token_ids, token_ids
from capture.passes.prompts import least_rows, make_prompts
from capture.samples.queries import Query, read_queries
from capture.settings import CaptureSettings
from llava_amber_activations import ActivationsError
from llava_amber_activations.files import room

CPU = torch.device("cpu")


@pytest.fixture
def ask(make_store, tmp_path):
    """Function that captures queries, each on the first photograph, and returns the store."""

    def run(*texts, image="AMBER_1.jpg", **options):
        path = tmp_path / "asked.json"
        path.write_text(
            json.dumps([{"id": n, "image": image, "query": text} for n, text in enumerate(texts)])
        )
        return make_store(tmp_path / "store", dataset=path, **options)

    return run


@pytest.fixture
def no_pass(monkeypatch):
    """No batch reaches the model."""

    def fail(self, inputs):
        raise AssertionError("a forward pass began")

    monkeypatch.setattr(CaptureModel, "on_device", fail)


def records_of(store):
    return [json.loads(line) for line in (store / "samples.jsonl").read_text().splitlines()]


def test_a_picture_token_in_a_query(ask, no_pass, tmp_path):
    with pytest.raises(ActivationsError, match=r"query of sample 1 holds '<image>'.*take it out"):
        ask("Why?", "What is an <image> tag?")
    assert not (tmp_path / "store").exists()


def test_a_picture_token_in_a_query_is_skipped(ask, reference, image_dir):
    """With its reason; the others of its chunk are captured, and their values are right."""
    store = ask("Why?", "<image>", "Count.", on_error="skip", batch_size=2)
    records = records_of(store)
    assert [record["n_rows"] for record in records] == [1, 0, 1]
    assert "query of sample 1 holds '<image>'" in records[1]["error"]
    chunk = load_file(store / "chunks" / "chunk-00000.safetensors")
    for row, query in enumerate(("Why?", "Count.")):
        expected = reference.run(image_dir / "AMBER_1.jpg", query).resid_mid[9][-1]
        assert torch.allclose(chunk["x_09"][row], expected, rtol=1e-3, atol=1e-4)


def test_a_chunk_of_nothing_but_skipped_samples(ask):
    store = ask("<image>", "<image>", "Why?", on_error="skip", chunk_samples=2)
    assert [record["n_rows"] for record in records_of(store)] == [0, 0, 1]
    chunk = load_file(store / "chunks" / "chunk-00000.safetensors")
    assert chunk["x_00"].shape == (0, 64)


def test_a_query_longer_than_the_context(ask, no_pass, tmp_path):
    """A megabyte of text is refused before any pass: 4096 positions, one token a byte."""
    with pytest.raises(ActivationsError, match=r"sample 1 has 10000\d\d tokens .* takes 4096"):
        ask("Why?", "x" * 1_000_000)
    assert not (tmp_path / "store").exists()


def test_a_query_longer_than_the_context_is_skipped(ask):
    store = ask("Why?", "x" * 5000, on_error="skip")
    records = records_of(store)
    assert [record["n_rows"] for record in records] == [1, 0]
    assert "shorten the query" in records[1]["error"]


def test_the_limit_is_exact(ask, tiny_llava, no_pass):
    """The prompt around a query and the picture's four tokens count, and so does a response."""
    model = load_model(str(tiny_llava), dtype="float32", device=CPU)
    around = len(token_ids(model.processor, Query(0, 0, "", "").chat)) - 1 + 4
    fits = Query(0, 0, "", "x" * (4096 - around))
    longer = Query(1, 0, "", fits.query + "x")
    prompts = make_prompts([fits, longer], model, model.context)
    assert list(prompts.unusable) == [1] and "has 4097 tokens" in prompts.unusable[1]
    with pytest.raises(ActivationsError, match=r"takes 4086 at most"):
        ask("x" * 4080, positions="generated", max_new_tokens=10)


def test_a_picture_of_more_tokens_than_fit(ask, monkeypatch):
    """Found when the picture is read, where a small one would have fitted."""
    monkeypatch.setattr("capture.passes.prompts._small_picture_tokens", lambda processor: 0)
    store = ask("Why?", "x" * 4080, on_error="skip", reuse_prefix=False)
    records = records_of(store)
    assert [record["n_rows"] for record in records] == [1, 0]
    assert "the prompt of sample 1 has" in records[1]["error"]


@pytest.mark.parametrize("query", ["", " ", "\n", "\0", "e\u0301 \U0001f600", "</s> [INST]"])
def test_odd_queries_that_can_be_asked(ask, reference, image_dir, query):
    """An empty one too: the values are those of the prompt as it is."""
    chunk = load_file(ask(query) / "chunks" / "chunk-00000.safetensors")
    expected = reference.run(image_dir / "AMBER_1.jpg", query)
    assert chunk["position"].tolist() == [len(expected.input_ids) - 1]
    for layer in (0, 15, 31):
        found = chunk[f"mlp_out_{layer:02d}"][0]
        assert torch.allclose(found, expected.mlp_out[layer][-1], rtol=1e-3, atol=1e-4)


def test_many_prompts_are_tokens_as_each_alone(tiny_llava):
    """Whatever is tokenised together."""
    processor = load_model(str(tiny_llava), dtype="float32", device=CPU).processor
    texts = ["", "Why?", "A longer one, é", "<image>"]
    chats = {text: Query(0, 0, "1.jpg", text).chat for text in texts}
    together = all_token_ids(processor, chats.values())
    for text, chat in chats.items():
        ids = processor.tokenizer(f"USER: <image>\n{text} ASSISTANT:")["input_ids"]
        assert together[chat] == ids == token_ids(processor, chat)


def shapes_of(image_dir, tmp_path):
    """Odd pictures, and what a viewer shows of each as plain RGB, made by hand."""
    with Image.open(image_dir / "AMBER_2.jpg") as image:
        pixels = np.asarray(image.convert("RGB").resize((60, 40)))
    exif = Image.Exif()
    exif[0x0112] = 6
    alpha = np.full((40, 60), 255, np.uint8)
    alpha[:, :30] = 0
    seen = pixels.copy()
    seen[:, :30] = 255
    grey = pixels[..., 0].astype(np.uint16) * 257
    line = np.ascontiguousarray(np.tile(pixels[:1], (1, 70, 1))[:, :4000])
    made = {
        "turned": (Image.fromarray(pixels), {"exif": exif}, np.rot90(pixels, -1)),
        "alpha": (Image.fromarray(np.dstack([pixels, alpha])), {}, seen),
        "deep": (Image.fromarray(grey), {}, np.repeat(pixels[..., :1], 3, axis=-1)),
        "dot": (Image.fromarray(pixels[:1, :1]), {}, pixels[:1, :1]),
        "line": (Image.fromarray(line), {}, line),
        "pole": (Image.fromarray(line.swapaxes(0, 1)), {}, line.swapaxes(0, 1)),
    }
    for name, (image, options, shown) in made.items():
        image.save(tmp_path / f"{name}.png", **options)
        Image.fromarray(np.ascontiguousarray(shown)).save(tmp_path / f"{name}-shown.png")
    return list(made)


def test_odd_pictures_as_a_viewer_shows_them(make_store, reference, image_dir, tmp_path):
    """Through the processor and the model: the values of the plain picture made by hand."""
    names = shapes_of(image_dir, tmp_path)
    queries = tmp_path / "queries.json"
    queries.write_text(
        json.dumps([{"id": 1, "image": f"{name}.png", "query": "Why?"} for name in names])
    )
    options = {"dataset": queries, "image_dir": tmp_path, "chunk_samples": 8}
    store = make_store(tmp_path / "store", **options)
    chunk = load_file(store / "chunks" / "chunk-00000.safetensors")
    for row, name in enumerate(names):
        expected = reference.run(tmp_path / f"{name}-shown.png", "Why?")
        found = chunk["x_20"][row]
        assert torch.allclose(found, expected.resid_mid[20][-1], rtol=1e-3, atol=1e-4), name


@pytest.mark.parametrize(
    ("image", "said"),
    [
        ("a\0b.jpg", r"'a\\x00b\.jpg' of sample 0 has a NUL character"),
        ("folder", r"folder of sample 0 is a folder"),
        ("AMBER_1.jpg/x.jpg", "is missing"),
        ("x" * 300, "cannot be read as a picture"),
    ],
    ids=["nul", "folder", "below a file", "long"],
)
@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_odd_names(ask, image_dir, tmp_path, image, said, on_error):
    """One sentence, or the sample skipped for its reason."""
    images = tmp_path / "images"
    (images / "folder").mkdir(parents=True)
    (images / "AMBER_1.jpg").write_bytes((image_dir / "AMBER_1.jpg").read_bytes())
    options = {"image_dir": images, "image": image, "on_error": on_error}
    if on_error == "stop":
        with pytest.raises(ActivationsError, match=said):
            ask("Why?", **options)
        return
    (record,) = records_of(ask("Why?", **options))
    assert record["n_rows"] == 0 and re.search(said, record["error"])


def test_a_picture_that_the_processor_refuses(make_store, monkeypatch, image_dir, tmp_path):
    """As some do of extreme shapes: its sample is named, or skipped alone."""
    original = preparation.make_inputs

    def choosy(processor, queries, pictures, **options):
        if any(picture.image.width > 100 * picture.image.height for picture in pictures):
            raise ValueError("absolute aspect ratio must be smaller than 100")
        return original(processor, queries, pictures, **options)

    monkeypatch.setattr(preparation, "make_inputs", choosy)
    images = tmp_path / "images"
    images.mkdir()
    Image.new("RGB", (500, 1)).save(images / "line.png")
    (images / "AMBER_1.jpg").write_bytes((image_dir / "AMBER_1.jpg").read_bytes())
    path = tmp_path / "q.json"
    names = ("AMBER_1.jpg", "line.png", "AMBER_1.jpg")
    path.write_text(json.dumps([{"id": 1, "image": name, "query": "Why?"} for name in names]))
    options = {"dataset": path, "image_dir": images, "reuse_prefix": False}
    with pytest.raises(ActivationsError, match=r"line\.png of sample 1 is none .* aspect ratio"):
        make_store(tmp_path / "stop", **options)
    store = make_store(tmp_path / "skip", on_error="skip", **options)
    assert [record["n_rows"] for record in records_of(store)] == [1, 0, 1]


@pytest.mark.parametrize("always", [None, "last"])
@pytest.mark.parametrize("n_drawn", [None, 3])
@pytest.mark.parametrize("mode", ["last", "all", "image", "text"])
def test_rows_are_known_before_the_model_runs(
    make_store, tiny_llava, query_file, tmp_path, mode, n_drawn, always
):
    """As many as are captured; at least as many where a last token may have been drawn already."""
    options = {"positions": mode, "sample_positions": n_drawn, "always": always}
    store = make_store(tmp_path / "store", **options)
    n_rows = sum(record["n_rows"] for record in records_of(store))
    queries, _ = read_queries(query_file)
    model = load_model(str(tiny_llava), dtype="float32", device=CPU)
    settings = CaptureSettings("", "", None, tmp_path, **options)
    counted = least_rows(make_prompts(queries, model, None), queries, settings)
    unsure = always is not None and n_drawn is not None and mode in ("all", "text")
    assert counted <= n_rows <= counted + len(queries) if unsure else counted == n_rows


@pytest.mark.parametrize("force", [False, True])
def test_a_disk_that_all_positions_do_not_fit(make_store, tmp_path, monkeypatch, capsys, force):
    """Nothing is begun there, unless that is asked for; the last tokens alone do fit."""
    usage = shutil.disk_usage(tmp_path)._replace(free=200_000)
    monkeypatch.setattr(room.shutil, "disk_usage", lambda path: usage)
    make_store(tmp_path / "last")
    said = capsys.readouterr().err
    # Eight rows of 64 vectors of 64 float32 values.
    assert "a capture of 8 samples: 8 rows, 131.1 kB; the disk of " in said
    options = {"positions": "all", "force": force}
    if force:
        make_store(tmp_path / "all", **options)
        assert "200.0 kB free: going on all the same" in capsys.readouterr().err
        return
    short = r"a capture of 8 samples takes .* or more, and .* 200.0 kB free: .*--force"
    with pytest.raises(ActivationsError, match=short):
        make_store(tmp_path / "all", **options)
    assert not (tmp_path / "all").exists()


def test_a_capture_that_goes_on_needs_room_for_the_rest(make_store, tmp_path, monkeypatch, capsys):
    """What is there already takes no more."""
    options = {"chunk_samples": 2}
    store = make_store(tmp_path / "store", **options)
    for number in (1, 3):
        (store / "chunks" / f"chunk-{number:05d}.safetensors").unlink()
    (store / "samples.jsonl").unlink()
    capsys.readouterr()
    usage = shutil.disk_usage(tmp_path)._replace(free=70_000)
    monkeypatch.setattr(room.shutil, "disk_usage", lambda path: usage)
    make_store(tmp_path / "store", **options)
    assert "a capture of 4 samples: 4 rows, 65.5 kB; " in capsys.readouterr().err
