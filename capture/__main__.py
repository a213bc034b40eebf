"""`python -m capture`: the capture command where only the packages that it needs are installed."""

from capture.commands.capturing import capture_command
from llava_amber_activations.cli.command_line import run_app, single_command

if __name__ == "__main__":
    run_app(single_command(capture_command))
