"""Selective scan in blocks of time steps, in plain PyTorch: the CPU path, and any other device.

    h_t = a_t h_(t-1) + b_t      a_t = exp(dt_t A)      b_t = dt_t B_t u_t      y_t = sum_n C_t h_t

with the options of `reference`. Only blocks of T steps of a_t and h_t exist at a time, in the layout (T, B, N,
D) with the channels contiguous, so that the exponential runs over long rows. The forward keeps its inputs
and the state at every block's start, N / T numbers per channel and step; the backward recomputes a block
and sweeps it in reverse with the adjoint:

    g_t = C_t gy_t + a_(t+1) g_(t+1)                        w_t = a_t h_(t-1) g_t, gradient of dt_t A
    dC_t = sum_d h_t gy_t       dB_t = sum_d dt_t u_t g_t       d(dt_t u_t) = sum_n B_t g_t

Inside a block the recurrence is a tree: neighbouring steps are joined a few times, a multiply-add over half
of the block each, the few joined steps run one after another, and the rest is filled in. Joins only
multiply decays, never divide. With slots H[0..T], H[0] the state that comes in, forward and reverse sweep
are mirror images and share the joined decays:  H[s+1] += a[s] H[s]  and  G[s] += a[s] G[s+1].

Complex A: y = 2 Re(sum_n C h). The sweep carries the complex conjugate of the gradient, for which the
equations hold as written (no conjugate inside); results are conjugated once at the end.

Time is walked in segments (elementwise work over (S, B, D)) made of blocks (work over (T, B, N, D)), and the
batch in groups of rows, so that a block stays in the processor's cache whatever B and L are.

Letters: B batch (b rows of a group), L length, S steps of a segment, T of a block, D channels, N states.
Mamba (arXiv 2312.00752) section 3.3.2.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_bio_audio.kernels.differentiable_once import refuse_second_order, will_differentiate
from mamba_bio_audio.kernels.scan import cpu_lti
from mamba_bio_audio.kernels.scan.cpu_backward import backward
from mamba_bio_audio.kernels.scan.cpu_blocks import Buffers, Problem, Segment
from mamba_bio_audio.kernels.scan.inputs import ScanInputs


def scan_torch(s: ScanInputs) -> tuple[Tensor, Tensor]:
    """(out (B, L, D) in u.dtype, final state (B, D, N[, 2]) in fp32 or fp64), as the reference returns them.

    Call it with autocast off, as `ops` does; the backward sees to that itself.
    """
    if cpu_lti.suits(s):
        return cpu_lti.scan_lti(s)
    if will_differentiate(*s.tensors):
        return _ScanFn.apply(s, *s.tensors)
    with torch.no_grad():
        if s.u.shape[1] == 1 and not s.exact_zoh and not s.precise and s.A.ndim == 2:
            return _single_step(s)
        out, state, _ = _forward(Problem(s), save=False)
        return out, state


class _ScanFn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, s: ScanInputs, *tensors: Any) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        out, state, starts = _forward(Problem(s), save=True)
        ctx.options = s.with_tensors(*[None] * len(tensors))._replace(reset=None)
        ctx.save_for_backward(*tensors, s.reset, starts)
        return out, state

    @staticmethod
    def backward(ctx: Any, g_out: Tensor | None, g_state: Tensor | None) -> Any:
        *tensors, reset, starts = ctx.saved_tensors
        s = ctx.options.with_tensors(*tensors)._replace(reset=reset)
        with torch.no_grad(), torch.autocast(tensors[0].device.type, enabled=False):
            grads = backward(Problem(s), starts, g_out, g_state)
        wanted = (g if need else None for g, need in zip(grads, ctx.needs_input_grad[1:], strict=True))
        return None, *refuse_second_order("selective_scan", tuple(wanted))


def _single_step(s: ScanInputs) -> tuple[Tensor, Tensor]:
    """One position, real A, no gradient: what generation runs for every symbol."""
    u, dt, A, B, C, h0 = s.u, s.dt, s.A, s.B, s.C, s.h0
    out_dtype = u.dtype
    dtype = s.state_dtype
    u = u[:, 0].to(dtype)
    dt = (dt if dt.ndim == 1 else dt[:, 0]).to(dtype)
    if s.dt_bias is not None:
        dt = dt + s.dt_bias
    if s.dt_softplus:
        dt = F.softplus(dt, threshold=20.0)
    h = (dt * u).unsqueeze(2) * (B[:, 0].unsqueeze(1) if B.ndim == 3 else B).to(dtype)  # (B, D, N)
    if h0 is not None:
        a = torch.exp(dt.unsqueeze(-1) * A)
        previous = h0 if s.reset is None else torch.where(s.reset.unsqueeze(2), torch.zeros_like(h0), h0)
        h = torch.addcmul(h, a.expand_as(h), previous.to(dtype))
    C = C.to(dtype)
    y = torch.bmm(h, C[:, 0].unsqueeze(2)).squeeze(2) if C.ndim == 3 else (h * C).sum(-1)
    if s.D is not None:
        y = torch.addcmul(y, u, s.D.to(dtype))
    if s.z is not None:
        y = y * F.silu(s.z[:, 0].to(dtype))
    return y.to(out_dtype).unsqueeze(1), h


def _forward(p: Problem, save: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Returns (out, final state in public shape, states at block starts (blocks, B, N, D) or None)."""
    out = torch.empty((p.rows, p.length, p.channels), dtype=p.u.dtype, device=p.u.device)
    final = p.empty(p.rows, p.states, p.channels)
    starts = p.empty(-(-p.length // p.T), p.rows, p.states, p.channels) if save else None
    for rows in p.groups():
        buffers = Buffers(p, rows.stop - rows.start)
        if p.h0 is None:
            buffers.h[0].zero_()
        else:
            buffers.h[0].copy_(p.h0[rows])
        resets = p.reset_steps(rows)
        for steps in p.segments():
            segment = Segment(p, rows, steps)
            y = p.empty(segment.size, rows.stop - rows.start, p.channels, real=True)
            for block in segment.blocks():
                if starts is not None:
                    starts[(steps.start + block.start) // p.T, rows].copy_(buffers.h[0])
                segment.run(buffers, block, resets)
                segment.readout(buffers, block, y[block])
                buffers.h[0].copy_(buffers.h[block.stop - block.start])
            if p.D is not None:
                y.addcmul_(segment.u, p.D)
            if segment.z is not None:
                y.mul_(F.silu(segment.z))
            out[rows, steps].copy_(y.transpose(0, 1))
        final[rows].copy_(buffers.h[0])
    return out, p.public_state(final), starts
