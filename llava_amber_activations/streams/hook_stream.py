"""Rows of several layers at once, as they come from their shards."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.reading.hook_rows import read_hook_rows
from llava_amber_activations.reading.read_ahead import Shards
from llava_amber_activations.reading.wanted_hooks import (
    X_HOOKS,
    WantedHooks,
    hook_shards,
    wanted_hooks,
)
from llava_amber_activations.sources.shard_file import ShardFile
from llava_amber_activations.sources.source import Source, expected_of
from llava_amber_activations.streams.shard_stream import ShardStream, digest_of
from llava_amber_activations.vectors.held_rows import HeldRows
from llava_amber_activations.vectors.recycled import RecycledMemory

# What is mixed at once, unless two batches are more: as much as one layer with 16 targets of
# LLaVA-1.5-7B in 4096 rows.
_WINDOW_BYTES = 600 * 2**20


@dataclass(frozen=True, kw_only=True)
class HookStream(ShardStream):
    """Rows of shards, of which several layers are read. Can be sent to worker processes.

    Attributes:
        wanted: the vectors of a batch, by their hooks' names.
        leading: whether a batch says which rows it holds.
    """

    wanted: WantedHooks
    leading: bool = False

    def read(self, file: ShardFile, group: int, memory: RecycledMemory) -> HeldRows:
        """Read a row group's vectors."""
        return read_hook_rows(file, group, self.wanted, memory, leading=self.leading)

    def about(self) -> dict[str, Any]:
        """Say which vectors these are."""
        hooks = digest_of([vector.name for vector in self.wanted.vectors])
        return {"hooks": hooks, **self.wanted.about()}

    def window_rows(self, batch_size: int) -> int:
        """Return how many rows are mixed: fewer, the more vectors a row has."""
        width, dtype = self.expected.width, self.expected.dtype
        rows = super().window_rows(batch_size)
        if width is None or dtype is None:
            return rows
        row_bytes = len(self.wanted.vectors) * width * np.dtype(dtype).itemsize
        return max(2 * batch_size, min(rows, _WINDOW_BYTES // row_bytes))


def hooks_of_source(
    opened: Source,
    layers: Iterable[int] | None,
    x_sites: str | Sequence[str] | None,
    *,
    mlp_out: bool,
    leading: bool,
) -> HookStream:
    """Open several layers of a source, rows aligned over them.

    Args:
        layers: all that have the vectors where it is None.
        x_sites: where `x` is read, one or several; none where it is empty; the data's own where it
            is None.

    Raises:
        ActivationsError: as `wanted_hooks`, or nothing is wanted.
    """
    sites = _sites(opened, x_sites)
    if not sites and not mlp_out:
        raise ActivationsError("neither x nor mlp_out is asked for: there is nothing to read")
    paths = hook_shards(opened)
    urls = tuple(opened.url(path) for path in paths)
    expected = expected_of(opened, paths)
    schema = Shards(urls, expected).footer(urls[0]).schema.to_arrow_schema()
    return HookStream(
        urls=urls,
        wanted=wanted_hooks(opened, schema, layers, sites, mlp_out=mlp_out),
        leading=leading,
        expected=expected,
        digest=digest_of([opened.manifest.files[path].sha256 for path in paths]),
    )


def _sites(opened: Source, x_sites: str | Sequence[str] | None) -> list[str]:
    """Return the sites of `x`: the data's own where none is named.

    Raises:
        ActivationsError: there is no such site, or the data does not say its own.
    """
    own = opened.manifest.recipe.x_site
    if x_sites is None:
        if own is None:
            raise ActivationsError(
                f"{opened.name} does not say where its x was read (it was imported), so that its "
                "hooks have no names: say x_site='resid_mid' (or 'resid_pre', or 'mlp_in')"
            )
        return [own]
    sites = [x_sites] if isinstance(x_sites, str) else list(dict.fromkeys(x_sites))
    for site in sites:
        if site not in X_HOOKS:
            raise ActivationsError(f"x_site must be one of {', '.join(X_HOOKS)}, got {site!r}")
    return sites
