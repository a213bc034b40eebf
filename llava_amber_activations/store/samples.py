"""`samples.jsonl` of a capture store: what is known of each sample, one line each."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.files.read_errors import read_errors
from llava_amber_activations.parsing.checked_values import INT32_MAX, check_number, check_sha256
from llava_amber_activations.parsing.typed_json import parse_json_object, read_object
from llava_amber_activations.store.layout import is_finished, missing_chunks, read_recipe
from llava_amber_activations.store.sums import SAMPLES_FILE, check_sums


@dataclass(frozen=True)
class SampleRecord:
    """One line of `samples.jsonl`.

    Attributes:
        sample: index in the query file, from 0.
        id, image, query: as the query file has them.
        image_sha256: of the picture file's bytes.
        n_rows: how many rows of the store are this sample's; 0 where it was skipped.
        error: why it was skipped, or None.
        response: what the model answered, where it was asked to.
    """

    sample: int
    id: int
    image: str
    query: str
    image_sha256: str | None
    n_rows: int
    error: str | None = None
    response: str | None = None

    def __post_init__(self) -> None:
        check_number("sample", self.sample, 0, INT32_MAX)
        check_number("id", self.id, -INT32_MAX - 1, INT32_MAX)
        check_number("n_rows", self.n_rows, 0, INT32_MAX)
        check_sha256("image_sha256", self.image_sha256)

    def to_line(self) -> str:
        """Return the record as one JSON line, without `error` or `response` where there is none."""
        fields = dataclasses.asdict(self)
        for name in ("error", "response"):
            if fields[name] is None:
                del fields[name]
        return json.dumps(fields, ensure_ascii=False)


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
