"""Making and running a command line: spellings, errors on one line, exit statuses."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import cache
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from llava_amber_activations.console.interruption import InterruptedRunError, interruptible
from llava_amber_activations.console.verbosity import Verbosity, hush_libraries, set_verbosity
from llava_amber_activations.errors import ActivationsError

# As shells say it: 128 and the number of SIGINT.
_STOPPED = 130

AsJson = Annotated[
    bool, typer.Option("--json", help="Say it as JSON, an object a line, for a script.")
]


def _chosen(level: Verbosity) -> Callable[[bool], None]:
    def choose(given: bool) -> None:
        if given:
            set_verbosity(level)

    return choose


def _loudness(
    quiet: Annotated[
        bool,
        typer.Option(
            "-q",
            "--quiet",
            callback=_chosen(Verbosity.QUIET),
            expose_value=False,
            help="Say no progress and no notes.",
        ),
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option(
            "-v",
            "--verbose",
            callback=_chosen(Verbosity.VERBOSE),
            expose_value=False,
            help="Let the libraries show their own bars and warnings, too.",
        ),
    ] = False,
) -> None:
    """Declare what every command takes, before its name and after it alike."""


@cache
def _loudness_options() -> list[Any]:
    """Return -q and -v as typer makes them; how it makes an option changes with its version."""
    app = typer.Typer(add_completion=False)
    app.command()(_loudness)
    return get_command(app).params


class LoudnessCommand(TyperCommand):
    """A command with -q and -v, below which libraries are quiet unless it is verbose."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the command's own parameters, and those of every command."""
        return [*super().get_params(ctx), *_loudness_options()]

    def get_help(self, ctx: Any) -> str:
        """Return the text of `--help`."""
        return _plain(super().get_help(ctx))

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        hush_libraries()
        # Of commands that leave something behind, each says what.
        with interruptible(lambda: "nothing was changed; run the same command again"):
            return super().invoke(ctx)


class LoudnessGroup(TyperGroup):
    """The commands together, with -q and -v before any of them."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the group's own parameters, and those of every command."""
        return [*super().get_params(ctx), *_loudness_options()]

    def get_help(self, ctx: Any) -> str:
        """Return the text of `--help`."""
        return _plain(super().get_help(ctx))


def _plain(text: str) -> str:
    # typer 0.20 escapes the bracket before `default` for Rich, also where Rich does not print it.
    return text.replace("\\[", "[")


class App(typer.Typer):
    """An application each of whose commands has -q and -v."""

    def command(self, name: str | None = None, **options: Any) -> Callable[..., Any]:
        """Declare a command, as `typer.Typer` does."""
        return super().command(name, cls=LoudnessCommand, **options)


def new_app(help_text: str | None = None, *, completion: bool = False) -> typer.Typer:
    """Make an application whose `--help` is plain text and whose errors are left to `run_app`.

    Args:
        completion: whether it can install its shell completion, as an installed command can.
    """
    return App(
        cls=LoudnessGroup,
        help=help_text,
        no_args_is_help=True,
        add_completion=completion,
        pretty_exceptions_enable=False,
        # Rich takes what stands in brackets for markup, and gives a help text 18 of 80 columns.
        rich_markup_mode=None,
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
    """Run `app` on the process's arguments and exit: 0 done, 1 failed, 2 wrong usage, 130 Ctrl-C.

    A failure is one line on stderr that says what, where and what to do. Set
    LLAVA_AMBER_TRACEBACK=1 to see where in the code an error came from.
    """
    try:
        app()
    except InterruptedRunError as error:
        # On a line of its own, behind the ^C that a terminal shows.
        typer.echo(f"\nstopped: {error}" if sys.stderr.isatty() else f"stopped: {error}", err=True)
        sys.exit(_STOPPED)
    except (ActivationsError, OSError) as error:
        if os.environ.get("LLAVA_AMBER_TRACEBACK"):
            raise
        sys.exit("error: " + " ".join(str(error).split()))
