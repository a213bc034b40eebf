"""The command line, on top of the three packages."""

from llava_amber_activations.cli.app import main

__all__ = ["main"]
