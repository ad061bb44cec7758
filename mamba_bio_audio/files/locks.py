"""One writer at a time: a lock beside the output, with a note of who holds it."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.files.atomic import read_json


def lock_path(out: Path) -> Path:
    """The lock file of an output; it exists while the output is being written, or after the writer was killed."""
    return out.with_name(f".{out.name}.lock")


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold the output `out` (a file or folder, which need not exist) for this process.

    The operating system releases the lock of a process that was killed, so a stale lock never has to be removed by hand.

    Raises:
        InputError: another process holds it; the message names that process. Or its folder cannot be written to.
    """
    out = Path(os.path.realpath(out))
    path, note = lock_path(out), out.with_name(f".{out.name}.lock.json")
    made = _make_parents(path.parent)
    lock = FileLock(path)
    while True:
        try:
            # The library takes a folder that it may not write to for a lock that is held.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o666))
            lock.acquire(timeout=0)
        except Timeout:
            raise InputError(f"{out}: in use by {_owner(note)}; wait until it ends, or stop it") from None
        except OSError as error:
            raise InputError(f"{path.parent}: cannot be written to ({error.strerror}); choose another --out") from None
        if path.exists():
            break
        # The former owner removed the file between our opening and locking it, so that others would not see our lock.
        lock.release()
    try:
        owner = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": datetime.now().astimezone().isoformat(timespec="seconds"),
            "command": " ".join(["mba", *sys.argv[1:]]),
        }
        with suppress(OSError):
            note.write_text(json.dumps(owner), encoding="utf-8")
        yield
    finally:
        for left in (note, path):
            with suppress(OSError):
                left.unlink()
        lock.release()
        for folder in reversed(made):
            with suppress(OSError):
                folder.rmdir()


def _make_parents(folder: Path) -> list[Path]:
    """Make a folder and those above it; the ones that were made, from the top."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()][::-1]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made ({error.strerror}); choose another --out") from None
    return missing


def _owner(note: Path) -> str:
    try:
        owner = read_json(note)
        return f"process {owner['pid']} on {owner['host']} since {owner['since']} ({owner['command'][:200]})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
