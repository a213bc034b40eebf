"""Rows drawn from a dataset: whole samples, as many as a budget of bytes allows.

Which samples they are is chosen by a seed, so that it is the same wherever the dataset is read and
whoever reads it. Of them only the row groups that hold them are read, and of these only the vectors
that are wanted; from the Hub nothing else travels but the footers of shards.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from builder.drawn.choosing import (
    choose_blocks,
    choose_layers,
    find_blocks,
    samples_of_group,
)
from builder.drawn.row_ranges import guide_shards, names_there, read_leading, read_row_vectors
from llava_amber_activations.formats.arrow_vectors import Vectors, numbers_in
from llava_amber_activations.formats.columns import (
    ID,
    IMAGE,
    KIND,
    NO_PATCH,
    PATCH_COL,
    PATCH_ROW,
    POSITION,
    QUERY,
    SAMPLE,
    TILE,
    TOKEN_ID,
    TOKENS,
    WHOLE_PICTURE,
)
from llava_amber_activations.formats.dataset_folder import SAMPLES, SAMPLES_SPLIT
from llava_amber_activations.formats.layers import mlp_out_name, x_name
from llava_amber_activations.reading.layer_rows import read_columns
from llava_amber_activations.reading.read_ahead import Shards, read_in_order
from llava_amber_activations.sources.source import Source, expected_rows

# Of vectors, before compression.
DEFAULT_MAX_BYTES = 256_000_000

Int32s = npt.NDArray[np.int32]


@dataclass(frozen=True)
class DrawnSample:
    """One sample of those that were drawn, all rows of it.

    Attributes:
        sample: its number in the query file.
        id, image: as the rows have them; `image` is "" where it is not known.
        rows: where its rows are among the drawn ones.
        query: what was asked; None where the dataset does not say.
    """

    sample: int
    id: int
    image: str
    rows: range
    query: str | None = None


@dataclass(frozen=True)
class DrawnRows:
    """Rows of a dataset, of whole samples, held in memory.

    Attributes:
        samples: ascending; their rows follow one another in this order.
        n_samples: samples of the dataset, those that were skipped too.
        n_rows: rows of the dataset.
        layers: whose vectors were read, ascending: all that the dataset holds, or some of them,
            evenly apart, where so few samples would fit the budget otherwise.
        n_layers: decoder layers of the model.
        width: H.
        sample, position, token_id, kind, patch_row, patch_col: int32 [rows]; `kind` is the code
            that `KINDS` says, -1 where it is not known, as `token_id` and the patch may be. The
            patches are those of one grid a picture: where a model sees a picture whole and in
            tiles, those of the whole picture.
        tokens: of each row, the text of its token; None where the dataset does not hold it.
        vectors: [rows, H] of the dataset's dtype, by their names: `x_05`, `mlp_out_05`. Some may be
            missing: an import may lack some, and a dataset without `all_layers` lacks
            `mlp_out_00` and the last layer's `x`.
    """

    samples: tuple[DrawnSample, ...]
    n_samples: int
    n_rows: int
    layers: tuple[int, ...]
    n_layers: int
    width: int
    sample: Int32s
    position: Int32s
    token_id: Int32s
    kind: Int32s
    patch_row: Int32s
    patch_col: Int32s
    tokens: tuple[str, ...] | None
    vectors: Mapping[str, Vectors]

    def __len__(self) -> int:
        return len(self.sample)

    @property
    def are_all(self) -> bool:
        """Whether every row of the dataset was drawn."""
        return len(self) == self.n_rows

    @property
    def n_bytes(self) -> int:
        """Bytes of the vectors, as they are held."""
        return sum(vectors.nbytes for vectors in self.vectors.values())

    def x(self, layer: int) -> Vectors | None:
        """Return `x` of a layer: [rows, H]; None where it is not there."""
        return self.vectors.get(x_name(layer))

    def mlp_out(self, layer: int) -> Vectors | None:
        """Return `mlp_out` of a layer: [rows, H]; None where it is not there."""
        return self.vectors.get(mlp_out_name(layer))

    def token_text(self, row: int) -> str | None:
        """Return what to call a row's token: its text, or `token 42`; None where nothing is known.

        A token of a character that others complete has no text of its own: it is called by its
        number too.
        """
        if self.tokens is not None and self.tokens[row]:
            return self.tokens[row]
        number = int(self.token_id[row])
        return None if number < 0 else f"token {number}"


def draw_rows(
    source: Source,
    *,
    max_bytes: int = DEFAULT_MAX_BYTES,
    layers: Sequence[int] | None = None,
    always: Sequence[int] = (),
    mlp_out: bool = True,
    tokens: bool = True,
    table: pa.Table | None = None,
    seed: int = 0,
) -> DrawnRows | None:
    """Draw whole samples of a dataset and read their rows: all of them where they fit.

    Args:
        source: a folder, or a repo on the Hub.
        max_bytes: most bytes of vectors before compression; a single run of samples that cannot be
            parted may take more.
        layers: whose vectors are read, of those that are there. If None, all; or, where fewer than
            `FEW_SAMPLES` samples of all layers fit the budget, as many layers as leave room for so
            many.
        always: layers that are read whichever others are.
        mlp_out: whether MLP outputs are read, too.
        tokens: look up the tokens' texts, where the dataset holds them.
        table: what `read_samples_table` returns, for the tokens, where it has been read already.
        seed: of the draw.

    Returns:
        None where the dataset holds no vectors of layers, or no rows.

    Raises:
        ActivationsError: a shard is missing or damaged, or the Hub does not answer.
    """
    manifest = source.manifest
    recipe = manifest.recipe
    guide = guide_shards(source)
    if not guide or not manifest.n_rows:
        return None
    present = names_there(source)
    kinds = (x_name, mlp_out_name) if mlp_out else (x_name,)
    there = [n for n in range(recipe.n_layers) if present & {name_of(n) for name_of in kinds}]
    blocks = find_blocks(source, guide)
    vector_bytes = recipe.hidden_size * np.dtype(manifest.dtype).itemsize
    if layers is None:
        layers = choose_layers(there, blocks, len(kinds) * vector_bytes, max_bytes)
    wanted = sorted(set(there) & {*layers, *always})
    names = [name for name_of in kinds for name in map(name_of, wanted) if name in present]
    chosen = choose_blocks(blocks, len(names) * vector_bytes, max_bytes, seed)
    places = [block.rows for block in chosen]
    leading = read_leading(source, places)
    texts = _texts(source, leading[SAMPLE], table) if tokens else {}
    patch_row, patch_col = _in_one_grid(leading)
    return DrawnRows(
        samples=_samples_of(leading, texts),
        n_samples=recipe.n_samples,
        n_rows=manifest.n_rows,
        layers=tuple(wanted),
        n_layers=recipe.n_layers,
        width=recipe.hidden_size,
        sample=leading[SAMPLE],
        position=leading[POSITION],
        token_id=leading[TOKEN_ID],
        kind=leading[KIND],
        patch_row=patch_row,
        patch_col=patch_col,
        tokens=_tokens(texts, leading[SAMPLE], leading[POSITION]),
        vectors=read_row_vectors(source, names, places),
    )


def _in_one_grid(leading: Mapping[str, npt.NDArray[Any]]) -> tuple[Int32s, Int32s]:
    """Return patch rows and columns of one grid a picture, -1 of the patches of another.

    Grids of the whole picture where there is any; else those of tiles, which are one grid.
    """
    row, column = leading[PATCH_ROW], leading[PATCH_COL]
    tile = leading.get(TILE)
    if tile is None or not (tile == WHOLE_PICTURE).any():
        return row, column
    is_whole = tile == WHOLE_PICTURE
    return np.where(is_whole, row, NO_PATCH), np.where(is_whole, column, NO_PATCH)


@dataclass(frozen=True)
class _SampleTexts:
    """What a dataset says of a sample in words; None where it does not."""

    query: str | None
    tokens: list[str] | None


def _texts(source: Source, samples: Int32s, table: pa.Table | None) -> dict[int, _SampleTexts]:
    """Return the texts of samples; none where the dataset has no config `samples`."""
    if not source.manifest.shards(SAMPLES, SAMPLES_SPLIT):
        return {}
    columns = (SAMPLE, QUERY, TOKENS)
    wanted = np.unique(samples)
    found = {}
    for some in _tables_of(source, wanted, columns) if table is None else [table]:
        there = some.filter(np.isin(numbers_in(some[SAMPLE]), wanted))
        texts = (there[name].to_pylist() for name in columns)
        for sample, query, tokens in zip(*texts, strict=True):
            found[sample] = _SampleTexts(query, tokens)
    return found


def _tables_of(source: Source, wanted: Int32s, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Yield row groups of config `samples`; of a large dataset those alone that hold `wanted`."""
    paths = source.manifest.shards(SAMPLES, SAMPLES_SPLIT)
    urls = [source.url(path) for path in paths]
    shards = Shards(urls, expected_rows(source, paths), checked=True, most_open=1)
    groups = []
    for group in shards.row_groups():
        first, last = samples_of_group(shards, group.url, group.number)
        if ((wanted >= first) & (wanted <= last)).any():
            groups.append(group)
    yield from read_in_order(
        shards, groups, lambda shard, number: read_columns(shard, number, columns)
    )


def _samples_of(
    leading: Mapping[str, npt.NDArray[Any]], texts: Mapping[int, _SampleTexts]
) -> tuple[DrawnSample, ...]:
    samples = leading[SAMPLE].tolist()
    starts = [0, *(np.flatnonzero(np.diff(leading[SAMPLE])) + 1).tolist()]
    return tuple(
        DrawnSample(
            sample=samples[start],
            id=int(leading[ID][start]),
            image=leading[IMAGE][start],
            rows=range(start, stop),
            query=texts[samples[start]].query if samples[start] in texts else None,
        )
        for start, stop in zip(starts, [*starts[1:], len(samples)], strict=True)
    )


def _tokens(
    texts: Mapping[int, _SampleTexts], samples: Int32s, positions: Int32s
) -> tuple[str, ...] | None:
    """Return the texts of rows' tokens; None where those of a row are not known."""
    found = []
    for sample, position in zip(samples.tolist(), positions.tolist(), strict=True):
        pieces = texts[sample].tokens if sample in texts else None
        if pieces is None or position >= len(pieces):
            return None
        found.append(pieces[position])
    return tuple(found)
