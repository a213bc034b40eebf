"""A tiny model of four layers, and what `capture` and `build` make of the same samples."""

import json

import pytest
import torch

from builder.build import build
from capture import LiveActivations, load_model
from capture.model.tiny_model import make_tiny_llava
from capture.run import capture
from capture.settings import CaptureSettings
from llava_amber_activations import Activations

# Three chunks, the last one short, each of two passes or one.
PASSES = {"chunk_samples": 3, "samples_per_pass": 2}


@pytest.fixture(scope="package")
def small_llava(tmp_path_factory):
    """Folder of a random LLaVA: 4 layers, 64 wide, 4 image tokens."""
    return make_tiny_llava(tmp_path_factory.mktemp("small") / "model", n_layers=4)


@pytest.fixture(scope="package")
def small_model(small_llava):
    """The same, loaded."""
    return load_model(str(small_llava), dtype="float32", device=torch.device("cpu"))


@pytest.fixture(scope="package")
def make_live(small_model, query_file, image_dir):
    """Function that opens the model live; keywords override the options."""

    def make(model=None, dataset=None, **options):
        options = {"image_dir": image_dir, "positions": "all", "mix_rows": 100} | PASSES | options
        return LiveActivations(model or small_model, dataset or query_file, **options)

    return make


@pytest.fixture(scope="package")
def make_disk(small_llava, query_file, image_dir, tmp_path_factory):
    """Function that captures and builds the same; returns it as `Activations`."""

    def make(dataset=None, **options):
        options = {"positions": "all", "image_dir": image_dir} | PASSES | options
        options["batch_size"] = options.pop("samples_per_pass")
        store, folder = tmp_path_factory.mktemp("store") / "store", tmp_path_factory.mktemp("data")
        settings = CaptureSettings(
            model=str(small_llava), dataset=dataset or query_file, output_dir=store, **options
        )
        capture(settings, device=torch.device("cpu"))
        build(store, folder / "dataset")
        return Activations(folder / "dataset")

    return make


@pytest.fixture(scope="package")
def disk(make_disk):
    """All positions on the disk."""
    return make_disk()


@pytest.fixture(scope="package")
def live(make_live):
    """All positions, live."""
    return make_live()


@pytest.fixture(scope="package")
def two_of_each(tmp_path_factory):
    """Query file that asks two things of each of four pictures."""
    path = tmp_path_factory.mktemp("queries") / "queries.json"
    asked = [(n, query) for n in range(1, 5) for query in ("Is there a cat?", "Why?")]
    entries = [
        {"id": 900 - number, "image": f"AMBER_{n}.jpg", "query": query}
        for number, (n, query) in enumerate(asked)
    ]
    path.write_text(json.dumps(entries), encoding="utf-8")
    return path
