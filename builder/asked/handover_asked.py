"""What a hand-over to another trainer is asked for: nothing here is slow to import."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Handover = Literal["llamascopium", "saelens", "crosslayer-coding"]
HANDOVERS: tuple[str, ...] = get_args(Handover)


@dataclass(frozen=True)
class HandoverAsked:
    """What a caller asks for; None where the data or the layout decides.

    Attributes:
        format: whose layout.
        layers: such as `0-30`; all that the data has.
        x_site: where `x` is read; as captured.
        dtype: of the vectors; the data's.
        seed: of the order of the rows.
        chunk_rows: the fewest rows of a chunk.
        skip_first: leave out position 0 of each sample.
    """

    format: Handover
    layers: str | None = None
    x_site: str | None = None
    dtype: str | None = None
    seed: int = 0
    chunk_rows: int | None = None
    skip_first: bool = False
