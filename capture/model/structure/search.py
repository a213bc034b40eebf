"""The MLP block of one layer, searched for among what its modules were given and returned.

Of the sums that a layer may be, the first that holds is taken: the stream that a module reads plus
what another returns; the same, scaled by numbers that the layer holds, or by a module that is given
both; with a third module's output beside the two; or a sum that a later module of the layer reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from capture.model.structure.block import Block, Part, Scale
from capture.model.structure.calls import Call, LayerCalls
from capture.model.structure.positions import is_alone_at_each_position
from capture.model.structure.sums import Factor, declared_numbers, is_sum, same


class NoBlockError(Exception):
    """A layer has no MLP block of a known kind; its text goes on after "decoder layer 3"."""


@dataclass(frozen=True)
class _Sum:
    """A stream and a term that a layer adds up; `further` as in `Block`."""

    stream: torch.Tensor
    adds: Call
    scale: Scale | None = None
    further: str = ""
    is_parallel: bool = False


@dataclass(frozen=True)
class _Path:
    """From the module that reads the stream to the MLP."""

    reads: Call
    mlp: Call
    normed: bool
    is_only_reader: bool


def find_block(heard: LayerCalls) -> tuple[Block, torch.Tensor, torch.Tensor | None]:
    """Find the MLP block of a layer.

    Returns:
        The block, and some rows of its `resid_mid` and of its `mlp_in`, [rows, H].

    Raises:
        NoBlockError: there is none.
    """
    found, path = _first(heard, _sums(heard))
    try:
        # A second block on the way, such as what mixes in an embedding of the token, is no MLP.
        earlier = _first(heard, _inner(heard, _streams(heard), _terms(heard), found.stream))
    except NoBlockError:
        pass
    else:
        if _n_weights(*earlier) > _n_weights(found, path):
            found, path = earlier
    mlp = path.mlp if path.is_only_reader else None
    block = Block(
        Part(path.reads.path, path.reads.module),
        None if mlp is None else Part(mlp.path, mlp.module),
        Part(found.adds.path, found.adds.module),
        found.scale,
        path.normed,
        heard.given is not None,
        found.further,
        _compiled(heard, path, found),
    )
    return block, found.stream, None if mlp is None else mlp.given


def _first(heard: LayerCalls, sums: Iterator[_Sum]) -> tuple[_Sum, _Path]:
    """Return the first sum whose stream an MLP reads, and how.

    Raises:
        NoBlockError: there is none.
    """
    reason = ""
    for found in sums:
        path, problem = _path(heard, found)
        if path is not None:
            return found, path
        reason = reason or problem
    if heard.returned is None or not reason:
        raise NoBlockError(_what_is_different(heard))
    raise NoBlockError(reason)


def _n_weights(found: _Sum, path: _Path) -> int:
    modules = {path.mlp.module, found.adds.module}
    return sum(weights.numel() for module in modules for weights in module.parameters())


def _compiled(heard: LayerCalls, path: _Path, found: _Sum) -> tuple[torch.nn.Module, ...]:
    norms = [
        call.module
        for call in heard.calls
        if call.depth == 1 and not call.multiplies and any(True for _ in call.module.parameters())
    ]
    return tuple(dict.fromkeys([*norms, path.mlp.module, found.adds.module]))


def _what_is_different(heard: LayerCalls) -> str:
    if heard.returned is None:
        return (
            f"returns states of the shape {list(heard.shape)}, which are several streams side by "
            "side, and what its MLP returns is not added to one of them as it is"
        )
    return "does not add its MLP's output to the stream that its MLP reads"


def _sums(heard: LayerCalls) -> Iterator[_Sum]:
    """Yield the sums that hold in a layer, the simplest first."""
    total, streams, terms = heard.returned, _streams(heard), _terms(heard)
    if total is not None:
        for adds, stream in _pairs(terms, streams):
            if is_sum(total, (1.0, stream), (1.0, _of(adds))):
                yield _Sum(stream, adds)
        yield from _scaled(heard, total, streams, terms)
        yield from _gated(heard, total, streams)
        yield from _beside(heard, total, terms)
    yield from _inner(heard, streams, terms)


def _streams(heard: LayerCalls) -> list[torch.Tensor]:
    """Return what modules of the layer read, each once, what is read last first."""
    found: list[torch.Tensor] = []
    for call in reversed(heard.calls):
        if call.given is not None and not any(same(call.given, each) for each in found):
            found.append(call.given)
    return found


def _terms(heard: LayerCalls) -> list[Call]:
    """Return the calls that returned states, what returned last first, each value once.

    Of several that returned the same, the outermost, and of these the first: not a part of an MLP,
    nor what hands its output on.
    """
    found: list[Call] = []
    for call in sorted(heard.calls, key=lambda call: (call.depth, call.end)):
        if call.returned is not None and not any(same(call.returned, o.returned) for o in found):
            found.append(call)
    return sorted(found, key=lambda call: (call.depth, -call.end))


def _of(call: Call) -> torch.Tensor:
    assert call.returned is not None
    return call.returned


def _pairs(terms: list[Call], streams: list[torch.Tensor]) -> Iterator[tuple[Call, torch.Tensor]]:
    return ((adds, stream) for adds in terms for stream in streams)


def _scaled(
    heard: LayerCalls, total: torch.Tensor, streams: list[torch.Tensor], terms: list[Call]
) -> Iterator[_Sum]:
    """Yield sums whose term, or which as a whole, are multiplied by a number of the layer's."""
    for number in declared_numbers(heard.layer):
        for adds, stream in _pairs(terms, streams):
            if is_sum(total, (1.0, stream), (number.factor, _of(adds))):
                yield _Sum(stream, adds, number)
            if is_sum(total, (number.factor, stream), (number.factor, _of(adds))):
                further = f"the sum is then multiplied by {number.said}"
                yield _Sum(stream, adds, further=further)


