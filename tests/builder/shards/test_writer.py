"""A shard whose file cannot be written."""

import errno

import numpy as np
import pyarrow as pa
import pytest

from builder.shards.writer import ShardWriter
from llava_amber_activations.formats.arrow_vectors import vector_type, vectors_to_arrow

WIDTH = 64
SCHEMA = pa.schema([pa.field("x", vector_type(WIDTH, "float16"), nullable=False)])


class FullDisk:
    """A file on a disk that has room for so many bytes."""

    def __init__(self, room):
        self.room = room

    def write(self, data):
        self.room -= memoryview(data).nbytes
        if self.room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("room", [10, 5000, 20_000])
def test_a_full_disk_is_said_and_arrow_is_done_with_the_file(room):
    """Arrow closed the file when the writer was taken apart, and that crashed an import."""
    rows = np.random.default_rng(0).standard_normal((64, WIDTH)).astype(np.float16)
    writer = ShardWriter(FullDisk(room), SCHEMA)
    with pytest.raises(OSError, match="No space left on device"):
        for _ in range(5):
            writer.write_group([vectors_to_arrow(rows)])
    with pytest.raises(OSError, match="No space left on device"):
        writer.close()
    assert writer._sink.closed
