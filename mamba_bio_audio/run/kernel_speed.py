"""What `mba bench kernels` measures: operations, one row for each of three modes.

    inference    without autograd, keeping nothing
    forward      under autograd, keeping what backward needs
    backward     alone

Every pair of calls runs ours, then the peer's, on the same inputs; reported are the 20th, 50th and 80th percentile of
ours and the median of the ratio within pairs (above 1: ours is faster). These are the GPU's times (`timing.interleaved`).
Beside them stand two limits: the bytes that must move at the rate of a copy, and of scans the special functions (one
exponential a state, three where it is complex, and those of softplus and gate) at the rate of their units. Calls so
short that the host counts are timed twice more: `call_*` is of calls as a user makes them, one behind the other, by the
clock, and `host_us` what the host takes for one while the GPU is idle. Results are checked before anything is timed.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mamba_bio_audio import ops
from mamba_bio_audio.errors import InputError
from mamba_bio_audio.kernels.scan.inputs import Plan
from mamba_bio_audio.layers.config import SsmConfig
from mamba_bio_audio.layers.mamba import MambaLayer
from mamba_bio_audio.run.peer import has_peer, peer_conv, peer_layer, peer_layout, peer_norm, peer_scan
from mamba_bio_audio.run.timing import Row, Timing, by_the_clock, copy_rate, host_times, interleaved, timing_row

STATES = 16
# Milliseconds below which the host counts.
SHORT = 0.5
MODES = ("inference", "forward", "backward")
Inputs = dict[str, Tensor]
Run = Callable[..., Tensor]


class KernelCase(NamedTuple):
    """What is measured: an operation of `OPERATIONS` on inputs of (B, L, D)."""

    name: str
    batch: int
    length: int
    channels: int

    @classmethod
    def of(cls, text: str) -> KernelCase:
        """A case written as scan-complex:16,16384,128."""
        name, _, numbers = text.partition(":")
        sizes = numbers.split(",")
        if name not in OPERATIONS or len(sizes) != 3 or not all(size.isdecimal() and int(size) for size in sizes):
            raise InputError(
                f"--case {text}: not OPERATION:B,L,D with an operation of {', '.join(OPERATIONS)} and three whole numbers "
                "above 0, as scan:8,8192,2048"
            )
        return cls(name, *map(int, sizes))


class Operation(NamedTuple):
    """How to call one.

    Attributes:
        title: its name in the table.
        inputs: makes them, of batch, length, channels, dtype and device; all of them have gradients.
        ours: takes them by name, and `backend`. Of a layer, makes it of its channels.
        peer, layout: mamba_ssm's function and its inputs, made of ours. Of a layer, makes it of its channels.
        moved: what must move for one element of the output in each mode: activations, and bytes beside them. None of a
            layer, which is more than one pass.
        special: special functions for one element of the output, in forward and in backward.
        layer: whether it has weights of its own, and casts under autocast.
    """

    title: str
    inputs: Callable[[int, int, int, torch.dtype, str], Inputs]
    ours: Callable[..., Any]
    peer: Callable[..., Any]
    layout: Callable[[Inputs], Inputs] = dict
    moved: tuple[tuple[int, int], ...] | None = None
    special: tuple[int, int] = (0, 0)
    layer: bool = False


class Side(NamedTuple):
    """One of two that are timed."""

    run: Run
    inputs: Inputs
    weights: list[Tensor]


def scan_inputs(
    batch: int, length: int, channels: int, dtype: torch.dtype, device: str, *, kind: str = "real", slow: bool = False
) -> Inputs:
    """Inputs of a selective scan as at the start of training; with `slow` no state ever fades (dt 1e-3, A -1).

    Args:
        batch, length, channels: (B, L, D).
        dtype: of what depends on time.
        device: where they lie.
        kind: "real" or "complex", time-invariant with "-lti" behind it.
        slow: the worst case of anything that relies on decay.
    """
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    is_complex, fixed = kind.startswith("complex"), kind.endswith("-lti")
    parts = (2,) if is_complex else ()
    rates = torch.arange(1, STATES + 1, device=device).float().expand(channels, STATES)
    if slow:
        rates = torch.ones_like(rates)
    if is_complex:
        rates = torch.stack([torch.full_like(rates, 0.5), -torch.pi * (rates - 1)], dim=-1)

    def maps() -> Tensor:
        return normal(channels, STATES, *parts) if fixed else normal(batch, length, STATES, *parts).to(dtype)

    inputs = {
        "u": normal(batch, length, channels).to(dtype),
        "dt": normal(channels) * 0.5 if fixed else (normal(batch, length, channels) * 0.5).to(dtype),
        "A": -rates.contiguous(),
        "B": maps(),
        "C": maps(),
        "D": normal(channels),
        "z": normal(batch, length, channels).to(dtype),
        "dt_bias": normal(channels) * 0.5 - 4.0,
    }
    if slow:
        inputs |= {"dt": inputs["dt"] * 0, "dt_bias": torch.full_like(inputs["dt_bias"], math.log(math.expm1(1e-3)))}
    return inputs


def conv_inputs(batch: int, length: int, channels: int, dtype: torch.dtype, device: str) -> Inputs:
    """Inputs of a causal convolution of width 4."""
    generator = torch.Generator(device).manual_seed(0)
    return {
        "x": torch.randn(batch, length, channels, generator=generator, device=device).to(dtype),
        "weight": torch.randn(channels, 4, generator=generator, device=device),
        "bias": torch.randn(channels, generator=generator, device=device),
    }


def norm_inputs(batch: int, length: int, channels: int, dtype: torch.dtype, device: str) -> Inputs:
    """Inputs of a norm with its residual stream, which is fp32."""
    generator = torch.Generator(device).manual_seed(0)
    x, residual = torch.randn(2, batch, length, channels, generator=generator, device=device)
    weight = torch.randn(channels, generator=generator, device=device)
    return {"x": x.to(dtype), "weight": weight, "residual": residual}


def mixer_inputs(batch: int, length: int, channels: int, dtype: torch.dtype, device: str) -> Inputs:
    """Input of a layer of `channels` model channels."""
    generator = torch.Generator(device).manual_seed(0)
    return {"x": torch.randn(batch, length, channels, generator=generator, device=device).to(dtype)}


def _layer(channels: int, device: str) -> nn.Module:
    return MambaLayer(channels, SsmConfig(complex=False, selective=True, d_state=STATES)).to(device)


def _scan(kind: str, *, slow: bool = False) -> Operation:
    parts, fixed = 2 if kind.startswith("complex") else 1, kind.endswith("-lti")
    # Of step size and decay, which a fixed step has once; gate.
    decay = 0 if fixed else STATES * (3 if parts == 2 else 1) + 2
    return Operation(
        "selective_scan" + ("" if kind == "real" else f" {kind}") + (" slow" if slow else ""),
        partial(scan_inputs, kind=kind, slow=slow),
        ops.selective_scan,
        peer_scan,
        peer_layout,
        # u, dt, z, out and their gradients; the states that are kept.
        moved=tuple(
            (n - fixed, more * parts * 4 * STATES // Plan.segment) for n, more in ((4, 0), (4, 1), (7 - fixed, 1))
        ),
        special=(decay + 2, decay + (2 if fixed else 4)),
    )


OPERATIONS = {
    "scan": _scan("real"),
    "scan-slow": _scan("real", slow=True),
    "scan-lti": _scan("real-lti"),
    "scan-complex": _scan("complex"),
    "scan-complex-lti": _scan("complex-lti"),
    "conv": Operation("causal_conv1d", conv_inputs, ops.causal_conv1d, peer_conv, moved=((2, 0), (2, 0), (3, 0))),
    "norm": Operation("rms_norm", norm_inputs, ops.rms_norm, peer_norm, moved=((2, 8), (2, 8), (2, 12))),
    "mixer": Operation("mamba_mixer", mixer_inputs, _layer, peer_layer, layer=True),
}
_NAMED = {
    "cuda": (
        "scan:8,8192,2048 conv:8,8192,2048 scan:32,1024,512 conv:32,1024,512 scan:1,1048576,512 conv:1,1048576,512 "
        "scan:2,16384,256 scan:1,2048,1024 scan:64,8192,128 scan-complex:8,8192,2048 scan-complex:16,16384,128 "
        "scan-lti:64,8192,128 scan-complex-lti:64,8192,128 norm:128,1024,256 mixer:8,2048,256"
    ),
    "cpu": "scan:1,1024,256 conv:1,1024,256 scan:4,512,128 conv:4,512,128",
}
KERNEL_CASES = {device: [KernelCase.of(text) for text in named.split()] for device, named in _NAMED.items()}


def kernels(device: str, *, seconds: float = 3.0, cases: Sequence[KernelCase] | None = None) -> Iterator[Row]:
    """Three rows for each case."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    rates = copy_rate(device), special_rate(device)
    for case in cases or KERNEL_CASES[device]:
        operation = OPERATIONS[case.name]
        inputs = operation.inputs(case.batch, case.length, case.channels, dtype, device)
        sides = _sides(operation, inputs, case.channels, device)
        _check(operation, sides)
        for mode in MODES:
            calls = [_call(side, mode) for side in sides]
            timing = interleaved(calls[0], calls[1] if len(calls) == 2 else None, device, seconds=seconds)
            more = _limits(operation, inputs, mode, rates) | _by_the_host(calls, timing, device)
            yield timing_row(
                device, operation.title, mode, str(tuple(case[1:])), str(dtype).removeprefix("torch."), timing, **more
            )
            del calls
        del inputs, sides


