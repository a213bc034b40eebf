"""The table of the page, and the part of the page that is made of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import transformers
from family.verdict import ACCEPTED, CHECKED, NOT_TRIED, REFUSED, Verdict

BEGIN, END = "<!-- made by tests/benchmarks/families.py -->", "<!-- end of what was made -->"


def table(verdicts: Sequence[Verdict]) -> str:
    """Return how many families came to what, and a row of each."""
    count = {
        outcome: sum(verdict.outcome == outcome for verdict in verdicts)
        for outcome in (CHECKED, ACCEPTED, REFUSED, NOT_TRIED)
    }
    head = (
        f"Of the {len(verdicts)} families of transformers {transformers.__version__}, "
        f"{count[CHECKED] + count[ACCEPTED]} can be captured: {count[CHECKED]} with their values "
        f"checked, {count[ACCEPTED]} accepted by their structure. {count[REFUSED]} are refused, "
        f"and {count[NOT_TRIED]} could not be tried (torch {torch.__version__.partition('+')[0]}, "
        "on a CPU)."
    )
    lines = [
        head,
        "",
        "| family | class | verdict | `x` (`resid_mid`) | `mlp_out` |",
        "|---|---|---|---|---|",
        *map(_row, verdicts),
    ]
    return "\n".join(lines)


def _row(verdict: Verdict) -> str:
    said = {
        CHECKED: f"captured, values checked ({verdict.worst or 0:.1e})",
        ACCEPTED: f"accepted by structure; {verdict.why}",
        REFUSED: f"refused: {verdict.why}",
        NOT_TRIED: f"not tried: {verdict.why}",
    }[verdict.outcome]
    if verdict.note:
        said += f". {verdict.note}"
    cells = (f"`{verdict.family}`", f"`{verdict.architecture}`", said, verdict.x, verdict.mlp_out)
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def rewritten(page: str, verdicts: Sequence[Verdict]) -> str:
    """Return a page with the part between its marks replaced.

    Raises:
        ValueError: it has no such marks.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no marks: {BEGIN} and {END}, each on a line of its own")
    return f"{before}{BEGIN}\n\n{table(verdicts)}\n\n{END}{after}"
