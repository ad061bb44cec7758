"""The Triton scan as a function with gradients, by plans or as a call that is prepared once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mamba_bio_audio.kernels.differentiable_once import refuse_second_order, will_differentiate
from mamba_bio_audio.kernels.scan.inputs import Plan, ScanInputs, unsupported_reason
from mamba_bio_audio.kernels.scan.launch import (
    ScanCall,
    from_parts,
    planes_of,
    prepared,
    scan_backward,
    scan_forward,
)
from mamba_bio_audio.kernels.scan.short_call import ShortScan


def _forward(s: ScanInputs, plan: Plan | None, train: bool) -> tuple[ScanCall, Tensor, Tensor, Tensor | None]:
    """The call, the output, the last state in its public shape, and the kept states."""
    call = prepared(s, plan)
    start = None if s.h0 is None else planes_of(s.h0, call.case.complex)
    out, last, states = scan_forward(call, start, train)
    return call, out, from_parts(last.transpose(-1, -2), call.case.complex), states


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, s: ScanInputs, plan: Plan | None, *_: Tensor | None) -> tuple[Tensor, Tensor]:
        call, out, last, states = _forward(s, plan, True)
        ctx.save_for_backward(call.u, call.dt, call.z, call.A, call.B, call.C, call.skip, call.bias, call.reset, states)
        ctx.case, ctx.plan = call.case, call.plan
        ctx.dtypes = [None if t is None else t.dtype for t in s.tensors]
        ctx.set_materialize_grads(False)
        return out, last

    @staticmethod
    def backward(ctx: Any, g_out: Tensor | None, g_last: Tensor | None) -> tuple[Tensor | None, ...]:
        *inputs, states = ctx.saved_tensors
        call = ScanCall(*inputs, case=ctx.case, plan=ctx.plan)  # type: ignore[misc]
        return None, None, *_gradients(call, states, g_out, g_last, ctx.dtypes, ctx.needs_input_grad[2:])


class _ShortScan(torch.autograd.Function):
    """A prepared forward, whose backward arranges the tensors."""

    @staticmethod
    def forward(ctx: Any, run: ShortScan, s: ScanInputs, *_: Tensor | None) -> tuple[Tensor, Tensor | None]:
        found = run(s, keep=True)
        if found is None:
            raise _OtherKind
        out, last, states = found
        ctx.save_for_backward(*s.tensors, s.reset, states)
        ctx.run, ctx.options = run, s[10:]
        ctx.set_materialize_grads(False)
        return out, last

    @staticmethod
    def backward(ctx: Any, g_out: Tensor | None, g_last: Tensor | None = None) -> tuple[Tensor | None, ...]:
        *inputs, states = ctx.saved_tensors
        s = ScanInputs(*inputs, *ctx.options)
        dtypes = [None if t is None else t.dtype for t in s.tensors]
        call = prepared(s, ctx.run.plan)
        return None, None, *_gradients(call, states, g_out, g_last, dtypes, ctx.needs_input_grad[2:])


class _OtherKind(Exception):
    """A prepared call's tensors lie otherwise than those it was prepared for."""


def _gradients(
    call: ScanCall,
    states: Tensor,
    g_out: Tensor | None,
    g_last: Tensor | None,
    dtypes: list[torch.dtype | None],
    needed: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """Gradients of the arguments, those that are needed, in their dtypes."""
    if g_out is None:
        g_out = torch.zeros_like(call.u)
    if g_last is not None:
        g_last = planes_of(g_last, call.case.complex)
    g = scan_backward(
        call, states, g_out, g_last, needed[-1], narrow=(dtypes[3] == torch.bfloat16, dtypes[4] == torch.bfloat16)
    )
    cast = tuple(
        None if found is None or not need else found if found.dtype == dtype else found.to(dtype)
        for found, dtype, need in zip(
            (g.u, g.dt, g.A, g.B, g.C, g.skip, g.z, g.bias, g.h0), dtypes, needed, strict=True
        )
    )
    return refuse_second_order("selective_scan", cast)


def run_short(run: ShortScan, s: ScanInputs) -> tuple[Tensor, Tensor | None] | None:
    """(out, last state if it was prepared for one) of a prepared call; None where its tensors lie otherwise."""
    if not will_differentiate(*s.tensors):
        found = run(s, keep=False)
        return None if found is None else found[:2]
    try:
        return _ShortScan.apply(run, s, *s.tensors)  # type: ignore[no-any-return]
    except _OtherKind:
        return None


def scan_triton(s: ScanInputs, plan: Plan | None = None) -> tuple[Tensor, Tensor]:
    """Any selective scan in fused Triton kernels, deterministic, with gradients also through h0 and the last state.

    Args:
        s: u, dt, z bf16, fp16 or fp32, any row stride as long as channels are adjacent; B and C best in fp32, which is
            what the kernels read.
        plan: layout on the machine, for benchmarks and tests; `make_plan` by default.

    Returns:
        (out (B, L, D) in u's dtype, last state (B, D, N[, 2]) fp32).

    Raises:
        NotImplementedError: What `unsupported_reason` names.
    """
    reason = unsupported_reason(s)
    if reason is not None:
        raise NotImplementedError(f'selective_scan: the triton backend does not run {reason}; use backend="torch"')
    return run_scan(s, plan)


def run_scan(s: ScanInputs, plan: Plan | None = None) -> tuple[Tensor, Tensor]:
    """`scan_triton` of a call for which `unsupported_reason` has none."""
    if will_differentiate(*s.tensors):
        return _Scan.apply(s, plan, *s.tensors)
    _, out, last, _ = _forward(s, plan, False)
    return out, last
