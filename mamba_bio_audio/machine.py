"""What this machine has to offer (torch-free)."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from mamba_bio_audio.errors import InputError

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")
_STATM = Path("/proc/self/statm")


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
        # What only keeps files at hand is given back when it is needed.
        given_back = sum(int(cached.get(name, 0)) for name in ("inactive_file", "active_file", "slab_reclaimable"))
        found.append(int(limit) - int(used) + given_back)
    except (OSError, ValueError):
        # No limit ("max"), or no such file.
        pass
    if not found:
        return total_memory()
    return max(0, min(found))


def total_memory() -> int | None:
    """Bytes of main memory of the machine; None where the system does not say (Windows)."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def own_memory() -> int:
    """Bytes that this process holds now and that `available_memory` therefore lacks; 0 where the system does not say.

    Pages of files are not among them: the kernel gives those back when they are needed.
    """
    try:
        resident, shared = map(int, _STATM.read_text(encoding="ascii").split()[1:3])
        return (resident - shared) * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return 0


def peak_memory() -> int | None:
    """Bytes of main memory that this process has held at most; None where the system does not say (Windows)."""
    if resource is None:
        return None
    # Linux counts kilobytes, macOS bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def raise_open_files(wanted: int) -> int:
    """How many files this process may keep open, of `wanted`; its own limit is raised as far as the machine's allows."""
    if resource is None:
        # What the C library of Windows allows unless it is asked for more.
        return min(wanted, 512)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if resource.RLIM_INFINITY not in (soft, hard) and soft < min(wanted, hard):
        soft = min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return wanted if soft == resource.RLIM_INFINITY else min(wanted, soft)


def check_memory(
    needed: int | float | None, what: str, remedy: str, *, available: int | None, where: str = "this machine"
) -> None:
    """Refuse what cannot fit, before it is tried.

    Args:
        needed: bytes, at least; None lets everything pass.
        what: needs them.
        remedy: what to change.
        available: bytes; None lets everything pass.
        where: the bytes are.

    Raises:
        InputError: it cannot fit; with both numbers.
    """
    if available is not None and needed is not None and needed > available:
        raise InputError(f"{what} takes at least {_gib(needed)}, and {where} has {_gib(available)} free; {remedy}")


def _gib(count: float) -> str:
    gib = count / 2**30
    return f"{gib:,.1f} GiB" if gib < 1e12 else f"{gib:.1e} GiB"
