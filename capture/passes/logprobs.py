"""How likely the model found each token of an answer: the head, for the positions before them.

    whole(ids) = head(body(ids))        the body is what the taps are on
                 head(states [n, H])    of the n positions that are asked about, and of no others

What a model makes of its head's output (Gemma caps the logits, Granite and Cohere scale them)
stands in its own `forward`. So that is what computes them: while it runs, the body is stood in for
by the states that it gave before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from capture.model.load import CaptureModel
from capture.model.tolerance import relative_errors, tolerance
from capture.passes.positions import ChosenRows
from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.formats.columns import ANSWER, GENERATED, KIND, POSITION, TOKEN_ID

# Logits that are computed at once: 256 MiB of them in float32.
_MOST_LOGITS = 2**26

# Gives the body's last hidden states at (element, position), int64 [n] each, on the CPU: [n, H].
States = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@torch.inference_mode()
def read_logprobs(
    rows: ChosenRows, states: States, model: CaptureModel, output: Any
) -> torch.Tensor:
    """Return the natural log-probability of the token of each row, float32 [rows] on the CPU.

    Of all tokens, given those before it: log softmax, in float32, of the logits at the position
    before. NaN where the token is neither generated nor of an answer.

    Args:
        states: of every position that is before such a row's.
        output: what the body returned; the head is given another of its class.
    """
    kind, position = rows.columns[KIND], rows.columns[POSITION].to(torch.int64)
    asked = (((kind == GENERATED) | (kind == ANSWER)) & (position > 0)).nonzero()[:, 0]
    found = torch.full((len(kind),), torch.nan)
    if not len(asked):
        return found
    of_row = states(rows.element[asked], position[asked] - 1)
    tokens = rows.columns[TOKEN_ID][asked].to(torch.int64)
    vocabulary = model.whole.config.get_text_config().vocab_size
    most = max(1, _MOST_LOGITS // vocabulary)
    parts = []
    for some, of_some in zip(of_row.split(most), tokens.split(most), strict=True):
        logits = head_logits(model, output, some)
        every = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
        parts.append(every.gather(1, of_some.to(every.device)[:, None])[:, 0].clamp(max=0))
    found[asked] = torch.cat(parts).cpu()
    return found


def head_logits(model: CaptureModel, output: Any, states: torch.Tensor) -> torch.Tensor:
    """Return what the whole model makes of its body's last hidden states [n, H]: logits [n, V].

    Args:
        output: as `read_logprobs` takes it.
    """
    given = type(output)(last_hidden_state=states[None])
    ids = torch.zeros((1, len(states)), dtype=torch.int64, device=model.device)
    with _gives(model.body, given):
        logits: torch.Tensor = model.whole(input_ids=ids, use_cache=False).logits
    return logits[0]


@contextmanager
def _gives(body: nn.Module, output: Any) -> Iterator[None]:
    """Have the body return `output`, whatever it is called with."""
    # What deals a model out to several devices has set a `forward` of its own there.
    own = vars(body).get("forward")
    body.forward = lambda *inputs, **named: output
    try:
        yield
    finally:
        if own is None:
            del body.forward
        else:
            body.forward = own


@torch.inference_mode()
def check_head(model: CaptureModel, name: str, dtype: str) -> None:
    """Check on a short text that the head gives for positions what the whole model gives for them.

    Args:
        name: of the model, as a user gave it.
        dtype: what the model computes in, which decides how near the two must be.

    Raises:
        ActivationsError: it does not, or cannot be asked for them alone.
    """
    ids = model.processor.tokenizer("Describe this image.", return_tensors="pt")["input_ids"]
    ids = ids[ids != model.image_token_id][None].to(model.device)
    problem: str | None
    seen: list[Any] = []
    hook = model.body.register_forward_hook(lambda module, inputs, output: seen.append(output))
    try:
        expected = model.whole(input_ids=ids, use_cache=False).logits[0]
        hook.remove()
        problem = "it keeps no head apart from its body"
        if seen:
            found = head_logits(model, seen[0], seen[0].last_hidden_state[0])
            problem = _difference(found, expected, dtype)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        problem = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    finally:
        hook.remove()
    if problem is not None:
        raise ActivationsError(
            f"--logprobs cannot be had of {name}: its head, asked for some positions alone, does "
            f"not give what the whole model gives ({problem}). Leave it out"
        )


def _difference(found: torch.Tensor, expected: torch.Tensor, dtype: str) -> str | None:
    """Say how logits [n, V] differ from those that are expected; None where they do not."""
    if found.shape != expected.shape:
        return f"logits {list(found.shape)}, not {list(expected.shape)}"
    worst = float(relative_errors(found, expected).max())
    if worst > tolerance(dtype).rms:
        return f"logits differ by {worst:.1e} of their norm"
    return None
