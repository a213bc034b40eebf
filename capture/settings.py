"""What a capture is asked to do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llava_amber_activations.formats.layers import DEFAULT_N_TARGETS

DEFAULT_MAX_NEW_TOKENS = 512

# One row of LLaVA-1.5-7B is 512 KiB, and a sample has about 600 of them when all are kept: these
# defaults hold a chunk to about 32 MiB and 2.4 GiB.
CHUNK_SAMPLES_LAST = 64
CHUNK_SAMPLES = 8

# More processes do not read pictures faster than one GPU takes them.
MOST_WORKERS = 8


@dataclass(frozen=True)
class CaptureSettings:
    """What a capture was asked to do; the fields are the options of `llava-amber capture`.

    Attributes:
        dataset: a query file, or `hf:` and the name of a dataset.
        image_dir: folder of the pictures; None where a dataset holds them.
        layers: that are kept, ascending; None keeps all.
        always: "last" keeps each sample's last token, whatever else is kept of it.
        split, image_column, query_column: of a dataset.
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
    dataset: str | Path
    image_dir: Path | None
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
    split: str | None = None
    image_column: str = "image"
    query_column: str = "query"
    max_samples: int | None = None
    chunk_samples: int | None = None
    on_error: str = "stop"
    revision: str | None = None
    device_map: str | None = None
    force: bool = False

    @property
    def response_tokens(self) -> int | None:
        """Most tokens of the responses to generate; None where none are wanted."""
        if self.positions != "generated":
            return None
        return self.max_new_tokens or DEFAULT_MAX_NEW_TOKENS

    @property
    def keeps_answers(self) -> bool:
        """Whether kept positions may be of an answer, which `logprobs` says something of."""
        return self.positions == "generated"

    @property
    def samples_per_chunk(self) -> int:
        """Samples in each chunk of the store."""
        default = CHUNK_SAMPLES_LAST if self.positions == "last" else CHUNK_SAMPLES
        return self.chunk_samples or default
