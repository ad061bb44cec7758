"""Launches `short`, for a layer that has arranged its tensors and for a call as users make it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from mamba_bio_audio.kernels.launch import Prepared, cdiv, launch, on
from mamba_bio_audio.kernels.scan.inputs import Case, Plan, ScanInputs, make_plan
from mamba_bio_audio.kernels.scan.short import scan_short_kernel

_SPAN = 1 << 31  # of 32 bits


class ShortTensors(NamedTuple):
    """u, dt, z (B, L, D), channels adjacent; A (D, N) and B, C (B, L, N) in any order; the others in fp32, contiguous."""

    u: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    skip: Tensor | None
    z: Tensor | None
    bias: Tensor | None
    h0: Tensor | None  # (B, D, N), or with `planes` (B, N, D)
    reset: Tensor | None  # uint8


def _row(t: Tensor) -> int:
    """Between steps; of a single step whatever."""
    return t.stride(1)


def fits(t: ShortTensors) -> bool:
    """Whether 32 bits span a row of the batch."""
    length = t.u.shape[1]
    wide = [t.u.shape[2], *(_row(x) for x in (t.u, t.dt, t.B, t.C)), 0 if t.z is None else _row(t.z)]
    return max(map(abs, wide)) * length < _SPAN


def _is_wide(t: Tensor) -> bool:
    """Whether 8 bytes of it can be loaded at once."""
    size = t.element_size()
    spans = (t.shape[-1], t.stride(0) * (t.shape[0] > 1), _row(t))
    return (
        t.dtype in (torch.bfloat16, torch.float32)
        and t.stride(-1) == 1
        and not any(span * size % 8 for span in spans)
        and t.data_ptr() % 8 == 0
    )


def arguments(
    t: ShortTensors, case: Case, plan: Plan, *, planes: bool, keep: bool, last: bool
) -> tuple[int, tuple[int, ...], dict[str, Any]]:
    """(programs, numbers, constants) of the launch; `planes`: the last state, and h0, are (B, N, D)."""
    batch, length, channels = t.u.shape
    states, block = t.A.shape[1], plan.short
    unit = max(plan.segment, plan.short_unroll)
    rows = min(32 * plan.short_warps // block, 1 << (cdiv(length, unit) - 1).bit_length())
    rows = max(rows, 32 // block)
    steps = cdiv(cdiv(length, rows), unit) * unit
    z = t.u if t.z is None else t.z
    numbers = (length, steps, 0, *(x.stride(0) for x in (t.u, t.dt, z, t.B, t.C)))
    constants = dict(
        D=channels, N=states, BD=block, S=rows, UNROLL=plan.short_unroll, SEG=plan.segment,
        U_ROW=_row(t.u), DT_ROW=_row(t.dt), Z_ROW=_row(z), A_ROW=t.A.stride(0), A_COLUMN=t.A.stride(1),
        B_ROW=_row(t.B), B_COLUMN=t.B.stride(2), B_WIDE=_is_wide(t.B),
        C_ROW=_row(t.C), C_COLUMN=t.C.stride(2), C_WIDE=_is_wide(t.C),
        H_ROW=1 if planes else states, H_COLUMN=channels if planes else 1, CASE=case,
        HAS_H0=t.h0 is not None, WRITE_STATES=keep, WRITE_LAST=last, num_warps=rows * block // 32,
    )  # fmt: skip
    return batch * cdiv(channels, block), numbers, constants


def _tensors(t: ShortTensors, out: Tensor, last: Tensor | None, saved: Tensor | None) -> tuple[Tensor, ...]:
    """The kernel's; what is absent is another one, which is then not touched for it."""
    A = t.A
    return (
        t.u, t.dt, A, t.B, t.C, A if t.skip is None else t.skip, t.u if t.z is None else t.z,
        A if t.bias is None else t.bias, A if t.h0 is None else t.h0, A if t.reset is None else t.reset,
        out, A if last is None else last, A if saved is None else saved,
    )  # fmt: skip


def _kept(t: ShortTensors, plan: Plan) -> Tensor:
    batch, length, channels = t.u.shape
    shape = batch, cdiv(length, plan.segment), 1, t.A.shape[1], channels
    return torch.empty(shape, dtype=torch.float32, device=t.u.device)


def short_forward(t: ShortTensors, case: Case, plan: Plan, *, keep: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """(out (B, L, D), last state (B, 1, N, D), states (B, ceil(L / SEG), 1, N, D) or None)."""
    batch, length, channels = t.u.shape
    out = torch.empty(batch, length, channels, dtype=t.u.dtype, device=t.u.device)
    last = torch.empty(batch, 1, t.A.shape[1], channels, dtype=torch.float32, device=t.u.device)
    saved = _kept(t, plan) if keep else None
    programs, numbers, constants = arguments(t, case, plan, planes=True, keep=keep, last=True)
    with on(t.u.device):
        launch(scan_short_kernel, programs, *_tensors(t, out, last, saved), *numbers, **constants)
    return out, last, saved


class ShortScan:
    """Forward of calls that differ in nothing but what is in their tensors, and where these lie."""

    def __init__(self, s: ScanInputs, plan: Plan, *, last: bool) -> None:
        """Of such a call; `last`: whether the last state is wanted."""
        t = _of(s)
        self.case, self.plan = s.case, plan
        self._last = last
        self._launches = [
            Prepared(scan_short_kernel, *arguments(t, s.case, plan, planes=False, keep=keep, last=last))
            for keep in (False, True)
        ]

    def __call__(self, s: ScanInputs, *, keep: bool) -> tuple[Tensor, Tensor | None, Tensor | None] | None:
        """(out, last state (B, D, N), kept states), each where it is wanted; None where this call is another kind."""
        t = _of(s)
        u = t.u
        out = torch.empty(u.shape, dtype=u.dtype, device=u.device)
        last = saved = None
        if self._last:
            last = torch.empty((u.shape[0], *t.A.shape), dtype=torch.float32, device=u.device)
        if keep:
            saved = _kept(t, self.plan)
        return (out, last, saved) if self._launches[keep](*_tensors(t, out, last, saved)) else None


def _of(s: ScanInputs) -> ShortTensors:
    reset = None if s.reset is None else s.reset.view(torch.uint8)
    return ShortTensors(s.u, s.dt, s.A, s.B, s.C, s.D, s.z, s.dt_bias, s.h0, reset)


def short_scan(s: ScanInputs, *, last: bool, plan: Plan | None = None) -> ShortScan | None:
    """For calls of this kind, or None where they are not short, or their tensors need to be arranged first."""
    if not s.case.plain:
        return None
    if plan is None:
        plan = make_plan(*s.u.shape, s.A.shape[1], s.u.device, s.case)
    if not plan.short or not s.u.numel():
        return None
    rows = [t for t in (s.u, s.dt, s.z) if t is not None]
    exact = [t for t in (s.D, s.dt_bias, s.h0) if t is not None]
    arranged = (
        all(t.stride(2) == 1 for t in rows)
        and all(t.dtype == torch.float32 and t.is_contiguous() for t in exact)
        and (s.reset is None or s.reset.is_contiguous())
        and fits(_of(s))
    )
    return ShortScan(s, plan, last=last) if arranged else None
