"""`capture --layers`: the vectors of some layers, against an independent pass; and resuming."""

import dataclasses
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from builder.verify import verify
from capture.beforehand import check_capture, check_capture_room
from capture.model.named import NamedModel
from capture.recapture import recapture
from capture.samples.queries import Query
from capture.settings import CaptureSettings
from llava_amber_activations import ActivationsError
from llava_amber_activations.cli.app import assemble
from llava_amber_activations.files import room
from llava_amber_activations.store.layout import read_recipe

KEPT = (0, 2, 3, 31)


@pytest.fixture(scope="module")
def kept_store(make_store):
    """Finished store of the last positions of four layers."""
    return make_store(layers=KEPT)


@pytest.fixture
def settings(tiny_llava, query_file, image_dir):
    """Function that returns settings of a capture."""

    def make(output_dir, **overrides):
        return CaptureSettings(str(tiny_llava), query_file, image_dir, output_dir, **overrides)

    return make


def test_the_kept_vectors_are_those_of_the_independent_pass(
    kept_store, reference, image_dir, query_file
):
    """x and mlp_out of the kept layers, by plain hooks; and no others in the chunk."""
    chunk = load_file(kept_store / "chunks" / "chunk-00000.safetensors")
    names = {f"{kind}_{layer:02d}" for kind in ("x", "mlp_out") for layer in KEPT}
    assert {name for name in chunk if name.startswith(("x_", "mlp_out_"))} == names
    entries = json.loads(query_file.read_text())[:3]
    for sample, entry in enumerate(entries):
        single = reference.run(image_dir / entry["image"], entry["query"])
        for layer in KEPT:
            for name, expected in (
                (f"x_{layer:02d}", single.resid_mid[layer][-1]),
                (f"mlp_out_{layer:02d}", single.mlp_out[layer][-1]),
            ):
                error = (chunk[name][sample] - expected).norm() / expected.norm()
                assert error < 1e-4, name


def test_the_recipe_names_them_and_the_store_is_right(kept_store):
    """`layers` in capture.json; `verify` finds what it expects; the norms are those of all."""
    recipe = json.loads((kept_store / "capture.json").read_text())
    assert recipe["layers"] == list(KEPT)
    assert verify(kept_store).n_rows == 8
    assert len(load_file(kept_store / "norms.safetensors")["weight"]) == 32


def test_recaptured(kept_store, tiny_llava, image_dir):
    """The kept vectors, captured again, are the same."""
    again = recapture(
        kept_store,
        model=str(tiny_llava),
        image_dir=image_dir,
        n_samples=2,
        seed=0,
        device=torch.device("cpu"),
    )
    assert len(again.samples) == 2
    assert again.largest_error < 1e-5


def test_resumed_with_other_layers(kept_store, settings):
    """Other layers, or all, are another recipe; the same ones are the same."""
    same = settings(kept_store, layers=KEPT, batch_size=5, chunk_samples=3)
    assert len(check_capture(same).queries) == 8
    for layers in ((0, 2), None):
        with pytest.raises(
            ActivationsError, match=r"another recipe: layers \(\[0, 2, 3, 31\], not"
        ):
            check_capture(dataclasses.replace(same, layers=layers))


def test_interrupted_and_run_again(kept_store, make_store, tmp_path):
    """A missing chunk is made again: the files are those of the undisturbed run."""
    store = tmp_path / "store"
    shutil.copytree(kept_store, store)
    for name in ("chunks/chunk-00001.safetensors", "samples.jsonl", "SHA256SUMS"):
        (store / name).unlink()
    make_store(store, layers=KEPT)
    for path in kept_store.rglob("*"):
        if path.is_file() and not path.name.startswith("."):
            assert (store / path.relative_to(kept_store)).read_bytes() == path.read_bytes()


def test_every_layer_named_is_all_of_them(last_store, settings):
    """A store that was begun without the option goes on with each layer named, 0-31."""
    every = settings(last_store, layers=tuple(range(32)), batch_size=5, chunk_samples=3)
    assert len(check_capture(every).queries) == 8
    assert read_recipe(last_store).layers is None


def test_layers_that_the_model_lacks(settings, tmp_path):
    """They are refused before the model is loaded."""
    with pytest.raises(ActivationsError, match=r"\[32, 40\] are not in this model: it has 0 to 31"):
        check_capture(settings(tmp_path / "store", layers=(0, 32, 40)))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "'' is not a list of layers"),
        ("3-2", "the layers 3-2 run backwards: write 2-3"),
        ("one", "'one' is not a list of layers: write 5, 0-30 or 0,5,10-12"),
        ("0,99999999999", r"[99999999999] are not in any model"),
        ("31-33", "layers [32, 33] are not in this model: it has 0 to 31"),
    ],
)
def test_what_is_no_list_of_its_layers(tiny_llava, query_file, image_dir, tmp_path, text, said):
    """One sentence, and nothing is written."""
    command = ["capture", "--model", tiny_llava, "--dataset", query_file, "--image-dir", image_dir]
    command += ["--output-dir", tmp_path / "store", "--layers", text]
    result = CliRunner().invoke(assemble(), list(map(str, command)))
    assert isinstance(result.exception, ActivationsError)
    assert said in str(result.exception)
    assert not (tmp_path / "store").exists()


def test_the_room_is_that_of_the_kept_layers(settings, tmp_path, monkeypatch):
    """A disk with room for four layers of 32 takes a capture of four, and none of all."""
    model = NamedModel(n_layers=32, hidden_size=64)
    needed = 8 * 2 * len(KEPT) * 64 * 2
    monkeypatch.setattr(room, "free_bytes", lambda path: needed)
    queries = [Query(number, 0, "1.jpg", "Why?") for number in range(8)]
    check_capture_room(settings(tmp_path / "store", layers=KEPT), queries, model)
    with pytest.raises(ActivationsError, match="a capture of 8 samples"):
        check_capture_room(settings(tmp_path / "store"), queries, model)
