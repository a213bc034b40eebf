"""What is joined to the samples: columns of annotations and of answers."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from builder.samples.asked import SamplesAsked
from llava_amber_activations.store.samples import SampleRecord


def joined_columns(records: Sequence[SampleRecord], asked: SamplesAsked) -> pa.Table:
    """Return the columns that the files that were asked for give, a row for each record.

    Raises:
        ActivationsError: a file cannot be read, or does not fit the samples.
    """
    return pa.table({})
