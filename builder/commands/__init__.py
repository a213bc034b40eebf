"""The commands that make, check, describe and publish dataset folders."""

from __future__ import annotations

import typer

from builder.commands.exporting import export
from builder.commands.looking import info, verify
from builder.commands.making import build, import_
from builder.commands.pushing import push
from builder.commands.reporting import report


def add_commands(app: typer.Typer) -> None:
    """Add this package's commands to the command line."""
    for name, function in (
        ("build", build),
        ("verify", verify),
        ("info", info),
        ("report", report),
        ("push", push),
        ("export", export),
        ("import", import_),
    ):
        app.command(name)(function)
