"""Writing one Parquet shard: encodings, row groups, checksum, whole or not at all."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from llava_amber_activations.files.whole import written_whole
from llava_amber_activations.formats.dataset_folder import FileEntry


class _HashedFile:
    """A binary file to append to, which digests what passes through it.

    An error is kept for `check`, not raised through Arrow: a writer whose file has raised may crash
    the process when it is taken apart.
    """

    def __init__(self, file: Any) -> None:
        self._file = file
        self._error: OSError | None = None
        self._digest = hashlib.sha256()
        self.size = 0
        self.closed = False

    def write(self, data: Any) -> int:
        view = memoryview(data)
        self._digest.update(view)
        self.size += view.nbytes
        if self._error is None:
            try:
                self._file.write(view)
            except OSError as error:
                self._error = error
        return view.nbytes

    def flush(self) -> None:
        """Leave it to whoever closes the file, whose errors are raised."""

    def check(self) -> None:
        """Raise what went wrong with writing."""
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        self.closed = True

    def tell(self) -> int:
        return self.size

    def writable(self) -> bool:
        return True

    def readable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return False

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


def vector_encoding(schema: pa.Schema) -> dict[str, Any]:
    """Return how shards of vectors are encoded, as `pq.ParquetWriter` takes it.

    Vectors are byte-stream-split and compressed with zstd level 1: their high bytes repeat and
    their low bytes do not, and neither a dictionary nor minima and maxima say anything of them.
    """
    return {
        "compression_level": 1,
        "use_dictionary": False,
        "column_encoding": {
            path: "BYTE_STREAM_SPLIT" for field in schema if (path := _vector_path(field))
        },
        "write_statistics": [field.name for field in schema if not _vector_path(field)],
    }


class ShardWriter:
    """An open shard; `entry` is there once it is closed.

    Args:
        encoding: what `pq.ParquetWriter` is to know beside zstd; `vector_encoding` where it is
            None.
    """

    def __init__(
        self, file: Any, schema: pa.Schema, encoding: Mapping[str, Any] | None = None
    ) -> None:
        self._sink = _HashedFile(file)
        self._schema = schema
        self._group_rows: list[int] = []
        self._arrow_file = pa.PythonFile(self._sink, mode="w")
        self._writer = pq.ParquetWriter(
            self._arrow_file,
            schema,
            compression="zstd",
            # zstd's frames have no checksum here, and a flipped byte of what does not compress
            # would pass for another value.
            write_page_checksum=True,
            **(vector_encoding(schema) if encoding is None else encoding),
        )

    def write_group(self, columns: list[pa.Array]) -> None:
        """Write one row group; `columns` are in the order of the schema."""
        table = pa.Table.from_arrays(columns, schema=self._schema)
        self._writer.write_table(table, row_group_size=max(1, table.num_rows))
        self._sink.check()
        self._group_rows.append(table.num_rows)

    def close(self) -> None:
        """Write the footer."""
        self._writer.close()
        # Or Arrow does when it takes the writer apart, in the middle of whatever else goes wrong.
        self._arrow_file.close()
        self._sink.check()

    @property
    def entry(self) -> FileEntry:
        """The closed file's entry for the manifest."""
        rows = tuple(self._group_rows)
        return FileEntry(self._sink.hexdigest(), self._sink.size, sum(rows), rows)


def _vector_path(field: pa.Field) -> str | None:
    """Return the path of a vector column's leaf in Parquet, or None for any other column."""
    path, type_ = field.name, field.type
    while pa.types.is_nested(type_):
        path, type_ = f"{path}.list.element", type_.value_type
    return path if pa.types.is_floating(type_) else None


@contextmanager
def open_shard(
    path: Path, schema: pa.Schema, encoding: Mapping[str, Any] | None = None
) -> Iterator[ShardWriter]:
    """Open a shard to write; it appears at `path` when the block ends without an error."""
    with written_whole(path) as partial, partial.open("wb") as file:
        writer = ShardWriter(file, schema, encoding)
        try:
            yield writer
        finally:
            writer.close()
