"""The commands that run a model."""

from __future__ import annotations

import typer

from capture.commands.capturing import capture_command
from capture.commands.checking import recapture_command
from capture.commands.trying import demo_input


def add_commands(app: typer.Typer) -> None:
    """Add this package's commands to the command line."""
    app.command("capture")(capture_command)
    app.command("recapture")(recapture_command)
    app.command("demo-input", hidden=True)(demo_input)
