"""The one exception that this project raises for its users."""


class ActivationsError(Exception):
    """What is wrong, where (file, sample, key) and what to do about it, in one sentence.

    The command line prints it on one line and exits with status 1.
    """
