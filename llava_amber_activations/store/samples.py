"""`samples.jsonl` of a capture store: what is known of each sample, one line each."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, groupby, repeat
from pathlib import Path
from typing import Any, overload

from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.files.read_errors import read_errors
from llava_amber_activations.parsing.checked_values import (
    INT32_MAX,
    check_choice,
    check_number,
    check_sha256,
)
from llava_amber_activations.parsing.typed_json import parse_json_object, read_object
from llava_amber_activations.store.layout import is_finished, missing_chunks, read_recipe
from llava_amber_activations.store.sums import SAMPLES_FILE, check_sums

# Of a sample, in a file: no model reads more, and a run cannot be made to fill the memory.
MOST_TOKENS = 1 << 24

_ROLES = ("system", "user", "assistant")

_TOKENS_FORM = "is no list of texts and of [text, how many times] pairs"


@dataclass(frozen=True)
class Tokens(Sequence[str]):
    """The text of each token of a sample, by position; joined, they are the decoded text.

    The hundreds of tokens that stand for a picture are one run: `tuple(tokens)` is all of them.

    Attributes:
        runs: a text that comes once, or a text and how many times it comes one after the other.
    """

    runs: tuple[str | tuple[str, int], ...]

    @classmethod
    def of(cls, texts: Iterable[str]) -> Tokens:
        """Return the tokens whose texts are `texts`."""
        return cls._of_runs((text, 1) for text in texts)

    @classmethod
    def _of_runs(cls, runs: Iterable[tuple[str, int]]) -> Tokens:
        joined = []
        for text, same in groupby(runs, key=lambda run: run[0]):
            times = sum(count for _, count in same)
            # The same few thousand texts make up the tokens of any number of samples.
            shared = sys.intern(text)
            joined.append(shared if times == 1 else (shared, times))
        return cls(tuple(joined))

    @classmethod
    def of_json(cls, value: object) -> Tokens:
        """Return the tokens that `to_json` wrote.

        Raises:
            ActivationsError: it is no such list; the message goes on from what holds it.
        """
        runs, n_tokens = [], 0
        for item in value if isinstance(value, list) else [None]:
            text, times = item if isinstance(item, list) and len(item) == 2 else (item, 1)
            if type(text) is not str or type(times) is not int or times < 1:
                raise ActivationsError(_TOKENS_FORM)
            n_tokens += times
            runs.append((text, times))
        if n_tokens > MOST_TOKENS:
            raise ActivationsError(f"has {n_tokens} tokens, more than {MOST_TOKENS}")
        return cls._of_runs(runs)

    def to_json(self) -> list[object]:
        """Return them as `samples.jsonl` has them: a run of equal ones is `[text, times]`."""
        return [run if isinstance(run, str) else list(run) for run in self.runs]

    def __len__(self) -> int:
        return sum(1 if isinstance(run, str) else run[1] for run in self.runs)

    def __iter__(self) -> Iterator[str]:
        return chain.from_iterable(
            (run,) if isinstance(run, str) else repeat(*run) for run in self.runs
        )

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[str, ...]: ...

    def __getitem__(self, index: int | slice) -> str | tuple[str, ...]:
        return tuple(self)[index]


@dataclass(frozen=True)
class Turn:
    """One turn of a chat: whose it is (`system`, `user` or `assistant`), and its text."""

    role: str
    text: str

    def __post_init__(self) -> None:
        check_choice("role", self.role, _ROLES)


@dataclass(frozen=True)
class SampleRecord:
    """One line of `samples.jsonl`.

    Attributes:
        sample: index in the query file, from 0.
        id, image, query: as the query file has them; `image` is None where there is none. Of a chat
            of several turns, `query` is the text of the last.
        image_sha256: of the picture file's bytes.
        n_rows: how many rows of the store are this sample's; 0 where it was skipped.
        error: why it was skipped, or None.
        response: what the model answered, where it was asked to.
        prompt: what the model was asked, as its chat template has it, the picture still what stands
            for it. None, as what follows, where the sample was skipped, and in stores of earlier
            releases.
        tokens: of the prompt and, after it, the response or the answer: their texts.
        response_start: position of the response's or the answer's first token, where there is one;
            as many as there are tokens where it has none.
        source: the name of the query file or dataset that the sample is of, where several were
            mixed.
        history: the turns before the query, in order, the system's first; None where there are
            none.
        answer: what the model was given to read as its answer, where it was.
    """

    sample: int
    id: int
    image: str | None
    query: str
    image_sha256: str | None
    n_rows: int
    error: str | None = None
    response: str | None = None
    prompt: str | None = None
    tokens: Tokens | None = None
    response_start: int | None = None
    source: str | None = None
    history: tuple[Turn, ...] | None = None
    answer: str | None = None

    def __post_init__(self) -> None:
        check_number("sample", self.sample, 0, INT32_MAX)
        check_number("id", self.id, -INT32_MAX - 1, INT32_MAX)
        check_number("n_rows", self.n_rows, 0, INT32_MAX)
        check_sha256("image_sha256", self.image_sha256)
        check_number("response_start", self.response_start, 0, len(self.tokens or ()))

    def to_json(self) -> dict[str, Any]:
        """Return the record as a JSON object, without what is None and has None by default."""
        fields = {
            field.name: value
            for field in dataclasses.fields(self)
            if (value := getattr(self, field.name)) is not None or field.default is not None
        }
        if self.tokens is not None:
            fields["tokens"] = self.tokens.to_json()
        if self.history is not None:
            fields["history"] = [dataclasses.asdict(turn) for turn in self.history]
        return fields

    def to_line(self) -> str:
        """Return the record as one JSON line."""
        return json.dumps(self.to_json(), ensure_ascii=False)


def read_samples(store: Path) -> list[SampleRecord]:
    """Read the records of a finished store.

    Raises:
        ActivationsError: the capture is not finished, or one of the files that SHA256SUMS is of is
            damaged.
    """
    path = store / SAMPLES_FILE
    recipe = read_recipe(store)
    if not is_finished(store, recipe):
        missing = len(missing_chunks(store, recipe))
        raise ActivationsError(
            f"the capture in {store} is not finished ({missing} chunks are missing): run the same "
            "capture command again"
        )
    check_sums(store)
    with read_errors(path):
        lines = path.read_bytes().splitlines()
    records = []
    for number, line in enumerate(lines, start=1):
        where = f"{path} line {number}"
        value = parse_json_object(line, where)
        records.append(read_object(SampleRecord, value, where, "a sample"))
    return records
