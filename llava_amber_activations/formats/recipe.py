"""How a set of activations was made: the text of `capture.json`, which travels with the data."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, get_args

from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.formats.columns import EXTRA
from llava_amber_activations.formats.dtypes import DType
from llava_amber_activations.formats.version import FORMAT_VERSION, check_format_version
from llava_amber_activations.parsing.checked_values import (
    INT32_MAX,
    check_choice,
    check_number,
    check_sha256,
)
from llava_amber_activations.parsing.typed_json import read_object

XSite = Literal["resid_mid", "resid_pre", "mlp_in"]
Positions = Literal["last", "all", "image", "text", "generated", "answer"]
Always = Literal["last"]
Pool = Literal["max", "mean", "last"]

X_SITES: tuple[str, ...] = get_args(XSite)

# Far beyond any model or capture; a damaged number must not become a loop or an allocation.
MOST_LAYERS = 10_000
MOST_WIDTH = 1 << 24
_MOST_CHUNKS = 1_000_000
_MOST_SAID = 8

# What the benchmark's name begins with where it is a dataset of the Hub, or of a folder.
HF_PREFIX = "hf:"


@dataclass(frozen=True)
class RecipeSource:
    """One of the query files or datasets that a capture mixed.

    Attributes:
        name: what column `source` says of its samples.
        benchmark, queries_sha256, dataset_revision: as the recipe of a capture of it alone has
            them.
        n_samples: how many samples of the capture are its.
        weight: its share beside the others', where shares were asked for.
        answer_column: as the recipe of a capture of it alone has it.
        prompt_template: "chat" where its texts were asked by the model's chat template, "none"
            where they were read as they are.
    """

    name: str
    benchmark: str
    queries_sha256: str
    n_samples: int
    dataset_revision: str | None = None
    weight: float | None = None
    answer_column: str | None = None
    prompt_template: str = "chat"

    def __post_init__(self) -> None:
        check_number("n_samples", self.n_samples, 0, INT32_MAX)
        check_sha256("queries_sha256", self.queries_sha256)


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the values of a capture; None where an import cannot know it.

    Attributes:
        format_version: of the store and of the dataset made from it, "major.minor".
        origin: "capture", or which `.pt` layout the data was imported from.
        model: Hub id or folder of the model; `revision` is its commit where it came from the Hub.
        weights_sha256: of a local folder's weights and configs together, where it did not.
        dtype: what the model computed in; `store_dtype` is what was kept.
        x_site: where in a layer `x` was read.
        positions: which token positions of a sample became rows.
        sample_positions, seed: how many of those positions were drawn from each sample, and the
            seed of the draw; None where all were kept.
        always: the position of each sample that is kept beside those, whatever was drawn.
        max_new_tokens: most tokens of a generated response, where there is one.
        transcoders_sha256: of the transcoders' checkpoints together, where features were captured.
        pool: how a sample's features were pooled over its rows.
        prompt: the chat template's text, `{query}` standing for the sample's query.
        n_layers, hidden_size: of the language model.
        layers: that were kept, ascending; None where all were. An import has what its files had.
        n_targets: how many targets a layer has unless the builder is told otherwise.
        benchmark: file name of the query file; `queries_sha256` is its checksum.
        n_samples, chunk_samples: samples in all, and in each chunk of the store.
        dataset_revision: commit of a dataset of the Hub, or one checksum of a local one's files.
        image_processor: class that made the pixels (its backends differ in the last bits).
        device: name of the GPU, or of the CPU and its instruction set. This and the next four
            decide the last bits alone.
        batch_size: most samples of a forward pass; None where `auto_batch_size` chose it, and each
            chunk says its own.
        auto_batch_size: whether the device's memory decided the batch size.
        compile: whether torch compiled the norms and the MLPs.
        reuse_prefix: whether queries on one picture shared what precedes them.
        versions: of the libraries that decide values.
        sites: of each vector ("x", "mlp_out"), which module's input or output it is, by the names
            of the model's code.
        sources: where samples of several query files or datasets were mixed, each of them;
            `benchmark` then joins their names, and `queries_sha256` is over all of theirs.
        system: text of the system's turn, where one was given.
        answer_column: which column or key of the benchmark held the answers that the model was
            given to read.
        extra_columns: which columns of `EXTRA` the rows have.
    """

    n_layers: int
    hidden_size: int
    n_targets: int
    store_dtype: str
    n_samples: int
    layers: tuple[int, ...] | None = None
    origin: str = "capture"
    model: str | None = None
    revision: str | None = None
    dtype: str | None = None
    x_site: str | None = None
    positions: str | None = None
    sample_positions: int | None = None
    seed: int | None = None
    always: str | None = None
    max_new_tokens: int | None = None
    transcoders_sha256: str | None = None
    pool: str | None = None
    prompt: str | None = None
    benchmark: str | None = None
    queries_sha256: str | None = None
    chunk_samples: int | None = None
    image_processor: str | None = None
    weights_sha256: str | None = None
    dataset_revision: str | None = None
    device: str | None = None
    batch_size: int | None = None
    auto_batch_size: bool | None = None
    compile: bool | None = None
    reuse_prefix: bool | None = None
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    sites: dict[str, str] | None = None
    sources: tuple[RecipeSource, ...] | None = None
    system: str | None = None
    answer_column: str | None = None
    extra_columns: tuple[str, ...] = ()
    format_version: str = FORMAT_VERSION

    def __post_init__(self) -> None:
        check_format_version(self.format_version, "the recipe")
        for name, least, most in (
            ("n_layers", 1, MOST_LAYERS),
            ("hidden_size", 1, MOST_WIDTH),
            ("n_targets", 1, MOST_LAYERS),
            ("n_samples", 0, INT32_MAX),
            ("chunk_samples", 1, INT32_MAX),
            ("sample_positions", 1, INT32_MAX),
            ("max_new_tokens", 1, INT32_MAX),
            ("batch_size", 1, INT32_MAX),
        ):
            check_number(name, getattr(self, name), least, most)
        if self.layers is not None:
            found = self.layers
            is_ascending = all(a < b for a, b in pairwise(found))
            if not found or not is_ascending or not 0 <= found[0] <= found[-1] < self.n_layers:
                raise ActivationsError(
                    f"layers must be ascending layers of the model, of {self.n_layers}, got "
                    f"{list(found)[:_MOST_SAID]}"
                )
        if self.seed is not None and self.seed < 0:
            raise ActivationsError(f"seed must not be negative, got {self.seed}")
        if self.n_samples > _MOST_CHUNKS * (self.chunk_samples or self.n_samples):
            raise ActivationsError(
                f"n_samples must be at most {_MOST_CHUNKS} times chunk_samples "
                f"({self.chunk_samples}), got {self.n_samples}"
            )
        for name, choices in (
            ("store_dtype", get_args(DType)),
            ("dtype", get_args(DType)),
            ("x_site", X_SITES),
            ("positions", get_args(Positions)),
            ("always", get_args(Always)),
            ("pool", get_args(Pool)),
        ):
            check_choice(name, getattr(self, name), choices)
        for column in self.extra_columns:
            check_choice("extra_columns", column, EXTRA)
        for name in ("transcoders_sha256", "queries_sha256", "weights_sha256"):
            check_sha256(name, getattr(self, name))

    @property
    def kept_layers(self) -> range | tuple[int, ...]:
        """The layers that a capture kept, ascending."""
        return range(self.n_layers) if self.layers is None else self.layers

    def to_json(self) -> dict[str, Any]:
        """Return the recipe as a JSON object, `format_version` first."""
        fields = dataclasses.asdict(self)
        # As it is read back, so that the two compare equal.
        for name in ("layers", "sources", "extra_columns"):
            fields[name] = None if fields[name] is None else list(fields[name])
        return {"format_version": fields.pop("format_version"), **fields}

    @classmethod
    def from_json(cls, value: dict[str, Any], where: object) -> Recipe:
        """Read a recipe back.

        Raises:
            ActivationsError: it was written by a newer major format, keys are missing, or a value
                is not of its type or range; the message names `where`.
        """
        check_format_version(value.get("format_version"), where)
        return read_object(cls, value, where, "a capture recipe")

    def why_none(self, name: str) -> str:
        """Say what None means in a field: `all`, `not used`, or that nobody knows (`unknown`)."""
        # An import without a note of `export` knows of no capture; a capture has its positions.
        captured = self.positions is not None
        if name == "layers" and captured:
            return "all"
        not_used = {
            "sample_positions": captured,
            "seed": captured and self.sample_positions is None,
            "always": captured,
            "sources": captured,
            "system": captured,
            "answer_column": captured,
            "max_new_tokens": captured and self.positions != "generated",
            "transcoders_sha256": captured,
            "pool": captured and self.transcoders_sha256 is None,
            "dataset_revision": self.sources is not None
            or not (self.benchmark or HF_PREFIX).startswith(HF_PREFIX),
            # A model has a commit on the Hub, or its weights in a folder.
            "revision": self.weights_sha256 is not None,
            "weights_sha256": self.revision is not None,
            # Each chunk has its own.
            "batch_size": self.auto_batch_size is True,
        }
        return "not used" if not_used.get(name) else "unknown"

    def differences(self, other: Recipe) -> list[str]:
        """Name every field in which two recipes differ, as `field (this, not that)`."""
        mine, theirs = self.to_json(), other.to_json()
        return [
            f"{key} ({mine[key]!r}, not {theirs[key]!r})"
            for key in mine
            if mine[key] != theirs[key]
        ]