def _gated(heard: LayerCalls, total: torch.Tensor, streams: list[torch.Tensor]) -> Iterator[_Sum]:
    """Yield sums that a module makes of a stream and a term, each times a number a dimension."""
    for gate in heard.calls:
        if gate.multiplies or not same(gate.returned, total) or len(gate.others) != 1:
            continue
        factors = _factors(gate)
        adds = next((call for call in _terms(heard) if same(call.returned, gate.others[0])), None)
        if factors is None or adds is None or gate.given is None:
            continue
        carry, scale = factors
        if is_sum(total, (carry, gate.given), (scale, _of(adds))):
            said = f"{gate.path}'s factors"
            further = f"the stream is multiplied by {gate.path}'s other factors"
            yield _Sum(gate.given, adds, Scale(scale, said), further)


def _factors(gate: Call) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return what a module multiplies each dimension of its two inputs by: [H] each."""
    tensors = (*gate.args, *gate.kwargs.values())
    if len(tensors) != 2 or not all(isinstance(value, torch.Tensor) for value in tensors):
        return None
    ones, zeros = torch.ones_like(tensors[0][:1, :1]), torch.zeros_like(tensors[0][:1, :1])
    names = list(gate.kwargs)

    def ask(*values: torch.Tensor) -> torch.Tensor:
        n_args = len(gate.args)
        answer: torch.Tensor = gate.module(
            *values[:n_args], **dict(zip(names, values[n_args:], strict=True))
        )
        return answer.flatten().cpu()

    return ask(ones, zeros), ask(zeros, ones)


def _beside(heard: LayerCalls, total: torch.Tensor, terms: list[Call]) -> Iterator[_Sum]:
    """Yield sums of the layer's own input, the MLP's output and the attention's beside it."""
    if heard.given is None:
        return
    for adds in terms:
        for beside in terms:
            parts = ((1.0, heard.given), (1.0, _of(adds)), (1.0, _of(beside)))
            if beside is not adds and is_sum(total, *parts):
                further = f"added beside the output of {beside.path}"
                yield _Sum(heard.given, adds, further=further, is_parallel=True)


def _inner(
    heard: LayerCalls,
    streams: list[torch.Tensor],
    terms: list[Call],
    only: torch.Tensor | None = None,
) -> Iterator[_Sum]:
    """Yield sums that a later module of the layer reads, where the rest of the layer is known.

    Args:
        only: the one sum that is looked for, if not all.
    """
    for later in reversed(heard.every):
        for total in (later.given, *later.others):
            if total is None or (only is not None and not same(total, only)):
                continue
            for adds, stream in _pairs(terms, streams):
                if adds.end > later.start or same(stream, total):
                    continue
                if is_sum(total, (1.0, stream), (1.0, _of(adds))):
                    further = _rest(heard, total, later, terms)
                    if further is not None:
                        yield _Sum(stream, adds, further=further)


def _rest(heard: LayerCalls, total: torch.Tensor, later: Call, terms: list[Call]) -> str | None:
    """Say what the layer does with a sum that one of its modules reads; None if nobody knows."""
    if heard.returned is None:
        return f"the sum is what {later.path} gets, which updates the layer's streams"
    numbers = declared_numbers(heard.layer)
    factors: list[tuple[Factor, str]] = [(1.0, "")]
    factors += [(each.factor, f", and the sum multiplied by {each.said}") for each in numbers]
    for factor, said in factors:
        for more in terms:
            if is_sum(heard.returned, (factor, total), (factor, _of(more))):
                return f"the output of {more.path} is then added{said}"
    if same(later.returned, heard.returned):
        return f"the sum then goes through {later.path}"
    return None


def _path(heard: LayerCalls, found: _Sum) -> tuple[_Path | None, str]:
    """Find what reads a sum's stream and leads to the term; or say why nothing does."""
    problem = ""
    before = [call for call in heard.calls if call.start < found.adds.end]
    readers = _outermost([call for call in before if same(call.given, found.stream)])
    for reads in readers:
        for mlp in _mlps(before, reads):
            is_linked = mlp is found.adds or same(mlp.returned, found.adds.given)
            is_linked = is_linked or mlp.holds(found.adds)
            if not is_linked and (found.is_parallel or mlp.start > found.adds.start):
                continue
            ends = (mlp,) if is_linked else (mlp, found.adds)
            if not all(map(is_alone_at_each_position, ends)):
                problem = problem or (
                    f"adds the output of {found.adds.path} to the stream, which mixes "
                    "positions: it is no MLP's"
                )
                continue
            is_only = found.is_parallel or is_linked or len(readers) == 1
            return _Path(reads, mlp, reads is not mlp, is_only), ""
        if reads.width != found.stream.shape[-1] and not reads.multiplies:
            return None, (
                f"'s {reads.path} returns vectors of width {reads.width}, and the config says "
                f"{found.stream.shape[-1]}"
            )
        problem = problem or (
            "does not add its MLP's output to the stream that its MLP reads: what "
            f"{reads.path} returns is given to no MLP"
        )
    return None, problem


def _mlps(before: list[Call], reads: Call) -> list[Call]:
    """Return what may be the MLP: what reads the stream, or what gets what a norm made of it."""
    if reads.multiplies:
        return [reads]
    fed = [call for call in before if call.start > reads.end and same(call.given, reads.returned)]
    return [call for call in _outermost(fed) if call.multiplies]


def _outermost(calls: list[Call]) -> list[Call]:
    return [call for call in calls if not any(other.holds(call) for other in calls)]
