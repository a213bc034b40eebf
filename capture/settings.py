"""What a capture is asked to do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llava_amber_activations.layers import DEFAULT_N_TARGETS


@dataclass(frozen=True)
class CaptureSettings:
    """What a capture was asked to do; the fields are the options of `llava-amber capture`."""

    model: str
    dataset: Path
    image_dir: Path
    output_dir: Path
    n_targets: int = DEFAULT_N_TARGETS
    positions: str = "last"
    x_site: str = "resid_mid"
    dtype: str | None = None
    store_dtype: str | None = None
    batch_size: int = 8
    max_samples: int | None = None
    chunk_samples: int | None = None
    on_error: str = "stop"
    revision: str | None = None
