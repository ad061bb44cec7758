"""Errors that tell a user what is wrong, where, and how to fix it."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any


class InputError(ValueError):
    """Bad usage, configuration or input data; the command line prints it and exits with code 2.

    The message names what is wrong, where (file, record, position or configuration path), and the remedy.
    """


class OtherSettings(InputError):
    """An output was made, or begun, with other settings than are asked for now.

    Attributes:
        made: the settings it has, as far as they are known.
        names: those that differ.
    """

    def __init__(self, message: str, made: Mapping[str, Any], names: Iterable[str]) -> None:
        super().__init__(message)
        self.made, self.names = made, tuple(names)


class NetworkError(RuntimeError):
    """A download failed for a reason other than the command's input; the command line prints it and exits with code 1.

    The message names the address, what happened, what was kept on disk, and the remedy.
    """


@contextmanager
def as_written(what: object, remedy: str) -> Iterator[None]:
    """Turn a missing key or a value of the wrong type into one error about a file.

    Meant for files that this program wrote and somebody may have changed since, where checking each value in advance
    would duplicate the code that reads it.

    Raises:
        InputError: `what` does not hold what this program writes there.
    """
    try:
        yield
    except InputError:
        raise
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, ArithmeticError, RecursionError):
        raise InputError(f"{what}: damaged or changed since this program wrote it; {remedy}") from None


def explain(error: BaseException) -> tuple[str, int] | None:
    """Message and exit code for a failure whose cause lies outside the program; None for any other failure.

    A full or read-only disk, a lack of memory or a killed data worker surfaces as an exception of whichever library
    encountered it.
    """
    text = str(error)
    if isinstance(error, OSError) and error.errno in _UNWRITABLE:
        place = f"{error.filename}: " if error.filename is not None else ""
        return f"{place}{error.strerror}; choose a place that you can write to (--out), or change its permissions", 2
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        place = f"{error.filename}: " if error.filename is not None else ""
        reason = "no space left on the disk; free some space and run the command again"
        return (text if "free some space" in text.lower() else f"{place}{reason}"), 1
    if isinstance(error, OSError) and error.errno == errno.EMFILE:
        return "too many open files; raise the limit (ulimit -n 4096), or lower data.num_workers", 1
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return f"out of memory; {_LESS_MEMORY}", 1
    # Raised by torch on a GPU or a CPU.
    if type(error).__name__ == "OutOfMemoryError" or re.search(r"can't allocate memory|CUDA out of memory", text):
        return f"out of memory ({text.splitlines()[0][:200]}); {_LESS_MEMORY}", 1
    if re.search(r"DataLoader worker .*(exited unexpectedly|is killed by signal)", text):
        return (
            "a data worker was killed, usually for lack of memory; free memory or lower data.num_workers (0 uses none), "
            "then continue with --resume"
        ), 1
    if isinstance(error, RuntimeError) and re.search(r"unable to (open|write|resize|mmap).*(shm|shared memory)", text):
        return "no shared memory (/dev/shm) left for data workers; enlarge it, or set data.num_workers=0", 1
    return None


_UNWRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)
_LESS_MEMORY = (
    "for training, lower train.micro_batch, or set train.stream_chunk or train.recompute; for other commands, lower "
    "--batch-size, --chunk or --length; mba pretrain --dry-run shows what a training needs"
)
