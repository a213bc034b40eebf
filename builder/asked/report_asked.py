"""What `report` is asked for: a dataset, and a place for the page."""

from __future__ import annotations

from pathlib import Path

from llava_amber_activations.console.sizes import parse_size
from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.extras import need_extras
from llava_amber_activations.files.read_errors import read_errors
from llava_amber_activations.sources.source import Source, open_source

# A comment that every page has at its beginning: what `report` may write over.
MARK = "a report of llava-amber-activations"
_BEGINNING = 200

# As somebody would type it. Of LLaVA-1.5-7B at all positions it is eight samples in twelve layers.
DEFAULT_MAX_BYTES = "1GB"


def check_report(
    source: str, out: Path, image_dir: Path | None, max_bytes: str, revision: str | None
) -> tuple[Source, int]:
    """Check what can be checked of a report before its tools are loaded.

    Returns:
        The source, open, and `max_bytes` as a number.

    Raises:
        ActivationsError: the source is no dataset, there is no such folder of pictures, something
            else than a report is at `out`, or what draws is not installed.
    """
    need_extras("a report", "report")
    size = parse_size(max_bytes)
    check_page_place(out)
    if image_dir is not None and not image_dir.is_dir():
        raise ActivationsError(f"the image folder {image_dir} does not exist")
    return open_source(source, revision), size


def check_page_place(out: Path) -> None:
    """Check that nothing but an earlier report is where the page goes.

    Raises:
        ActivationsError: something else is.
    """
    if out.is_dir():
        raise ActivationsError(f"{out} is a folder: name a file, such as {out / 'report.html'}")
    if not out.exists():
        return
    with read_errors(out), out.open("rb") as file:
        beginning = file.read(_BEGINNING)
    if MARK.encode() not in beginning:
        raise ActivationsError(
            f"{out} is there already and is not a report of ours: give another name, or move it "
            "away"
        )
