"""What every launch of a Triton kernel needs on the host."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from functools import reduce
from operator import attrgetter, or_
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes
from triton.knobs import runtime
from triton.runtime import JITFunction, driver

_HERE = contextlib.nullcontext()
# Kernels of which more than so many variants and numbers were seen begin anew: lengths that all differ would pile up.
_MOST = 4096


class _Compiled(NamedTuple):
    """A kernel as compiled for arguments of one kind."""

    run: Any
    function: int
    metadata: Any
    constants: tuple[Any, ...]  # in the kernel's order


class _Known(NamedTuple):
    """What is known of a kernel."""

    kernel: Any  # so that no other one gets its id
    tensors: int  # how many of them come first
    compiled: dict[tuple[Any, ...], _Compiled]  # by everything that decides about it


class Launched(NamedTuple):
    """A launch, as `launch` was given it."""

    kernel: Any
    programs: int
    given: tuple[Any, ...]
    constants: dict[str, Any]


_known: dict[int, _Known] = {}
_notes: ContextVar[list[Launched] | None] = ContextVar("launches noted", default=None)
_dtype = attrgetter("dtype")
_address = Tensor.data_ptr


def cdiv(a: int, b: int) -> int:
    """a / b rounded up. `triton.cdiv` is for both sides and takes some ten microseconds on this one."""
    return -(-a // b)


def power_of_2(n: int) -> int:
    """The least one that is not below n >= 1. `triton.next_power_of_2` takes ten times as long."""
    return 1 << (n - 1).bit_length()


def on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Within it kernels go to this device; the interpreter runs them on the CPU."""
    if device.type != "cuda" or device.index == torch._C._cuda_getDevice():
        return _HERE
    return torch.cuda.device(device)


@contextlib.contextmanager
def noted() -> Iterator[list[Launched]]:
    """Within it all launches are noted."""
    found: list[Launched] = []
    token = _notes.set(found)
    try:
        yield found
    finally:
        _notes.reset(token)


def again(noted: Launched) -> Callable[[Sequence[int]], bool] | None:
    """The same launch on tensors at other addresses, of the same dtypes and on the same device; None of what was not compiled.

    Returns False, and does nothing, where 16 does not divide an address, another device is the current one, or someone
    listens to launches.
    """
    kernel, programs, given, constants = noted
    known = _known.get(id(kernel))
    if known is None:
        return None
    tensors, numbers = given[: known.tensors], given[known.tensors :]
    device = driver.active.get_current_device()
    compiled = known.compiled.get((device, *map(_dtype, tensors), *numbers, *constants.values()))
    if compiled is None:
        return None
    run, function, metadata, ordered = compiled
    rest = *numbers, *ordered

    def run_again(addresses: Sequence[int]) -> bool:
        hook = runtime.launch_enter_hook
        if reduce(or_, addresses) & 15 or (hook is not None and getattr(hook, "calls", True)):
            return False
        if torch._C._cuda_getDevice() != device:
            return False
        stream = driver.active.get_current_stream(device)
        run(programs, 1, 1, stream, function, metadata, None, None, None, *addresses, *rest)
        return True

    return run_again


def launch(kernel: Any, programs: int, *given: Any, **constants: Any) -> None:
    """`kernel[(programs,)](*given, **constants)` in a fraction of the host's time, from the second time on.

    Triton looks at every argument anew. Here what was compiled is found by the constants, the dtypes of tensors and the
    numbers, so that only addresses are looked at. Those that 16 does not divide, and launches that someone listens to, go
    Triton's own way.

    Args:
        kernel: its run-time arguments come first, its constants behind them.
        programs: how many.
        given: run-time arguments in order, tensors before numbers.
        constants: the others by name, in the same order at every call of a kernel, and options such as num_warps.
    """
    notes = _notes.get()
    if notes is not None:
        notes.append(Launched(kernel, programs, given, constants))
    known = _known.get(id(kernel))
    if known is None:
        _first(kernel, programs, given, constants)
        return
    count = known.tensors
    tensors, numbers = given[:count], given[count:]
    active = driver.active
    device = active.get_current_device()
    compiled = known.compiled.get((device, *map(_dtype, tensors), *numbers, *constants.values()))
    if compiled is None:
        _first(kernel, programs, given, constants)
        return
    addresses = list(map(_address, tensors))
    hook = runtime.launch_enter_hook  # a profiler's
    if reduce(or_, addresses) & 15 or (hook is not None and getattr(hook, "calls", True)):
        kernel[(programs,)](*given, **constants)
        return
    compiled.run(
        programs, 1, 1, active.get_current_stream(device), compiled.function, compiled.metadata, None, None, None,
        *addresses, *numbers, *compiled.constants,
    )  # fmt: skip


def _first(kernel: Any, programs: int, given: tuple[Any, ...], constants: dict[str, Any]) -> None:
    """Launches as Triton does, and remembers what it compiled."""
    # The interpreter copies tensors, which is none of the operation's affair.
    with _disable_current_modes() if _notes.get() is not None else _HERE:
        compiled = kernel[(programs,)](*given, **constants)
    count = sum(isinstance(t, Tensor) for t in given)
    tensors, numbers = given[:count], given[count:]
    # The interpreter compiles nothing; a tensor that lies oddly has a kernel of its own.
    if not isinstance(kernel, JITFunction) or compiled is None or any(t.data_ptr() % 16 for t in tensors):
        return
    assert kernel.arg_names[: len(given)] == [p.name for p in kernel.params if not p.is_constexpr], kernel.__name__
    known = _known.setdefault(id(kernel), _Known(kernel, count, {}))
    assert known.tensors == count, kernel.__name__
    if len(known.compiled) >= _MOST:
        known.compiled.clear()
    key = (driver.active.get_current_device(), *map(_dtype, tensors), *numbers, *constants.values())
    ordered = tuple(constants[name] for name in kernel.arg_names[len(given) :])
    known.compiled[key] = _Compiled(compiled.run, compiled.function, compiled.packed_metadata, ordered)
