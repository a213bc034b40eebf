"""A command line that stops where one of its functions is called, until it is told to go on."""

import subprocess
import sys

_PROGRAM = """if True:
    import importlib
    import sys
    where = sys.argv.pop(1)
    module_name, _, name = where.rpartition(".")
    module = importlib.import_module(module_name)
    original = getattr(module, name)

    def paused(*args, **kwargs):
        setattr(module, name, original)
        print("paused", flush=True)
        sys.stdin.readline()
        return original(*args, **kwargs)

    setattr(module, name, paused)
    from llava_amber_activations.cli import main
    main()
    """


def start_paused(where, *arguments):
    """Start `llava-amber ARGUMENTS` and wait until it is about to call the function `where`."""
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, where, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    line = process.stdout.readline()
    assert line == "paused\n", line + process.stderr.read()
    return process


def go_on(process):
    """Let it run to its end and return its exit status and what it said on stderr."""
    error = process.communicate("\n")[1]
    return process.returncode, error
