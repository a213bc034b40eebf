"""The columns of a dataset folder, and how vectors lie in Arrow.

    default, L0 … L30   LEADING, EXTRA, x [H], targets [n, H]
    all_layers          LEADING, EXTRA, x_00 … [H], mlp_out_00 … [H]
    clt_features        sample, features [F]
    samples             SAMPLE_COLUMNS, source, whatever was joined to them, and picture

Of EXTRA those that the recipe names; `source` where it is one of them, `picture` where asked for.
How a vector lies in a column, `arrow_vectors` says; its feature type in `datasets` is chosen by
`features_of` alone.
"""

from __future__ import annotations

import json
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from llava_amber_activations.formats.arrow_vectors import targets_type, vector_type
from llava_amber_activations.formats.columns import (
    FEATURES,
    FLOATS,
    ID,
    N_ROWS,
    PICTURE,
    SAMPLE,
    SAMPLE_COLUMNS,
    SOURCE,
    STRINGS,
    TARGETS,
    TOKENS,
    X,
    row_columns,
)
from llava_amber_activations.formats.recipe import MOST_LAYERS
from llava_amber_activations.formats.version import FORMAT_VERSION, check_format_version
from llava_amber_activations.parsing.checked_values import check_number
from llava_amber_activations.parsing.typed_json import parse_json_object, read_object

if TYPE_CHECKING:
    import datasets

_OUR_KEY = b"llava_amber_activations"


@dataclass(frozen=True)
class _ShardMetadata:
    """What a shard's schema says of itself."""

    format_version: str
    n_layers: int

    def __post_init__(self) -> None:
        check_number("n_layers", self.n_layers, 1, MOST_LAYERS)


def _row_fields(extra: Container[str]) -> list[pa.Field]:
    types = {**dict.fromkeys(STRINGS, pa.string()), **dict.fromkeys(FLOATS, pa.float32())}
    return [
        pa.field(name, types.get(name, pa.int32()), nullable=False) for name in row_columns(extra)
    ]


def default_schema(
    hidden_size: int, dtype: str, n_layers: int, extra: Container[str] = ()
) -> pa.Schema:
    """Return the schema of a layer's own split.

    Args:
        extra: which columns of `EXTRA` the rows have.
    """
    fields = [
        *_row_fields(extra),
        pa.field(X, vector_type(hidden_size, dtype), nullable=False),
        pa.field(TARGETS, targets_type(hidden_size, dtype), nullable=False),
    ]
    return _with_metadata(pa.schema(fields), n_layers)


def all_layers_schema(
    names: Sequence[str],
    hidden_size: int,
    dtype: str,
    n_layers: int,
    extra: Container[str] = (),
) -> pa.Schema:
    """Return the schema of `all_layers` with the vectors `names`.

    Args:
        extra: which columns of `EXTRA` the rows have.
    """
    vector = vector_type(hidden_size, dtype)
    fields = [*_row_fields(extra), *(pa.field(name, vector, nullable=False) for name in names)]
    return _with_metadata(pa.schema(fields), n_layers)


def clt_features_schema(n_features: int, dtype: str, n_layers: int) -> pa.Schema:
    """Return the schema of a layer's split of `clt_features`."""
    fields = [
        pa.field(SAMPLE, pa.int32(), nullable=False),
        pa.field(FEATURES, vector_type(n_features, dtype), nullable=False),
    ]
    return _with_metadata(pa.schema(fields), n_layers)


def samples_schema(
    n_layers: int, joined: pa.Schema, *, pictures: bool, sources: bool = False
) -> pa.Schema:
    """Return the schema of config `samples`, in which null stands for what nobody knows.

    Args:
        joined: of the columns that were joined to the samples' own.
        pictures: whether each sample's picture is a column, last.
        sources: whether each sample's source is a column.
    """
    types = {
        **dict.fromkeys(SAMPLE_COLUMNS, pa.string()),
        **dict.fromkeys((SAMPLE, ID, N_ROWS), pa.int32()),
        TOKENS: pa.list_(pa.string()),
    }
    always = (SAMPLE, N_ROWS)
    fields = [pa.field(name, types[name], name not in always) for name in SAMPLE_COLUMNS]
    if sources:
        fields.append(pa.field(SOURCE, pa.string()))
    fields += list(joined)
    if pictures:
        fields.append(pa.field(PICTURE, pa.struct({"bytes": pa.binary(), "path": pa.string()})))
    return _with_metadata(pa.schema(fields), n_layers)


def features_of(schema: pa.Schema) -> datasets.Features:
    """Return the `datasets` features of a schema: the one place where their types are chosen."""
    import datasets  # Reading batches does without it, and half a second sooner.

    features = datasets.Features.from_arrow_schema(schema.remove_metadata())
    if PICTURE in features:
        features[PICTURE] = datasets.Image()
    return features


def _with_metadata(schema: pa.Schema, n_layers: int) -> pa.Schema:
    ours = {"format_version": FORMAT_VERSION, "n_layers": n_layers}
    return schema.with_metadata({_OUR_KEY: json.dumps(ours).encode()})


def with_features(schema: pa.Schema) -> pa.Schema:
    """Return a schema that also carries the features, as `datasets` reads them from a shard."""
    return schema.with_metadata({**features_of(schema).arrow_schema.metadata, **schema.metadata})


def layers_of(schema: pa.Schema, where: object) -> int:
    """Return how many layers the model had that a shard was made from.

    Raises:
        ActivationsError: the shard is not of this project, or of a newer major format.
    """
    text = (schema.metadata or {}).get(_OUR_KEY, b"{}")
    value = parse_json_object(text, f"the schema of {where}")
    check_format_version(value.get("format_version"), where)
    return read_object(_ShardMetadata, value, f"the schema of {where}", "of this project").n_layers
