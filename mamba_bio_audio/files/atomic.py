"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import json
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mamba_bio_audio.errors import InputError


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it replaces `path`, on failure it is removed.

    Raises:
        OSError: the disk is full, whichever library ran into it; the message names `path`, which is unchanged.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with name_full_disk(path):
            yield temporary
            # Libraries that write through a temporary file of their own leave it readable only by the owner.
            mask = os.umask(0)
            os.umask(mask)
            os.chmod(temporary, 0o666 & ~mask)
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def name_full_disk(path: Path) -> Iterator[None]:
    """Turn whatever a library raises on a full disk into one `OSError` that names `path` and the remedy."""
    try:
        yield
    except Exception as error:
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        # safetensors reports it only in words; torch.save's writer (inline_container) not at all; libsndfile says only
        # that the system refused to write.
        silent = type(error).__name__ == "LibsndfileError" and "System error" in str(error)
        if not full and not silent and not re.search(r"No space left|inline_container\.cc", str(error)):
            raise
        if isinstance(error, OSError) and error.filename == str(path):
            raise
        reason = "no space left on the disk; the previous contents are kept. Free some space and run the command again"
        raise OSError(errno.ENOSPC, reason, str(path)) from error


def check_folder(out: Path) -> None:
    """Refuse an output folder if it, or a folder above it, is in fact a file.

    Raises:
        InputError: one of them is a file.
    """
    for place in (out, *out.parents):
        if place.exists() and not place.is_dir():
            raise InputError(f"{place} is a file, not a folder; choose another --out")


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON to `path` atomically."""
    write_text(path, to_json(value) + "\n")


def read_json(path: Path) -> Any:
    """Read the value of a JSON file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not UTF-8, not JSON, or nested too deeply to have been written by this program.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def to_json(value: Any) -> str:
    """Format as indented JSON; numbers that JSON cannot express (infinities, NaN) become null."""
    return json.dumps(_finite(value), indent=2, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
