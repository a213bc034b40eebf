"""Processes that stop where a test wants them to."""

import subprocess
import sys

import pytest


@pytest.fixture
def start_waiting():
    """Function that starts a program, with a path as its argument, and returns when it has said so.

    The program prints `says` and waits for a line; those that still do at the end are killed.
    """
    started = []

    def start(program, path, says):
        process = subprocess.Popen(
            [sys.executable, "-c", program, path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout.readline() == f"{says}\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()