def _sides(operation: Operation, inputs: Inputs, channels: int, device: str) -> list[Side]:
    """Ours, and the peer's where it is there."""
    there = has_peer(device)
    if not operation.layer:
        peers = [Side(operation.peer, operation.layout(inputs), [])] if there else []
        return [Side(operation.ours, inputs, []), *peers]
    makers = [operation.ours, operation.peer] if there else [operation.ours]
    layers = [make(channels, device) for make in makers]
    return [Side(partial(_cast, layer), inputs, list(layer.parameters())) for layer in layers]


def _cast(layer: nn.Module, x: Tensor) -> Any:
    with torch.autocast(x.device.type, torch.bfloat16, enabled=x.dtype == torch.bfloat16):
        return layer(x)


def _call(side: Side, mode: str) -> Callable[[], object]:
    if mode == "inference":
        return forward_call(side.run, side.inputs)
    leaves = {name: t.detach().requires_grad_() for name, t in side.inputs.items()}
    if mode == "forward":
        return lambda: side.run(**leaves)
    outs = [t for t in _tensors(side.run(**leaves)) if t.grad_fn is not None]
    gradients = [torch.randn_like(t) for t in outs]
    wanted = [*leaves.values(), *side.weights]
    return lambda: torch.autograd.grad(outs, wanted, gradients, retain_graph=True)


