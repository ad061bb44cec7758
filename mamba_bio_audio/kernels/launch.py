"""What every launch of a Triton kernel needs on the host."""

import contextlib
from functools import reduce
from operator import itemgetter, or_
from typing import Any, NamedTuple

import torch
from torch import Tensor
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
    tensors: Any  # picks them from the arguments
    constants: tuple[Any, ...]  # in the kernel's order


# By kernel, which is kept so that no other one gets its id, and by everything that decides what is compiled.
_known: dict[int, tuple[Any, dict[tuple[Any, ...], _Compiled]]] = {}


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


def launch(kernel: Any, programs: int, *given: Any, **constants: Any) -> None:
    """`kernel[(programs,)](*given, **constants)` in a fraction of the host's time, from the second time on.

    Triton looks at every argument anew. Here what was compiled is found by the constants, the dtypes of tensors and the
    other numbers, so that only addresses are looked at. Those that 16 does not divide, and launches that someone
    listens to, go Triton's own way.

    Args:
        kernel: its run-time arguments come first, its constants behind them.
        programs: how many.
        given: run-time arguments in order, tensors and numbers.
        constants: the others by name, in the same order at every call of a kernel, and options such as num_warps.
    """
    known = _known.get(id(kernel))
    if known is None:
        _first(kernel, programs, given, constants)
        return
    active = driver.active
    device = active.get_current_device()
    compiled = known[1].get((device, *[t.dtype if isinstance(t, Tensor) else t for t in given], *constants.values()))
    if compiled is None:
        _first(kernel, programs, given, constants)
        return
    addresses = [t.data_ptr() if isinstance(t, Tensor) else t for t in given]
    hook = runtime.launch_enter_hook  # a profiler's
    if reduce(or_, compiled.tensors(addresses)) & 15 or (hook is not None and getattr(hook, "calls", True)):
        kernel[(programs,)](*given, **constants)
        return
    compiled.run(
        programs, 1, 1, active.get_current_stream(device), compiled.function, compiled.metadata, None, None, None,
        *addresses, *compiled.constants,
    )  # fmt: skip


def _first(kernel: Any, programs: int, given: tuple[Any, ...], constants: dict[str, Any]) -> None:
    """Launches as Triton does, and remembers what it compiled."""
    compiled = kernel[(programs,)](*given, **constants)
    where = [i for i, t in enumerate(given) if isinstance(t, Tensor)]
    # The interpreter compiles nothing; a tensor that lies oddly has a kernel of its own.
    if not isinstance(kernel, JITFunction) or compiled is None or any(given[i].data_ptr() % 16 for i in where):
        return
    names = kernel.arg_names[len(given) :]
    assert kernel.arg_names[: len(given)] == [p.name for p in kernel.params if not p.is_constexpr], kernel.__name__
    known = _known.setdefault(id(kernel), (kernel, {}))[1]
    if len(known) >= _MOST:
        known.clear()
    key = (
        driver.active.get_current_device(),
        *[t.dtype if isinstance(t, Tensor) else t for t in given],
        *constants.values(),
    )
    pick = itemgetter(*where) if len(where) > 1 else lambda arguments: (arguments[where[0]],)
    known[key] = _Compiled(
        compiled.run, compiled.function, compiled.packed_metadata, pick, tuple(constants[name] for name in names)
    )
