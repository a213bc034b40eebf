"""Several benchmarks in one capture: which of their samples, in which order, under which names.

The order is that of the largest deficit. After t samples a source with the share s should have had
s · t of them; the next one is of the source that lacks most of what it should have had, of the
first of those that lack as much. So every beginning of the capture has about the shares of all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import lcm
from pathlib import Path

from capture.samples.pictures import PictureSource
from capture.samples.queries import Query
from capture.settings import BenchmarkAsked
from llava_amber_activations.formats.recipe import HF_PREFIX


@dataclass(frozen=True)
class MixedPictures:
    """The pictures of several sources, by their names; those without any have no entry.

    Of a capture of one source, its name is None.
    """

    sources: Mapping[str | None, PictureSource]

    def content(self, query: Query) -> bytes:
        """Return the bytes of a sample's picture file."""
        return self.sources[query.source].content(query)

    def name(self, query: Query) -> str:
        """Say which picture it is."""
        return self.sources[query.source].name(query)


def source_names(asked: Sequence[BenchmarkAsked]) -> list[str]:
    """Name each source after its file or dataset; those of one name are numbered from 1."""
    names = [_name(each) for each in asked]
    taken = set(names)
    repeated = {name for name, count in Counter(names).items() if count > 1}
    found: list[str] = []
    for name in names:
        number = 1
        unique = name
        while name in repeated and (unique := f"{name}-{number}") in taken:
            number += 1
        taken.add(unique)
        found.append(unique)
    return found


def _name(asked: BenchmarkAsked) -> str:
    name = str(asked.dataset)
    if name.startswith(HF_PREFIX):
        name = name.removeprefix(HF_PREFIX)
        # Of a folder its own name: the path to it is nobody else's business.
        return Path(name).resolve().name if Path(name).is_dir() else name
    return Path(name).stem


def mixed(
    sources: Mapping[str, Sequence[Query]],
    weights: Sequence[float | None],
    max_samples: int | None = None,
) -> list[Query]:
    """Mix the samples of several sources, each source's in their own order.

    Args:
        sources: the samples of each, by its name.
        weights: of each, in the same order; without any, all samples of all sources are taken. With
            them, the first source that has no more ends the mixture.
        max_samples: of all together.

    Returns:
        The samples, numbered anew, each with its source.
    """
    names = list(sources)
    shares = [
        len(sources[name]) if weight is None else weight
        for name, weight in zip(names, weights, strict=True)
    ]
    queries: list[Query] = []
    taken = dict.fromkeys(names, 0)
    for number in order(shares, max_samples, [len(sources[name]) for name in names]):
        name = names[number]
        query = sources[name][taken[name]]
        queries.append(replace(query, sample=len(queries), source=name))
        taken[name] += 1
    return queries


def order(shares: Sequence[float], most: int | None, available: Sequence[int]) -> list[int]:
    """Return which source each sample of a mixture is of, by the sources' numbers.

    Args:
        shares: of each source, in any unit.
        most: samples of the mixture.
        available: samples that each source has; the first of which more are wanted ends it.
    """
    # Whole numbers, so that no rounding decides between sources that lack as much.
    fractions = [Fraction(share) for share in shares]
    unit = lcm(*(fraction.denominator for fraction in fractions))
    weights = [int(fraction * unit) for fraction in fractions]
    total = sum(weights)
    most = sum(available) if most is None else min(most, sum(available))
    found: list[int] = []
    deficits = [0] * len(weights)
    taken = [0] * len(weights)
    while len(found) < most:
        deficits = [deficit + weight for deficit, weight in zip(deficits, weights, strict=True)]
        number = max(range(len(weights)), key=deficits.__getitem__)
        if taken[number] == available[number]:
            break
        found.append(number)
        taken[number] += 1
        deficits[number] -= total
    return found
