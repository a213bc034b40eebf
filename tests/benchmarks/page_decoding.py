"""9 Decoding: the pages of a layer's columns, by this project's decoder and by pyarrow.

    python tests/benchmarks/page_decoding.py SCRATCH

Both decode `x` and 16 targets of the same row groups of the same files, on one thread, into memory
of their own: pyarrow into Arrow arrays, ours into numpy's. The decoder in `reading/vector_pages.py`
stays as long as this line is worth its code.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from ground import Ground, layer_names
from made_store import Shape
from measuring import Line, alternate, rates, run_section

from llava_amber_activations.reading.vector_pages import read_vectors
from llava_amber_activations.sources.shard_file import ShardFile
from llava_amber_activations.vectors.recycled import RecycledMemory

SECTION = "9 Decoding"


def measure(scratch: Path, repeats: int) -> list[Line]:
    """Measure one pass of each over every row group of a layer."""
    paths = sorted((Ground(scratch).dataset() / "all_layers").iterdir())
    names = layer_names()

    def ours() -> None:
        memory = RecycledMemory()
        for path in paths:
            with ShardFile(str(path)) as shard:
                for group in range(shard.parquet.num_row_groups):
                    assert read_vectors(shard, group, names, memory=memory) is not None

    def pyarrow() -> None:
        for path in paths:
            with pq.ParquetFile(path, memory_map=True) as file:
                for group in range(file.num_row_groups):
                    file.read_row_group(group, columns=names, use_threads=False)

    threads = pa.cpu_count()
    pa.set_cpu_count(1)
    try:
        seconds = alternate({"ours": ours, "pyarrow": pyarrow}, repeats)
    finally:
        pa.set_cpu_count(threads)
    size = Shape().rows * Shape().layer_row_bytes / 1e6
    figures = {name: rates(size, times) for name, times in seconds.items()}
    work = "x and 16 targets, one thread"
    return [Line(SECTION, work, "pyarrow", "MB/s", figures["ours"], figures["pyarrow"], ">= 1.5")]


if __name__ == "__main__":
    run_section(measure, __doc__)
