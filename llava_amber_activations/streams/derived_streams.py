"""Which layer a streaming dataset reads, told from its own structure.

A stream that this project's builder made reads shards of one layer, and names them. What
`datasets` derives from it says what was done to it:

    take, skip          some of its rows
    shard, reshard      some of its shards, or of their row groups
    with_format         nothing: batches are tensors in any case

Such a stream is read from its shards, as the layer itself is. Whatever else was done (`filter`,
`map`, `select_columns`, `cast`, `shuffle`, `split_dataset_by_node`, …) `datasets` does, and its
rows are taken from there, which is slower.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from llava_amber_activations.streams.layer_stream import LayerStream
from llava_amber_activations.streams.shard_stream import digest_of

if TYPE_CHECKING:
    import datasets


def layer_of_stream(dataset: datasets.IterableDataset) -> LayerStream | None:
    """Return which rows of which shards a stream reads; None where `datasets` has to read it."""
    # Whoever has a stream has imported `datasets` already.
    from llava_amber_activations.dataset_builder import LlavaAmberActivations

    if getattr(dataset, "_distributed", None) is not None:
        return None
    cuts: list[tuple[str, int]] = []
    examples: Any = getattr(dataset, "_ex_iterable", None)
    while (kind := type(examples).__name__) in ("TakeExamplesIterable", "SkipExamplesIterable"):
        cuts.append((kind, examples.n))
        examples = examples.ex_iterable
    builder: Any = getattr(getattr(examples, "generate_tables_fn", None), "__self__", None)
    if kind != "ArrowExamplesIterable" or not isinstance(builder, LlavaAmberActivations):
        return None
    if dataset.features != builder.info.features:
        return None
    stream = _read_by(builder, **examples.kwargs)
    for kind, n in reversed(cuts):
        if n < 0:
            return None
        if kind == "SkipExamplesIterable":
            stream = replace(stream, first_row=stream.first_row + n)
        else:
            stop = stream.first_row + n
            if stream.stop_row is not None:
                stop = min(stop, stream.stop_row)
            stream = replace(stream, stop_row=stop)
    return stream


def _read_by(
    builder: Any, files: list[str], row_groups_list: list[Any], wanted: Any
) -> LayerStream:
    """Return what the builder's tables are read from."""
    # Without a manifest nothing is known of a shard but its address.
    names = [builder.checksums.get(file, file) for file in files]
    cut = any(groups is not None for groups in row_groups_list)
    if cut:
        names += [repr(groups and list(groups)) for groups in row_groups_list]
    return LayerStream(
        urls=tuple(files),
        wanted=wanted,
        expected=builder.expected,
        digest=digest_of(names),
        row_groups=tuple(row_groups_list) if cut else None,
    )
