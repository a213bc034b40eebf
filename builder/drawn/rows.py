"""Rows drawn from a dataset: whole samples, as many as a budget of bytes allows.

Which samples they are is chosen by a seed, so that it is the same wherever the dataset is read and
whoever reads it. Only the row groups that hold them are read, and of these the vectors alone that
are wanted; on the Hub nothing else travels but the footers of their shards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llava_amber_activations.formats.arrow_vectors import Vectors
from llava_amber_activations.sources.source import Source

Int32s = npt.NDArray[np.int32]

# Of vectors before compression.
DEFAULT_MAX_BYTES = 256_000_000


@dataclass(frozen=True)
class DrawnSample:
    """One sample of those that were drawn, all rows of it.

    Attributes:
        sample: its number in the query file.
        id, image: as the rows have them; `image` is "" where it is not known.
        rows: where its rows are among the drawn ones.
    """

    sample: int
    id: int
    image: str
    rows: range


@dataclass(frozen=True)
class DrawnRows:
    """Rows of a dataset, of whole samples, held in memory.

    Attributes:
        samples: ascending; their rows follow one another in this order.
        n_samples: samples of the dataset that have rows; None where that was not looked up.
        n_rows: rows of the dataset.
        layers: whose vectors were read, ascending: all that the dataset holds, or some of them,
            evenly apart, where so few samples would fit the budget otherwise.
        n_layers: decoder layers of the model.
        width: H.
        sample, position, token_id, kind, patch_row, patch_col: int32 [rows]; `kind` is the code
            that `KINDS` says, -1 where it is not known, as `token_id` and the patch may be.
        tokens: of each row, the text of its token; None where the dataset does not hold it.
        vectors: [rows, H] of the dataset's dtype, by their names: `x_05`, `mlp_out_05`. Some may be
            missing: an import may lack some, and a dataset without `all_layers` lacks
            `mlp_out_00` and the last layer's `x`.
        n_bytes: of the vectors, as they are held.
    """

    samples: tuple[DrawnSample, ...]
    n_samples: int | None
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
    n_bytes: int

    def __len__(self) -> int:
        return len(self.sample)

    @property
    def are_all(self) -> bool:
        """Whether every row of the dataset was drawn."""
        return len(self) == self.n_rows

    def x(self, layer: int) -> Vectors | None:
        """Return `x` of a layer: [rows, H]; None where it is not there."""
        raise NotImplementedError

    def mlp_out(self, layer: int) -> Vectors | None:
        """Return `mlp_out` of a layer: [rows, H]; None where it is not there."""
        raise NotImplementedError

    def token_text(self, row: int) -> str | None:
        """Return what to call a row's token: its text, or `token 42`; None where neither is known.
        """
        raise NotImplementedError


def draw_rows(
    source: Source,
    *,
    max_bytes: int = DEFAULT_MAX_BYTES,
    layers: Sequence[int] | None = None,
    seed: int = 0,
    with_tokens: bool = True,
) -> DrawnRows | None:
    """Draw whole samples of a dataset and read their rows: all of them where they fit.

    Args:
        source: a folder, or a repo on the Hub.
        max_bytes: most bytes of vectors before compression, at least one sample's of few layers.
        layers: whose vectors are read. If None, all; or, where fewer than `FEW_SAMPLES` samples
            of all layers fit the budget, as many layers as leave room for so many.
        seed: of the draw.
        with_tokens: look up the tokens' texts in the config `samples`, where there is one.

    Returns:
        None where the dataset holds no vectors of layers (features alone).

    Raises:
        ActivationsError: a shard is missing or damaged, or the Hub does not answer.
    """
    raise NotImplementedError
