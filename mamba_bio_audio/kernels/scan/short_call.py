"""Launches `short`, for a layer that has arranged its tensors and for a call as users make it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from mamba_bio_audio.kernels.launch import cdiv, launch, on
from mamba_bio_audio.kernels.scan.inputs import Case, Plan, ScanInputs
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


def short_forward(
    t: ShortTensors, case: Case, plan: Plan, *, keep: bool, planes: bool = True, want_last: bool = True
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """(out (B, L, D), last state, states (B, ceil(L / SEG), 1, N, D)), the latter two where they are wanted.

    The last state is (B, 1, N, D), or without `planes`, and h0 as well, (B, D, N).
    """
    batch, length, channels = t.u.shape
    states, device = t.A.shape[1], t.u.device
    out = torch.empty(batch, length, channels, dtype=t.u.dtype, device=device)
    last = saved = None
    if want_last:
        shape = (batch, 1, states, channels) if planes else (batch, channels, states)
        last = torch.empty(shape, dtype=torch.float32, device=device)
    if keep:
        kept = batch, cdiv(length, plan.segment), 1, states, channels
        saved = torch.empty(kept, dtype=torch.float32, device=device)
    programs, numbers, constants = arguments(t, case, plan, planes=planes, keep=keep, last=want_last)
    A = t.A
    with on(device):
        launch(
            scan_short_kernel, programs, t.u, t.dt, A, t.B, t.C, A if t.skip is None else t.skip,
            t.u if t.z is None else t.z, A if t.bias is None else t.bias, A if t.h0 is None else t.h0,
            A if t.reset is None else t.reset, out, A if last is None else last, A if saved is None else saved,
            *numbers, **constants,
        )  # fmt: skip
    return out, last, saved


def as_given(s: ScanInputs) -> ShortTensors | None:
    """The tensors of a call as they are, where they need not be arranged first."""
    rows = [t for t in (s.u, s.dt, s.z) if t is not None]
    exact = [t for t in (s.D, s.dt_bias, s.h0) if t is not None]
    if (
        any(t.stride(2) != 1 for t in rows)
        or any(t.dtype != torch.float32 or not t.is_contiguous() for t in exact)
        or (s.reset is not None and not s.reset.is_contiguous())
    ):
        return None
    reset = None if s.reset is None else s.reset.view(torch.uint8)
    found = ShortTensors(s.u, s.dt, s.A, s.B, s.C, s.D, s.z, s.dt_bias, s.h0, reset)
    return found if fits(found) else None
