"""What is kept of a finished shard."""

import dataclasses
import hashlib

import pytest

from builder.shards.finished import FinishedShards
from builder.shards.tasks import ShardTask
from llava_amber_activations.formats.dataset_folder import FileEntry

CONTENT = b"a shard"
ENTRY = FileEntry(hashlib.sha256(CONTENT).hexdigest(), len(CONTENT), 5, (3, 2))
TASK = ShardTask("all_layers/x.parquet", "all_layers", None, (), (range(3), range(3, 5)))


@pytest.mark.parametrize("row_groups", [(3, 2), None])
def test_what_a_finished_shard_gave(tmp_path, row_groups):
    """All of its entry; not one of an earlier release, which says nothing of row groups."""
    (tmp_path / "all_layers").mkdir()
    (tmp_path / TASK.path).write_bytes(CONTENT)
    entry = dataclasses.replace(ENTRY, row_groups=row_groups)
    finished = FinishedShards(tmp_path / "finished", "a build")
    finished.add(TASK, b"schema", (entry, {}))
    found = finished.find(tmp_path, TASK, b"schema")
    assert found == (None if row_groups is None else (ENTRY, {}))
