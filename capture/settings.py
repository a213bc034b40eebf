"""What a capture is asked to do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypeVar

from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.formats.layers import DEFAULT_N_TARGETS
from llava_amber_activations.parsing.checked_values import check_choice

DEFAULT_MAX_NEW_TOKENS = 512

# One row of LLaVA-1.5-7B is 512 KiB, and a sample has about 600 of them when all are kept: these
# defaults hold a chunk to about 32 MiB and 2.4 GiB.
CHUNK_SAMPLES_LAST = 64
CHUNK_SAMPLES = 8

# More processes do not read pictures faster than one GPU takes them.
MOST_WORKERS = 8


PROMPT_TEMPLATES = ("chat", "none")

# Where each of several datasets has an option of its own, what stands for none of it.
NOT_GIVEN = "-"

# Positions among which some may be of an answer; the last one is, where a sample has one.
_WITH_ANSWERS = ("all", "last", "generated", "answer")

_T = TypeVar("_T")
OneOrEach: TypeAlias = _T | tuple[_T, ...]
"""One value for all datasets, or a tuple of one for each of them, in their order."""


@dataclass(frozen=True)
class BenchmarkAsked:
    """One query file or dataset, and what goes with it.

    Attributes:
        dataset: a query file, or `hf:` and the name of a dataset.
        image_dir: folder of the pictures; None where a dataset holds them, or there are none.
        split: of a dataset; None for the first.
        image_column, query_column: columns of a dataset, or keys of a query file's entries; None
            for those that are taken unasked, `NOT_GIVEN` for no pictures.
        answer_column: column or key of the answers that the model is given to read; None for none.
        prompt_template: "chat" asks in a user's turn; "none" gives the text as it is.
        weight: its share beside the others'.
    """

    dataset: str | Path
    image_dir: Path | None = None
    split: str | None = None
    image_column: str | None = None
    query_column: str | None = None
    answer_column: str | None = None
    prompt_template: str = "chat"
    weight: float | None = None

    def __post_init__(self) -> None:
        check_choice("--prompt-template", self.prompt_template, PROMPT_TEMPLATES)
        # Neither NaN nor infinity is between the two.
        if self.weight is not None and not 0 < self.weight < 1e9:
            raise ActivationsError(f"--weight is a number above 0, not {self.weight}")

    @property
    def has_no_pictures(self) -> bool:
        """Whether pictures were asked to be left aside."""
        return self.image_column == NOT_GIVEN

    @property
    def is_raw(self) -> bool:
        """Whether its texts are read without the chat template."""
        return self.prompt_template == "none"


@dataclass(frozen=True)
class CaptureSettings:
    """What a capture was asked to do; the fields are the options of `llava-amber capture`.

    Attributes:
        dataset: a query file, or `hf:` and the name of a dataset; or several of them.
        image_dir, split, image_column, query_column, answer_column, prompt_template, weight: as
            `BenchmarkAsked` has them, one for all datasets or one for each.
        system: text of the system's turn of every chat that has none of its own.
        layers: that are kept, ascending; None keeps all.
        always: "last" keeps each sample's last token, whatever else is kept of it.
        logprobs: whether each row of an answer says how likely its token was.
        batch_size: samples in a forward pass; None finds the most that fit.
        reuse_prefix: let queries on one picture share what precedes them; None does so where it
            changes nothing.
        compile: have torch compile the norms and the MLPs.
        device_map: "auto" deals the model out to several devices.
        num_workers: processes that read pictures ahead; None lets the device decide.
        force: go on where the disk has less room than the capture takes.
    """

    model: str
    dataset: OneOrEach[str | Path]
    image_dir: OneOrEach[Path | None]
    output_dir: Path
    n_targets: int = DEFAULT_N_TARGETS
    layers: tuple[int, ...] | None = None
    positions: str = "last"
    sample_positions: int | None = None
    seed: int = 0
    always: str | None = None
    max_new_tokens: int | None = None
    logprobs: bool = False
    transcoders: Path | None = None
    pool: str = "max"
    x_site: str = "resid_mid"
    dtype: str | None = None
    store_dtype: str | None = None
    batch_size: int | None = 8
    reuse_prefix: bool | None = None
    compile: bool = False
    num_workers: int | None = None
    split: OneOrEach[str | None] = None
    image_column: OneOrEach[str | None] = None
    query_column: OneOrEach[str | None] = None
    answer_column: OneOrEach[str | None] = None
    prompt_template: OneOrEach[str] = "chat"
    weight: OneOrEach[float | None] = None
    system: str | None = None
    max_samples: int | None = None
    chunk_samples: int | None = None
    on_error: str = "stop"
    revision: str | None = None
    device_map: str | None = None
    force: bool = False

    @property
    def benchmarks(self) -> tuple[BenchmarkAsked, ...]:
        """The query files and datasets, each with what goes with it.

        Raises:
            ActivationsError: an option is given neither once nor as often as there are datasets,
                or has a value that it cannot have.
        """
        datasets = self.dataset if isinstance(self.dataset, tuple) else (self.dataset,)
        n_asked = len(datasets)
        return tuple(
            BenchmarkAsked(*values)
            for values in zip(
                datasets,
                _each("image_dir", self.image_dir, n_asked),
                _each("split", self.split, n_asked),
                _each("image_column", self.image_column, n_asked),
                _each("query_column", self.query_column, n_asked),
                _each("answer_column", self.answer_column, n_asked),
                _each("prompt_template", self.prompt_template, n_asked),
                _each("weight", self.weight, n_asked),
                strict=True,
            )
        )

    @property
    def response_tokens(self) -> int | None:
        """Most tokens of the responses to generate; None where none are wanted."""
        if self.positions != "generated":
            return None
        return self.max_new_tokens or DEFAULT_MAX_NEW_TOKENS

    @property
    def keeps_answers(self) -> bool:
        """Whether kept positions may be of an answer, which `logprobs` says something of."""
        return self.always == "last" or self.positions in _WITH_ANSWERS

    @property
    def samples_per_chunk(self) -> int:
        """Samples in each chunk of the store."""
        default = CHUNK_SAMPLES_LAST if self.positions == "last" else CHUNK_SAMPLES
        return self.chunk_samples or default


def _each(name: str, given: OneOrEach[_T], n_asked: int) -> tuple[_T, ...]:
    """Return an option's value for each dataset.

    Raises:
        ActivationsError: there are neither one nor so many.
    """
    values = given if isinstance(given, tuple) else (given,)
    if len(values) not in (1, n_asked):
        raise ActivationsError(
            f"--{name.replace('_', '-')} is given {len(values)} times, and --dataset {n_asked}: "
            "give it once for all, or once for each in their order"
        )
    return values if len(values) == n_asked else values * n_asked
