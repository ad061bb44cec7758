"""Memory and open-file limits of this machine (torch-free)."""

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

    On Linux the kernel's estimate, or what is left of the container's limit if that is less; elsewhere all memory.
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
        # The page cache is given back when memory is needed.
        given_back = sum(int(cached.get(name, 0)) for name in ("inactive_file", "active_file", "slab_reclaimable"))
        found.append(int(limit) - int(used) + given_back)
    except (OSError, ValueError):
        # No limit ("max"), or no such file.
        pass
    if not found:
        return total_memory()
    return max(0, min(found))


def total_memory() -> int | None:
    """Bytes of main memory in the machine; None where the system does not say (Windows)."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def own_memory() -> int:
    """Bytes that this process holds now, and `available_memory` therefore lacks; 0 where the system does not say.

    File pages do not count: the kernel gives those back when memory is needed.
    """
    try:
        resident, shared = map(int, _STATM.read_text(encoding="ascii").split()[1:3])
        return (resident - shared) * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return 0


def peak_memory() -> int | None:
    """Most bytes of main memory that this process has held at once; None where the system does not say (Windows)."""
    if resource is None:
        return None
    # Linux counts kilobytes, macOS bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def raise_open_files(wanted: int) -> int:
    """Raise this process's limit of open files towards `wanted`, and return how many of `wanted` it may open."""
    if resource is None:
        # The default limit of the Windows C library.
        return min(wanted, 512)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if resource.RLIM_INFINITY not in (soft, hard) and soft < min(wanted, hard):
        soft = min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return wanted if soft == resource.RLIM_INFINITY else min(wanted, soft)


def check_memory(
    needed: int | float | None, what: str, remedy: str, *, available: int | None, where: str = "this machine"
) -> None:
    """Refuse what cannot fit into memory, before it is tried.

    Args:
        needed: bytes needed, at least; None skips the check.
        what: what needs them.
        remedy: what the user should change.
        available: bytes available; None skips the check.
        where: where they are needed.

    Raises:
        InputError: it cannot fit; names both numbers.
    """
    if available is not None and needed is not None and needed > available:
        raise InputError(f"{what} takes at least {_gib(needed)}, but {where} has only {_gib(available)} free; {remedy}")


def _gib(count: float) -> str:
    gib = count / 2**30
    return f"{gib:,.1f} GiB" if gib < 1e12 else f"{gib:.1e} GiB"
