"""`llava-amber`: the commands that the installed packages declare, in one command line.

A package declares them in its pyproject.toml, as a function that adds them to an application:

    [project.entry-points."llava_amber_activations.commands"]
    capture = "capture.commands:add_commands"
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, distributions
from pathlib import Path
from typing import Annotated

import typer

from llava_amber_activations import __version__
from llava_amber_activations.cli.command_line import new_app, run_app
from llava_amber_activations.console.interruption import interruptible
from llava_amber_activations.extras import need_extras

COMMANDS_GROUP = "llava_amber_activations.commands"


def assemble() -> typer.Typer:
    """Make the application of all commands that are declared."""
    app = new_app(completion=True)
    app.callback()(options)
    app.command()(demo)
    for entry in _declared():
        entry.load()(app)
    return app


def _declared() -> list[EntryPoint]:
    """Return what all installed packages declare, in the order of the names, each once.

    `importlib.metadata.entry_points` would leave out a package that is found twice, and take what
    is first on the path: an `.egg-info` that an old installation left in a checkout, say.
    """
    found = {
        (entry.name, entry.value): entry
        for distribution in distributions()
        for entry in distribution.entry_points
        if entry.group == COMMANDS_GROUP
    }
    return [found[key] for key in sorted(found)]


def _say_version(asked: bool) -> None:
    if asked:
        typer.echo(f"llava-amber {__version__}")
        raise typer.Exit


def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_say_version, is_eager=True, help="Say the version."),
    ] = False,
) -> None:
    """Capture, build, read, export and publish the activations of LLaVA-type models."""


def demo(
    output_dir: Annotated[
        Path, typer.Option(help="New folder for everything that the demo makes.")
    ] = Path("llava-amber-demo"),
) -> None:
    """Run the whole pipeline on a tiny random LLaVA and a few pictures, on the CPU."""
    need_extras("the demo", "capture", "figures", "report")
    from llava_amber_activations.cli.demo import run_demo

    with interruptible(lambda: f"{output_dir} holds what was made so far: remove it to begin anew"):
        run_demo(output_dir, assemble())


def main() -> None:
    """Run the command line and exit."""
    run_app(assemble())
