"""Errors that tell a user what was wrong with their input, where, and how to mend it."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager


class InputError(ValueError):
    """Bad usage, configuration or input data; the command line prints it and exits with code 2.

    The message names what is wrong, where (file, record, position or configuration path), and the remedy.
    """


class NetworkError(RuntimeError):
    """A download failed for a reason outside the command's input; the command line prints it and exits with code 1.

    The message names the address, what happened, what is kept on disk, and the remedy.
    """


@contextmanager
def as_written(what: object, remedy: str) -> Iterator[None]:
    """Turn what goes wrong inside, for want of a key or by a value of another type, into one error about a file.

    For files that this program wrote and somebody may have changed since, where to check each value beforehand would say
    the same twice.

    Raises:
        InputError: `what` does not hold what this program writes there.
    """
    try:
        yield
    except InputError:
        raise
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, ArithmeticError, RecursionError):
        raise InputError(f"{what}: not as this program wrote it; {remedy}") from None


def explain(error: BaseException) -> tuple[str, int] | None:
    """What a failure outside of the program means for the user, and the exit code; None for failures of its own.

    Disks that are full or read-only, memory that does not suffice, and data workers that were killed reach the program as
    exceptions of whatever library met them.
    """
    text = str(error)
    if isinstance(error, OSError) and error.errno in _UNWRITABLE:
        place = f"{error.filename}: " if error.filename is not None else ""
        return f"{place}{error.strerror}; choose a place that you may write to (--out), or change its permissions", 2
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        place = f"{error.filename}: " if error.filename is not None else ""
        reason = "no space left on the disk; make room and run the command again"
        return (text if "make room" in text else f"{place}{reason}"), 1
    if isinstance(error, OSError) and error.errno == errno.EMFILE:
        return "too many open files; raise the limit (ulimit -n 4096), or lower data.num_workers", 1
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return f"out of memory; {_LESS_MEMORY}", 1
    # torch's own, on a GPU and on a CPU.
    if type(error).__name__ == "OutOfMemoryError" or re.search(r"can't allocate memory|CUDA out of memory", text):
        return f"out of memory ({text.splitlines()[0][:200]}); {_LESS_MEMORY}", 1
    if re.search(r"DataLoader worker .*(exited unexpectedly|is killed by signal)", text):
        return (
            "a data worker was killed, most often for want of memory; lower data.num_workers (0 uses none), free memory, "
            "and continue with --resume"
        ), 1
    if isinstance(error, RuntimeError) and re.search(r"unable to (open|write|resize|mmap).*(shm|shared memory)", text):
        return "no shared memory left for data workers (/dev/shm); enlarge it, or set data.num_workers=0", 1
    return None


_UNWRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)
_LESS_MEMORY = (
    "lower train.micro_batch, or set train.stream_chunk or train.recompute (training); lower --batch-size, --chunk or "
    "--length (other commands); mba pretrain --dry-run says what a training needs"
)
