"""What the files of a dataset folder say of themselves, held against its manifest."""

from __future__ import annotations

import pyarrow as pa

from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.formats.columns import FEATURES, ROW_COLUMNS
from llava_amber_activations.formats.dataset_folder import (
    ALL_LAYERS,
    CLT_FEATURES,
    MANIFEST_FILE,
    REMEDY,
    Manifest,
)
from llava_amber_activations.formats.schema import (
    all_layers_schema,
    clt_features_schema,
    default_schema,
    layers_of,
)
from llava_amber_activations.sources.source import Source
from llava_amber_activations.store.layout import vector_names


def check_shards(source: Source) -> None:
    """Check every shard's columns and their types against the manifest's width and dtype.

    Raises:
        ActivationsError: a shard is of another model or dtype, lacks a column, or differs from the
            others of its config.
    """
    manifest = source.manifest
    for config in manifest.configs:
        first: tuple[str, pa.Schema] | None = None
        for path in (path for paths in manifest.splits(config).values() for path in paths):
            where = source.url(path)
            with source.open_parquet(path) as parquet:
                schema = parquet.schema_arrow
            n_layers = layers_of(schema, where)
            if n_layers != manifest.recipe.n_layers:
                raise ActivationsError(
                    f"{where} is of a model of {n_layers} layers, and the recipe in "
                    f"{MANIFEST_FILE} of {manifest.recipe.n_layers}: {REMEDY}"
                )
            _check_columns(schema, config, manifest, where)
            columns = schema.remove_metadata()
            first = first or (path, columns)
            if not columns.equals(first[1]):
                raise ActivationsError(f"{where} has other columns than {first[0]}: {REMEDY}")


def _check_columns(schema: pa.Schema, config: str, manifest: Manifest, where: str) -> None:
    for column in _expected(schema, config, manifest):
        index = schema.get_field_index(column.name)
        if index < 0:
            raise ActivationsError(f"{where} has no column {column.name}: {REMEDY}")
        if not schema.field(index).type.equals(column.type):
            raise ActivationsError(
                f"{column.name} of {where} is {schema.field(index).type}, and by {MANIFEST_FILE} "
                f"it is {column.type}: {REMEDY}"
            )


def _expected(schema: pa.Schema, config: str, manifest: Manifest) -> pa.Schema:
    """Return the columns that a shard must have."""
    recipe = manifest.recipe
    shape = (recipe.hidden_size, manifest.dtype, recipe.n_layers)
    if config == CLT_FEATURES:
        # The manifest does not say how many features there are, only that all have as many.
        widths = (
            field.type.list_size
            for field in schema
            if field.name == FEATURES and pa.types.is_fixed_size_list(field.type)
        )
        return clt_features_schema(next(widths, recipe.hidden_size), *shape[1:])
    if config == ALL_LAYERS:
        names = vector_names(recipe.kept_layers)
        if recipe.origin != "capture":
            # An import has the vectors that its files had.
            names = [name for name in schema.names if name not in ROW_COLUMNS]
        return all_layers_schema(names, *shape, recipe.extra_columns)
    return default_schema(*shape, recipe.extra_columns)
