"""A tiny LLaVA, real photographs, stores and datasets made of them, and a Hub on loopback."""

import os
import tempfile
from pathlib import Path

from loopback_hub import Faults, LoopbackHub

# datasets and huggingface_hub read their environment once, when they are imported: the Hub of the
# tests must stand before that. It is the only one that any test can reach.
HUB = LoopbackHub()
HUB.start()
# Removed when this process ends.
_HOME = tempfile.TemporaryDirectory(prefix="llava-amber-tests-")
os.environ.update(HUB.client_env(Path(_HOME.name)))
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
# The models of the tests are so small that more threads only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# The processes that tests start have pyproject.toml's filterwarnings, too.
os.environ.setdefault(
    "PYTHONWARNINGS",
    "error::DeprecationWarning,error::FutureWarning,error::PendingDeprecationWarning,"
    "ignore:Use 'content=:DeprecationWarning,"
    "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning",
)

import json
import logging
import subprocess
import sys

import pytest
import torch
from fork_server import ForkServer
from hypothesis import settings
from photographs import save_photographs
from single_pass import Reference

from builder.build import build
from capture.model.tiny_model import make_tiny_llava
from capture.run import capture
from capture.settings import CaptureSettings

# The same examples on every machine and day, and none is failed because the machine is busy.
settings.register_profile("suite", deadline=None, derandomize=True)
settings.load_profile("suite")

# Prompts of unequal length, so that every batch is padded.
QUERIES = (
    "Describe this image.",
    "What is in the foreground, and what is behind it?",
    "Why?",
    "Is there a cat in this image? Answer yes or no.",
    "Describe this image.",
    "Count.",
    "Name every colour that you can see in this image, from the most to the least common one.",
    "Who took it?",
)


class _Announcements(logging.Handler):
    """Fails where transformers announces by its logger that a name will go."""

    def emit(self, record: logging.LogRecord) -> None:
        """Raise what nothing takes for an error of the model's."""
        assert "deprecated" not in (message := record.getMessage()), message


@pytest.fixture(scope="session", autouse=True)
def announcements():
    """Make what transformers logs as deprecated an error, unless warnings are none."""
    handler = _Announcements()
    if os.environ["PYTHONWARNINGS"].startswith("error"):
        logging.getLogger("transformers").addHandler(handler)
    yield
    logging.getLogger("transformers").removeHandler(handler)


@pytest.fixture(scope="session")
def tiny_llava(tmp_path_factory):
    """Folder of a random LLaVA: 32 layers, 64 wide, 4 image tokens."""
    return make_tiny_llava(tmp_path_factory.mktemp("model") / "tiny-llava")


@pytest.fixture(scope="session")
def reference(tiny_llava):
    """The same model for one sample at a time, by plain hooks."""
    return Reference(tiny_llava)


@pytest.fixture(scope="session")
def image_dir(tmp_path_factory):
    """Folder of eight photographs of several sizes."""
    folder = tmp_path_factory.mktemp("images")
    save_photographs(folder, len(QUERIES))
    return folder


@pytest.fixture(scope="session")
def query_file(tmp_path_factory):
    """Query file over `image_dir`: eight samples, ids from 101 on."""
    path = tmp_path_factory.mktemp("queries") / "queries.json"
    entries = [
        {"id": 101 + number, "image": f"AMBER_{number + 1}.jpg", "query": query}
        for number, query in enumerate(QUERIES)
    ]
    path.write_text(json.dumps(entries), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def make_store(tiny_llava, image_dir, query_file, tmp_path_factory):
    """Function that captures a store in this process; keywords override the settings."""

    def make(output_dir: Path | None = None, **overrides) -> Path:
        output_dir = output_dir or tmp_path_factory.mktemp("store") / "store"
        settings = {
            "model": str(tiny_llava),
            "dataset": query_file,
            "image_dir": image_dir,
            "output_dir": output_dir,
            "batch_size": 5,
            "chunk_samples": 3,
            **overrides,
        }
        capture(CaptureSettings(**settings), device=torch.device("cpu"))
        return output_dir

    return make


@pytest.fixture(scope="session")
def last_store(make_store):
    """Finished float32 store of the last positions: 8 rows."""
    return make_store()


@pytest.fixture(scope="session")
def all_store(make_store):
    """Finished float32 store of all positions."""
    return make_store(positions="all")


@pytest.fixture(scope="session")
def last_dataset(last_store, tmp_path_factory):
    """Dataset folder of `last_store`: one shard a split."""
    folder = tmp_path_factory.mktemp("dataset") / "dataset"
    build(last_store, folder)
    return folder


@pytest.fixture(scope="session")
def all_dataset(all_store, tmp_path_factory):
    """Dataset folder of `all_store`, in shards small enough that there are several."""
    folder = tmp_path_factory.mktemp("dataset") / "dataset"
    build(all_store, folder, max_shard_size="1MB")
    return folder


@pytest.fixture
def hub():
    """The Hub of the tests, behaving well and counting from zero."""
    HUB.faults = Faults()
    HUB.reset_counts()
    yield HUB
    HUB.faults = Faults()


@pytest.fixture(scope="session")
def fork_server():
    """What runs the command line, once it has imported everything."""
    server = ForkServer()
    yield server
    server.close()


@pytest.fixture
def cli(fork_server, tmp_path):
    """Function that runs `llava-amber ARGUMENTS` as a user does, in a process of its own.

    One that has imported everything before, unless it is to be `from_nothing`, or variables of the
    environment are given, which libraries read when they are imported.
    """

    def run(
        *arguments: object, from_nothing: bool = False, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        command = list(map(str, arguments))
        if not environment and not from_nothing:
            ended = fork_server.start(command, cwd=tmp_path, apart=True).wait(within=300)
            return subprocess.CompletedProcess(command, ended.status, ended.said, ended.said_apart)
        return subprocess.run(
            [sys.executable, "-m", "llava_amber_activations", *command],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, **environment},
            timeout=300,
            check=False,
        )

    return run
