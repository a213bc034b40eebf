"""`python -m builder`: this package's commands, for `torchrun` and `accelerate launch`."""

from builder.commands import add_commands
from llava_amber_activations.cli.command_line import new_app, run_app

if __name__ == "__main__":
    app = new_app()
    add_commands(app)
    run_app(app)
