"""The rule by which statistics leave out rows, and what `statistics.safetensors` says of itself."""

from __future__ import annotations

import json

from llava_amber_activations.formats.columns import KINDS
from llava_amber_activations.formats.version import FORMAT_VERSION

# Rows are counted by these; the last is of rows whose `kind` is empty.
COUNTED_KINDS = (*KINDS, "unknown")

# A row whose root mean square is over so many times the median one is an outlier. The limit is
# rounded up to a power of 2 ** (1 / 8), so that whole classes of sizes are outliers, or not.
OUTLIER_TIMES = 10.0
LIMITS_PER_OCTAVE = 8

# Before the names of those tensors that are without outliers.
ROBUST = "robust_"

METADATA_KEY = "statistics"
_RULE = (
    f"{ROBUST}*: without outliers. A row is an outlier of one vector (the x, or the mlp_out, of "
    "one layer) where its root mean square over the dimensions is not below that vector's "
    f"{ROBUST}*_rms_limit: the least power of 2**(1/{LIMITS_PER_OCTAVE}) that is not below "
    f"{OUTLIER_TIMES:g} times the median of all rows, which is known to 0.6 %; infinite where "
    "that is 0."
)


def statistics_metadata() -> dict[str, str]:
    """Return the metadata of the file, one key: with several, their order would be any."""
    said = {
        "format_version": FORMAT_VERSION,
        "kinds": COUNTED_KINDS,
        "outlier_times": OUTLIER_TIMES,
        "limits_per_octave": LIMITS_PER_OCTAVE,
        "rule": _RULE,
    }
    return {METADATA_KEY: json.dumps(said)}
