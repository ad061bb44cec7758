"""What this machine has to offer (torch-free)."""

from __future__ import annotations

import os
from pathlib import Path

from mamba_bio_audio.errors import InputError

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def available_memory() -> int | None:
    """Bytes of main memory that a new process can take without swapping; None where the system does not say.

    On Linux what the kernel estimates, or what is left of the container's limit where that is less; elsewhere all of it.
    """
    found = []
    try:
        for line in _MEMINFO.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                found.append(int(line.split()[1]) * 1024)
    except (OSError, ValueError, IndexError):
        pass
    try:
        limit, used = ((_CGROUP / name).read_text(encoding="ascii") for name in ("memory.max", "memory.current"))
        cached = dict(line.split() for line in (_CGROUP / "memory.stat").read_text(encoding="ascii").splitlines())
        # What is only cached from files is given back when it is needed.
        found.append(int(limit) - int(used) + int(cached.get("inactive_file", 0)))
    except (OSError, ValueError):
        # No limit ("max"), or no such file.
        pass
    if not found:
        try:
            found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
        except (AttributeError, OSError, ValueError):
            return None
    return max(0, min(found))


def check_memory(
    needed: int | float, what: str, remedy: str, *, available: int | None, where: str = "this machine"
) -> None:
    """Refuse what cannot fit, before it is tried.

    Args:
        needed: bytes, at least.
        what: needs them.
        remedy: what to change.
        available: bytes; None lets everything pass.
        where: the bytes are.

    Raises:
        InputError: it cannot fit; with both numbers.
    """
    if available is not None and needed > available:
        raise InputError(f"{what} takes at least {_gib(needed)}, and {where} has {_gib(available)} free; {remedy}")


def _gib(count: float) -> str:
    gib = count / 2**30
    return f"{gib:,.1f} GiB" if gib < 1e12 else f"{gib:.1e} GiB"
