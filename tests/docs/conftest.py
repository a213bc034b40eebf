"""What pages and examples use: the demo's folder, and its dataset on the Hub of the tests."""

import subprocess
import sys

import pytest
from loopback_hub import DEFAULT_TOKEN

from builder.push import push

REPO = "KOKOSde/llava-amber-activations"


@pytest.fixture(scope="session")
def demo_folder(tmp_path_factory):
    """The folder `llava-amber-demo`, as the command makes it."""
    folder = tmp_path_factory.mktemp("demo") / "llava-amber-demo"
    command = [sys.executable, "-m", "llava_amber_activations", "demo", "--output-dir", folder.name]
    result = subprocess.run(command, cwd=folder.parent, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture
def published(hub, demo_folder):
    """Id of a repo on the Hub of the tests that holds the demo's dataset."""
    push(demo_folder / "dataset", REPO, token=DEFAULT_TOKEN)
    return REPO
