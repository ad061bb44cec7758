"""Errors that tell a user what was wrong with their input, where, and how to mend it."""


class InputError(ValueError):
    """Bad usage, configuration or input data; the command line prints it and exits with code 2.

    The message names what is wrong, where (file, record, position or configuration path), and the remedy.
    """


class NetworkError(RuntimeError):
    """A download failed for a reason outside the command's input; the command line prints it and exits with code 1.

    The message names the address, what happened, what is kept on disk, and the remedy.
    """
