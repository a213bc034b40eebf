"""The page `command-line.md`, made from the commands themselves whenever the site is built."""

from __future__ import annotations

import html
import re
from typing import Any

import typer
import typer.main
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from llava_amber_activations.cli.app import assemble

PAGE = "command-line.md"

_HEAD = """\
# Command line

This page is made from the code: each command below, and each option, is there as it says of itself
with `--help`.

- Every long option can be written with underscores as well: `--image_dir` is `--image-dir`.
- Results go to standard output, progress and errors to standard error.
- The exit status is 0 when all is done; 1 after one line that says what is wrong, where, and what
  to do; 2 where the command itself is written wrong; 130 after Ctrl-C, which says what is kept.
- `info --json` and `verify --json` are for scripts.
- `LLAVA_AMBER_TRACEBACK=1` in the environment shows where in the code an error came from.
"""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page to the site's files."""
    files.append(File.generated(config, PAGE, content=reference()))
    return files


def reference() -> str:
    """Return the page: every command that `llava-amber --help` lists, in its order."""
    return reference_of(assemble())


def reference_of(app: typer.Typer) -> str:
    """Return the page of any application's commands."""
    root: Any = typer.main.get_command(app)
    context = root.make_context("llava-amber", [], resilient_parsing=True)
    sections = [_HEAD, _options(root, context)]
    for name in root.list_commands(context):
        command = root.get_command(context, name)
        if not command.hidden:
            sections.append(_section(command, name, context))
    return "\n".join(section for section in sections if section)


def _section(command: Any, name: str, parent: Any) -> str:
    context = command.make_context(name, [], parent=parent, resilient_parsing=True)
    pieces = (
        piece.replace("{", "").replace("}", "") for piece in command.collect_usage_pieces(context)
    )
    usage = f"```text\nllava-amber {name} {' '.join(pieces)}\n```\n"
    return "\n".join(
        [f"## llava-amber {name}\n", f"{command.help}\n", usage, _options(command, context)]
    )


def _options(command: Any, context: Any) -> str:
    """Return a table of what a command takes; nothing where `--help` is all."""
    records = [
        record
        for parameter in command.get_params(context)
        if (record := parameter.get_help_record(context)) and "--help" not in parameter.opts
    ]
    if not records:
        return ""
    rows = [f"| `{names}` | {_plain(' '.join(text.split()))} |" for names, text in records]
    return "\n".join(["| Argument or option | What it is |", "|---|---|", *rows, ""])


def _plain(text: str) -> str:
    """Escape what Markdown would take for its own; what is in backquotes stays."""
    parts = text.split("`")
    for number in range(0, len(parts), 2):
        parts[number] = re.sub(r"[\\*_\[\]|]", r"\\\g<0>", html.escape(parts[number], quote=False))
    return "`".join(parts)
