"""One writer at a time: a lock file beside the output, with a note that says who holds it."""

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
    """The lock file of an output; it exists while the output is written, and after the writer was killed."""
    return out.with_name(f".{out.name}.lock")


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Lock the output `out` (a file or folder, which need not exist) for this process.

    The operating system releases the lock of a killed process, so a stale lock never has to be removed by hand.

    Raises:
        InputError: another process holds the lock (the message names it), or the folder of `out` cannot be written to.
    """
    out = Path(os.path.realpath(out))
    path, note = lock_path(out), out.with_name(f".{out.name}.lock.json")
    made = _make_parents(path.parent)
    lock = FileLock(path)
    while True:
        try:
            # The library mistakes a folder that it may not write to for a lock that is held.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o666))
            lock.acquire(timeout=0)
        except Timeout:
            raise InputError(f"{out}: in use by {_owner(note)}; wait until it ends, or stop it") from None
        except OSError as error:
            raise InputError(f"{path.parent}: cannot be written to ({error.strerror}); choose another --out") from None
        if path.exists():
            break
        # The previous owner removed the file between our opening and locking it, so others would not see our lock.
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
    """Create a folder and its missing parents; returns the created ones, topmost first."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()][::-1]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be created ({error.strerror}); choose another --out") from None
    return missing


def _owner(note: Path) -> str:
    try:
        owner = read_json(note)
        return f"process {owner['pid']} on {owner['host']} since {owner['since']} ({owner['command'][:200]})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
