"""docs/format.md names every key, column, tensor and file that the code writes."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
from safetensors import safe_open

from builder.pt.export_note import ExportNote
from llava_amber_activations.formats.columns import KINDS, LEADING
from llava_amber_activations.formats.dataset_folder import BuiltFrom, FileEntry, Manifest
from llava_amber_activations.formats.recipe import Recipe
from llava_amber_activations.formats.version import FORMAT_VERSION
from llava_amber_activations.sources.statistics import RobustStatistics, RowStatistics
from llava_amber_activations.store.samples import SampleRecord

TEXT = (Path(__file__).parents[2] / "docs" / "format.md").read_text(encoding="utf-8")
QUOTED = set(re.findall(r"`([^`\n]+)`", TEXT))


def headers_of(path):
    """The keys of the one JSON object in a safetensors file's metadata, that object's key too."""
    with safe_open(path, "pt") as file:
        ((key, text),) = file.metadata().items()
        tensors = {re.sub(r"\d\d+$", "LL", name) for name in file.keys()}  # noqa: SIM118
    return {key, *json.loads(text)} | tensors


@pytest.mark.parametrize(
    "kind",
    [
        *(BuiltFrom, ExportNote, FileEntry, Manifest, Recipe, SampleRecord),
        *(RowStatistics, RobustStatistics),
    ],
    ids=lambda kind: kind.__name__,
)
def test_every_key_is_named(kind):
    assert {field.name for field in dataclasses.fields(kind)} - QUOTED == set()


def test_what_is_written_is_named(demo_folder):
    """The demo's own files: their names, their keys, their columns."""
    dataset, store = demo_folder / "dataset", demo_folder / "store"
    manifest = json.loads((dataset / "manifest.json").read_text(encoding="utf-8"))
    chunk = headers_of(store / "chunks" / "chunk-00000.safetensors")
    statistics = headers_of(dataset / "statistics.safetensors")
    named = {*manifest, *manifest["recipe"], *chunk, *statistics, *LEADING, *KINDS}
    assert named - QUOTED == set()
    files = [path.name for folder in (dataset, store) for path in folder.iterdir()]
    assert [name for name in files if name not in TEXT] == []


def test_the_version_is_the_one_that_is_written():
    assert f"now **{FORMAT_VERSION}**" in TEXT
    assert f"`v{FORMAT_VERSION}`" in TEXT
