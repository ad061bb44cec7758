"""The Triton scan as a function with gradients, by plans or as a call that is prepared once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mamba_bio_audio.kernels.differentiable_once import refuse_second_order, will_differentiate
from mamba_bio_audio.kernels.recorded import Recorded, Results, record
from mamba_bio_audio.kernels.scan.inputs import Plan, ScanInputs, make_plan, unsupported_reason
from mamba_bio_audio.kernels.scan.launch import (
    ScanCall,
    from_parts,
    planes_of,
    prepared,
    scan_backward,
    scan_forward,
    sink_of,
    zeros_of,
)
from mamba_bio_audio.kernels.scan.short_call import as_given, short_forward


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
    narrow = dtypes[3] == torch.bfloat16, dtypes[4] == torch.bfloat16
    dBC = None
    if call.case.plain and all(narrow):  # as they are returned, with no cast behind
        batch, length, _, states_of = call.sizes
        dBC = torch.empty(batch, length, 2 * states_of, dtype=torch.bfloat16, device=call.u.device)
    g = scan_backward(call, states, g_out, g_last, needed[-1], narrow=narrow, dBC=dBC)
    cast = tuple(
        None if found is None or not need else found if found.dtype == dtype else found.to(dtype)
        for found, dtype, need in zip(
            (g.u, g.dt, g.A, g.B, g.C, g.skip, g.z, g.bias, g.h0), dtypes, needed, strict=True
        )
    )
    return refuse_second_order("selective_scan", cast)


# Kinds of gradients that a call may get, by how they lie; then anew.
_MOST = 64


class PreparedScan:
    """Calls that differ in nothing but what is in their tensors, and where these lie."""

    def __init__(self, s: ScanInputs, *, last: bool, plan: Plan | None = None) -> None:
        """Of such a call; `last`: whether the last state is wanted."""
        self._case = s.case
        self.plan = plan or make_plan(*s.u.shape, s.A.shape[1], s.u.device, s.case)
        self.last = last
        self._fixed = sink_of(s.u.device), zeros_of(s.u.device)
        self._recorded: dict[bool, Recorded | None] = {}
        self._backward: dict[Any, Recorded | None] = {}

    def can(self, *, keep: bool) -> bool:
        """Whether `forward` can run: not where it was tried, and did more than launch kernels."""
        return self._recorded.get(keep, True) is not None

    def forward(self, s: ScanInputs, *, keep: bool) -> Results | None:
        """(out, last state (B, D, N[, 2]) if it is wanted, what `backward` wants if that is kept).

        None where these tensors must go the longer way.
        """
        inputs = s[:10]
        if keep not in self._recorded:
            with torch.no_grad():
                kept = 4 if keep else 0
                self._recorded[keep] = record(inputs, self._fixed, lambda: self._call(s, keep), kept=kept)[1]
        recorded = self._recorded[keep]
        return None if recorded is None else recorded(inputs)

    def _call(self, s: ScanInputs, keep: bool) -> Results:
        """With `keep` also states, A, B and C as backward wants them, if there are any."""
        if self.plan.short and self._case.plain:
            given = as_given(s)
            if given is not None:
                found = short_forward(given, self._case, self.plan, keep=keep, planes=False, want_last=self.last)
                return (*found, None, None, None) if keep else found[:2]
        call, out, last, states = _forward(s, self.plan, keep)
        shown = out, last if self.last else None
        return (*shown, states, call.A, call.B, call.C) if keep else shown

    def backward(
        self, s: ScanInputs, room: Tensor, g_out: Tensor | None, g_last: Tensor | None, needed: Sequence[bool]
    ) -> tuple[Tensor | None, ...]:
        """Gradients of the arguments, from what `forward` kept in `room`."""
        forward = self._recorded[True]
        assert forward is not None

        def call() -> tuple[Tensor | None, ...]:
            states, A, B, C = forward.apart(room)
            assert states is not None
            dtypes = [None if t is None else t.dtype for t in s.tensors]
            return _gradients(self._call_of(s, A, B, C), states, g_out, g_last, dtypes, needed)

        if g_out is None or g_last is not None or torch.is_grad_enabled():
            return call()
        inputs = (*s[:10], room, g_out)
        key = tuple(needed), g_out.dtype, g_out.stride()
        if key not in self._backward:
            if len(self._backward) >= _MOST:
                self._backward.clear()
            found, self._backward[key] = record(inputs, self._fixed, call)
            return found
        recorded = self._backward[key]
        done = None if recorded is None else recorded(inputs)
        return call() if done is None else done

    def _call_of(self, s: ScanInputs, A: Tensor | None, B: Tensor | None, C: Tensor | None) -> ScanCall:
        """As backward wants it."""
        if A is None or B is None or C is None:
            return prepared(s, self.plan)
        reset = None if s.reset is None else s.reset.view(torch.uint8)
        return ScanCall(s.u, s.dt, s.z, A, B, C, s.D, s.dt_bias, reset, self._case, self.plan)


class _PreparedScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, run: PreparedScan, s: ScanInputs, *_: Tensor | None) -> Any:
        found = run.forward(s, keep=True)
        if found is None:
            raise _OtherKind
        out, last, room = found
        ctx.save_for_backward(*s[:10], room)
        ctx.run, ctx.options = run, s[10:]
        ctx.set_materialize_grads(False)
        return (out, last) if run.last else out

    @staticmethod
    def backward(ctx: Any, g_out: Tensor | None, g_last: Tensor | None = None) -> tuple[Tensor | None, ...]:
        *inputs, room = ctx.saved_tensors
        s = ScanInputs(*inputs, *ctx.options)
        return None, None, *ctx.run.backward(s, room, g_out, g_last, ctx.needs_input_grad[2:])


class _OtherKind(Exception):
    """The tensors of a prepared call lie otherwise than those it was prepared for."""


def run_prepared(run: PreparedScan, s: ScanInputs) -> tuple[Tensor, Tensor | None] | None:
    """(out, last state if it was prepared for one) of a prepared call; None where its tensors must go the longer way."""
    keep = will_differentiate(*s.tensors)
    if not run.can(keep=keep):
        return None
    if not keep:
        return run.forward(s, keep=False)  # type: ignore[return-value]
    try:
        found = _PreparedScan.apply(run, s, *s.tensors)
    except _OtherKind:
        return None
    return found if run.last else (found, None)


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
