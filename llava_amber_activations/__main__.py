"""`python -m llava_amber_activations`: the command line."""

from llava_amber_activations.cli import main

if __name__ == "__main__":
    main()
