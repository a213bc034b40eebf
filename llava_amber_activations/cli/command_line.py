"""Making and running a command line: spellings, errors on one line, exit statuses."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import typer

from llava_amber_activations.errors import ActivationsError


def new_app(help_text: str | None = None) -> typer.Typer:
    """Make an application whose `--help` is plain text and whose errors are left to `run_app`."""
    return typer.Typer(
        help=help_text,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={
            "help_option_names": ["-h", "--help"],
            "token_normalize_func": _hyphenated,
        },
    )


def single_command(function: Callable[..., None]) -> typer.Typer:
    """Make an application of one command."""
    app = new_app()
    app.command()(function)
    return app


def _hyphenated(name: str) -> str:
    """Read `--image_dir` as `--image-dir`: scripts of the original project use underscores."""
    return name.replace("_", "-")


def run_app(app: typer.Typer) -> None:
    """Run `app` on the process's arguments and exit: 0 done, 1 failed, 2 wrong usage.

    A failure is one line on stderr that says what, where and what to do. Set
    LLAVA_AMBER_TRACEBACK=1 to see where in the code an error came from.
    """
    try:
        app()
    except (ActivationsError, OSError) as error:
        if os.environ.get("LLAVA_AMBER_TRACEBACK"):
            raise
        sys.exit("error: " + " ".join(str(error).split()))