def forward_call(run: Run, inputs: Inputs) -> Callable[[], object]:
    """`run` on the inputs, keeping nothing for backward."""

    def call() -> Any:
        with torch.no_grad():
            return run(**inputs)

    return call


def _tensors(found: Any) -> list[Tensor]:
    """What a layer returns beside its output is its state, which a step of training does not use."""
    if isinstance(found, Tensor):
        return [found]
    first, rest = found[0], found[1:]
    return [first, *(t for t in rest if isinstance(t, Tensor))]


def _check(operation: Operation, sides: Sequence[Side]) -> None:
    """Raises where a small call differs from the fp64 reference, or from the peer's, by more than rounding."""
    ours, *peers = sides
    # One row of 65 positions of what depends on time, and of everything 32 channels; of a layer all channels.
    width = None if operation.layer else 32
    span = next(iter(ours.inputs.values())).shape[:2]
    small = {k: v[:1, :65, :width] if v.shape[:2] == span else v[:width] for k, v in ours.inputs.items()}
    with torch.no_grad():
        found = _tensors(ours.run(**small))[0]
        if operation.layer:
            with ops.plain_torch():
                exact = _tensors(ours.run(**small))[0]
        else:
            exact = _tensors(ours.run(**{k: v.double() for k, v in small.items()}, backend="reference"))[0]
        _compare(operation.title, found, exact)
        for peer in () if operation.layer else peers:  # whose weights are others
            theirs = _tensors(peer.run(**operation.layout(small)))[0]
            _compare(
                f"{operation.title} of the peer",
                theirs.transpose(1, 2) if theirs.shape != found.shape else theirs,
                exact,
            )


def _compare(name: str, found: Tensor, exact: Tensor) -> None:
    error = float((found.double() - exact.double()).norm() / exact.double().norm())
    if not error < (1e-5 if found.dtype == torch.float32 else 2e-2):
        raise RuntimeError(f"{name}: wrong by {error:.1e}, not timed; see mba doctor")


def _limits(operation: Operation, inputs: Inputs, mode: str, rates: tuple[float, float | None]) -> Row:
    """Milliseconds of bytes and special functions at the device's rates."""
    out = next(iter(inputs.values()))
    copies, functions = rates
    row: Row = {"limit_ms": "", "special_limit_ms": "", "copy_tb_per_s": f"{copies / 1e12:.3g}"}
    if operation.moved is not None:
        activations, more = operation.moved[MODES.index(mode)]
        row["limit_ms"] = f"{1e3 * (activations * out.element_size() + more) * out.numel() / copies:.3g}"
    count = operation.special[mode == "backward"] * out.numel()
    if count and functions:
        row["special_limit_ms"] = f"{1e3 * count / functions:.3g}"
    return row


def special_rate(device: str) -> float | None:
    """Special functions a second, 16 a clock and multiprocessor; None where the clock is not known."""
    if device != "cuda":
        return None
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    clock = getattr(properties, "clock_rate", None)  # kHz
    return 16e3 * clock * properties.multi_processor_count if clock else None


def _by_the_host(calls: Sequence[Callable[[], object]], timing: Timing, device: str) -> Row:
    """What is told of short calls on a GPU beside its times."""
    names = ("call_us", "peer_call_us", "call_ratio", "host_us", "peer_host_us")
    row: Row = dict.fromkeys(names, "")
    if device != "cuda" or statistics.median(timing.ours) >= SHORT:
        return row
    called, hosts = by_the_clock(calls), host_times(calls)
    for prefix, times, host in zip(("", "peer_"), called, hosts, strict=False):
        row |= {
            f"{prefix}call_us": f"{statistics.median(times):.1f}",
            f"{prefix}host_us": f"{statistics.median(host):.1f}",
        }
    if len(called) == 2:
        row["call_ratio"] = f"{statistics.median(b / a for a, b in zip(*called, strict=True)):.3f}"
    return row
