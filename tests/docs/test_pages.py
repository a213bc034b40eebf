"""The pages of docs/: what they print is run, what they quote is there.

A block of Python or bash is run, page by page, in a folder that holds the demo's. A block of text
right after it is what it prints, `…` standing for anything. What is not run says why, in a comment
before it: `<!-- not run: needs a GPU -->`.
"""

import ast
import contextlib
import io
import os
import re
import shutil
import subprocess
import sys
from itertools import zip_longest
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path
    for path in (ROOT / "docs").glob("*.md")
    if path.name not in ("hardening.md", "benchmarks.md")
)
BLOCK = re.compile(
    r"^(?P<note><!-- not run: \S[^>]* -->\n)?^```(?P<language>[^`\n]*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


def blocks_of(page):
    """Yield (language, text, what it prints) of the blocks of a page that are run, in order."""
    text = page.read_text(encoding="utf-8")
    found = list(BLOCK.finditer(text))
    assert len(found) == len(re.findall(r"^```[^`\n]*$", text, re.MULTILINE)) // 2, (
        "a block is not closed"
    )
    for block, after in zip_longest(found, found[1:]):
        if block["note"] or block["language"] not in ("bash", "python"):
            continue
        follows = (
            after is not None
            and after["language"] == "text"
            and not text[block.end() : after.start()].strip()
        )
        yield block["language"], block["text"], after["text"] if follows else None


def run_bash(text):
    """Run a block as a user's shell does; return what it prints on standard output."""
    bin_folder = Path(sys.executable).parent
    result = subprocess.run(
        ["bash", "-e"],
        input=text,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": f"{bin_folder}:{os.environ['PATH']}"},
        timeout=300,
    )
    assert result.returncode == 0, f"{text}\n{result.stderr}"
    return result.stdout


def run_python(text, names):
    """Run a block after those before it; return what it prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(text, "<a block of the page>", "exec"), names)
    return printed.getvalue()


def matches(expected, printed):
    """Whether what was printed is what a page says, whose `…` stands for anything.

    How wide a table's columns are is not compared.
    """
    expected, printed = (re.sub(" +", " ", text.strip()) for text in (expected, printed))
    pattern = ".*?".join(map(re.escape, expected.split("…")))
    return re.fullmatch(pattern, printed, re.DOTALL) is not None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_blocks_run_and_print_what_the_page_says(
    page, demo_folder, published, tmp_path, monkeypatch
):
    blocks = list(blocks_of(page))
    if not blocks:
        return
    shutil.copytree(demo_folder, tmp_path / demo_folder.name)
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    for language, text, expected in blocks:
        printed = run_bash(text) if language == "bash" else run_python(text, names)
        if expected is not None:
            assert matches(expected, printed), f"{text}\nprints\n{printed}\nand not\n{expected}"


def test_what_is_printed_is_compared():
    assert matches("a … c\n", "a b\nb c")
    assert not matches("a … c\n", "a b d")
    assert not matches("a\n", "a\nb\n")


def sentences_of_the_code():
    """Return every text in the three packages, `…` in the place of what is filled in."""
    for package in ("llava_amber_activations", "builder", "capture"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    texts = (
                        each.value if isinstance(each, ast.Constant) else "…"
                        for each in node.values
                    )
                    yield "".join(map(str, texts))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value


def test_quoted_errors_are_those_of_the_code():
    """Each quotation is a text of the code, from its beginning to its end."""
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^> (.*)$", page, re.MULTILINE)
    assert len(quoted) > 30
    texts = {" ".join(text.split()) for text in sentences_of_the_code()}
    patterns = {each: ".*?".join(map(re.escape, each.split("…"))) for each in quoted}
    assert [
        each
        for each, pattern in patterns.items()
        if not any(re.fullmatch(pattern, text) for text in texts)
    ] == []


def test_measured_figures_are_those_of_the_tables():
    """`0.96 (0.94–0.99)` in a page is in a table that a benchmark wrote, whoever made that anew."""
    written = [
        *(ROOT / "tests" / "benchmarks").glob("*.md"),
        *(ROOT / "docs").glob("benchmarks.md"),
    ]
    tables = "".join(path.read_text(encoding="utf-8") for path in written)
    figure = re.compile(r"[\d.,]*\d \([\d.,]+–[\d.,]+\)")
    found = {
        each
        for page in PAGES
        for each in figure.findall(page.read_text(encoding="utf-8").replace("\n", " "))
    }
    assert len(found) > 8
    assert sorted(each for each in found if each not in tables) == []
