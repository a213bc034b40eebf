"""Chunks on their way to the disk, behind the model: a few at once, within a bound of memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from capture.model.load import CaptureModel
from capture.samples.queries import Query
from capture.sink.chunk import CapturedBatch
from capture.sink.joining import FiniteVectors, join_chunk, join_features
from llava_amber_activations.formats.columns import SAMPLE
from llava_amber_activations.store.chunk import write_chunk
from llava_amber_activations.store.features import features_path, write_features
from llava_amber_activations.store.layout import chunk_path

# One that is written and one that waits, beside the one that the model fills.
MOST_CHUNKS = 2
# Of the vectors of both together; a chunk that is larger is alone.
MOST_BYTES = 4 << 30


@dataclass(frozen=True)
class CapturedChunk:
    """A chunk whose batches have all been run.

    Attributes:
        number: of the chunk.
        queries: of its samples, in the order of the query file.
        batches: in any order.
        batch_size: most samples of a forward pass.
        norms_agree: whether what the norms gave was what the MLPs received, where it was looked at.
    """

    number: int
    queries: Sequence[Query]
    batches: Sequence[CapturedBatch]
    batch_size: int
    norms_agree: bool | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of its vectors."""
        return sum(batch.vectors.nbytes for batch in self.batches if batch.vectors is not None)


class ChunkSink:
    """Writes chunks in their order, while the model goes on.

    Args:
        store: the folder.
        dtype: of the store's vectors.
        layers: that are kept; all of the model's if None.
        extra_columns: as the recipe has them.
    """

    def __init__(
        self,
        store: Path,
        model: CaptureModel,
        dtype: torch.dtype,
        thread: ThreadPoolExecutor,
        layers: Sequence[int] | None = None,
        extra_columns: Sequence[str] = (),
    ) -> None:
        self._store = store
        self._model = model
        self._dtype = dtype
        self._layers = layers
        self._extra_columns = extra_columns
        self._thread = thread
        self._pending: deque[tuple[int, Future[None]]] = deque()

    def put(self, chunk: CapturedChunk) -> None:
        """Have a chunk written, after those before it; wait while there is no room for it.

        Raises:
            ActivationsError: an earlier chunk could not be written, or has a value that is not
                finite.
        """
        size = chunk.nbytes
        while self._pending and (
            len(self._pending) >= MOST_CHUNKS
            or size + sum(waiting for waiting, _ in self._pending) > MOST_BYTES
        ):
            self._finish_oldest()
        written = self._thread.submit(
            _write,
            self._store,
            chunk,
            self._model,
            self._dtype,
            self._layers,
            self._extra_columns,
        )
        self._pending.append((size, written))

    def finish(self) -> None:
        """Wait for all of them.

        Raises:
            ActivationsError: as `put`.
        """
        while self._pending:
            self._finish_oldest()

    def _finish_oldest(self) -> None:
        try:
            self._pending.popleft()[1].result()
        except BaseException:
            # A disk that is full for one is full for the next.
            for _, waiting in self._pending:
                waiting.cancel()
            self._pending.clear()
            raise


@contextmanager
def chunk_sink(
    store: Path,
    model: CaptureModel,
    dtype: torch.dtype,
    layers: Sequence[int] | None = None,
    extra_columns: Sequence[str] = (),
) -> Iterator[ChunkSink]:
    """Yield a sink whose chunks are all written when the block ends.

    Args:
        layers: as `ChunkSink` takes them; and so the others.

    Raises:
        ActivationsError: as `ChunkSink.put`.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="write") as thread:
        sink = ChunkSink(store, model, dtype, thread, layers, extra_columns)
        yield sink
        sink.finish()


def _write(
    store: Path,
    chunk: CapturedChunk,
    model: CaptureModel,
    dtype: torch.dtype,
    layers: Sequence[int] | None,
    extra_columns: Sequence[str],
) -> None:
    layers = range(len(model.decoder.layers)) if layers is None else layers
    joined = join_chunk(chunk.queries, chunk.batches, model, dtype, layers, extra_columns)
    with_features = {layer for batch in chunk.batches for layer in batch.features}
    features_sha256 = None
    if with_features:
        features, samples = join_features(chunk.batches, sorted(with_features))
        # Before the chunk, whose presence says that all of it is there.
        features_sha256 = write_features(features_path(store, chunk.number), features, samples)
    sample = joined.pieces[SAMPLE][0]
    check = FiniteVectors(layers, dtype, sample, joined.finite)
    write_chunk(
        chunk_path(store, chunk.number),
        joined.pieces,
        joined.records,
        chunk.batch_size,
        features_sha256,
        chunk.norms_agree,
        check,
    )
