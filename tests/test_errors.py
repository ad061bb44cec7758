"""Failures outside of the program reach the user with a remedy, not as a library's text."""

import errno
import os
import re

import numpy as np
import pytest
import torch

from mamba_bio_audio.errors import explain


def memory_of(allocate) -> BaseException:
    with pytest.raises((MemoryError, RuntimeError)) as raised:
        allocate()
    return raised.value


@pytest.mark.parametrize(
    ("error", "remedy", "code"),
    [
        (
            OSError(errno.EROFS, os.strerror(errno.EROFS), "/mnt/out"),
            "/mnt/out: Read-only file system; choose a place",
            2,
        ),
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/root/x"), "/root/x: Permission denied; choose", 2),
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/mnt/out"),
            "/mnt/out: no space left on the disk; free some space",
            1,
        ),
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), "ulimit -n", 1),
        (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), "lower train.micro_batch", 1),
        (memory_of(lambda: np.zeros(1 << 60, np.uint8)), "lower train.micro_batch", 1),
        (memory_of(lambda: torch.zeros(1 << 50)), "lower train.micro_batch", 1),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"), "Tried to allocate 20 GiB.*lower", 1),
        (RuntimeError("DataLoader worker (pid 5) is killed by signal: Killed."), "lower data.num_workers", 1),
        (RuntimeError("DataLoader worker (pid(s) 5, 6) exited unexpectedly"), "lower data.num_workers", 1),
        (RuntimeError("unable to write to file </torch_5>: no space left: shared memory"), "data.num_workers=0", 1),
    ],
    ids=lambda value: None if not isinstance(value, BaseException) else f"{type(value).__name__}: {value}"[:40],
)
def test_what_is_said(error: BaseException, remedy: str, code: int) -> None:
    found = explain(error)
    assert found is not None
    text, exit_code = found
    assert exit_code == code
    assert re.search(remedy, text)


def test_faults_of_our_own_are_not_explained_away() -> None:
    assert explain(KeyError("x")) is None
    assert explain(FileNotFoundError(errno.ENOENT, "No such file", "x")) is None
