"""Errors that tell a user what was wrong with their input, where, and how to mend it."""


class InputError(ValueError):
    """Bad usage, configuration or input data; the command line prints it and exits with code 2.

    The message names what is wrong, where (file, record, position or configuration path), and the remedy.
    """
