"""Selective scan in blocks of time steps, in plain PyTorch: the CPU path, and any other device.

    h_t = a_t h_(t-1) + b_t,   a_t = exp(dt_t A),   b_t = dt_t B_t u_t,   y_t = sum_n C_t h_t   (`ref.py` has it all)

Only blocks of T steps of a_t and h_t exist at a time, in the layout (T, B, N, D) with the channels contiguous: the
exponential runs over long rows and one step of the recurrence is one multiply-add over (B, N, D). The forward keeps
its inputs and the state at every block's start, N / T numbers per channel and step; the backward recomputes a block
and sweeps it in reverse with the adjoint (kernels-design, section 1):

    g_t = C_t gy_t + a_(t+1) g_(t+1)      w_t = a_t h_(t-1) g_t
    dC_t = sum_d h_t gy_t    dB_t = sum_d dt_t u_t g_t    d(dt_t A) = w_t    du_t = dt_t sum_n B_t g_t

Complex A: y = 2 Re(sum C h). The sweep carries the complex conjugate of the gradient, for which the equations above
hold as written (no conjugate inside); results are conjugated once at the end.

Time is walked in segments (elementwise work over (S, B, D)) made of blocks (work over (T, B, N, D)), and the batch in
groups of rows, so that a block stays in the processor's cache whatever B and L are.

Letters: B batch (b rows of a group), L length, S steps of a segment, T steps of a block, D channels, N states.
"""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_bio_audio.kernels.differentiable_once import refuse_second_order

_BLOCK_STEPS = 32
_BLOCK_NUMBERS = 1 << 18  # numbers in one (T, b, N, D) buffer at most, where more than one row is in a group
_SEGMENT_NUMBERS = 1 << 18  # numbers in one (S, b, D) buffer at most
_SERIES_BELOW = 0.5
_SERIES_TERMS = 16


class Options(NamedTuple):
    dt_softplus: bool
    exact_zoh: bool
    precise: bool


def selective_scan_blocked(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    *,
    dt_softplus: bool = True,
    h0: Tensor | None = None,
    reset: Tensor | None = None,
    exact_zoh: bool = False,
    precise: bool = False,
) -> tuple[Tensor, Tensor]:
    """Returns (out (B, L, D) in u.dtype, final state (B, D, N[, 2]) in fp32 or fp64); same contract as the oracle."""
    options = Options(dt_softplus, exact_zoh, precise)
    tensors = (u, dt, A, B, C, D, z, dt_bias, h0)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        return _ScanFn.apply(options, reset, *tensors)
    with torch.no_grad():
        if torch.is_autocast_enabled(u.device.type):
            with torch.autocast(u.device.type, enabled=False):
                return _run(options, reset, tensors)
        return _run(options, reset, tensors)


def _run(options: Options, reset: Tensor | None, tensors: Sequence[Any]) -> tuple[Tensor, Tensor]:
    if tensors[0].shape[1] == 1 and not options.exact_zoh and not options.precise and tensors[2].ndim == 2:
        return _single_step(options, reset, *tensors)
    out, state, _ = _forward(_Problem(options, reset, *tensors), save=False)
    return out, state


class _ScanFn(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, options: Options, reset: Tensor | None, *tensors: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.options = options
        with torch.autocast(tensors[0].device.type, enabled=False):
            out, state, starts = _forward(_Problem(options, reset, *tensors), save=True)
        ctx.save_for_backward(reset, *tensors, starts)
        return out, state

    @staticmethod
    def backward(ctx: Any, g_out: Tensor | None, g_state: Tensor | None) -> Any:
        reset, *tensors, starts = ctx.saved_tensors
        with torch.no_grad(), torch.autocast(tensors[0].device.type, enabled=False):
            grads = _backward(_Problem(ctx.options, reset, *tensors), starts, g_out, g_state)
        wanted = (g if need else None for g, need in zip(grads, ctx.needs_input_grad[2:], strict=True))
        return None, None, *refuse_second_order("selective_scan", tuple(wanted))


def _single_step(
    options: Options,
    reset: Tensor | None,
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    h0: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """One position, real A, no gradient: what generation runs for every symbol."""
    out_dtype = u.dtype
    dtype = _compute_dtype((u, dt, A, B, C, D, z, dt_bias, h0))
    u = u[:, 0].to(dtype)
    dt = (dt if dt.ndim == 1 else dt[:, 0]).to(dtype)
    if dt_bias is not None:
        dt = dt + dt_bias
    if options.dt_softplus:
        dt = F.softplus(dt, threshold=20.0)
    h = (dt * u).unsqueeze(2) * (B[:, 0].unsqueeze(1) if B.ndim == 3 else B).to(dtype)  # (B, D, N)
    if h0 is not None:
        a = torch.exp(dt.unsqueeze(-1) * A)
        previous = h0 if reset is None else torch.where(reset.unsqueeze(2), torch.zeros_like(h0), h0)
        h = torch.addcmul(h, a.expand_as(h), previous.to(dtype))
    C = C.to(dtype)
    y = torch.bmm(h, C[:, 0].unsqueeze(2)).squeeze(2) if C.ndim == 3 else (h * C).sum(-1)
    if D is not None:
        y = torch.addcmul(y, u, D.to(dtype))
    if z is not None:
        y = y * F.silu(z[:, 0].to(dtype))
    return y.to(out_dtype).unsqueeze(1), h


def _compute_dtype(tensors: Sequence[Tensor | None]) -> torch.dtype:
    for t in tensors:
        if t is not None and t.dtype == torch.float64:
            return torch.float64
    return torch.float32


def _expm1_ratio(x: Tensor) -> tuple[Tensor, Tensor]:
    """f(x) = (exp(x) - 1) / x and f'(x) = (x exp(x) - exp(x) + 1) / x^2, series where the closed forms cancel."""
    small = x.abs() < _SERIES_BELOW
    far = torch.where(small, torch.ones_like(x), x)
    near = torch.where(small, x, torch.zeros_like(x))
    value = torch.ones_like(x)
    slope = torch.full_like(x, 1 / (_SERIES_TERMS + 2))
    for k in range(_SERIES_TERMS, 0, -1):
        # f = sum x^k / (k + 1)!,  f' = sum x^k / (k! (k + 2))
        value = 1 + near / (k + 1) * value
        slope = 1 / (k + 1) + near / k * slope
    growth = torch.expm1(far)
    closed = growth / far
    return torch.where(small, value, closed), torch.where(small, slope, (growth + 1 - closed) / far)


class _Problem:
    """The inputs of one call in the layout of the sweep, and the walk over rows, segments and blocks."""

    def __init__(
        self,
        options: Options,
        reset: Tensor | None,
        u: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        z: Tensor | None,
        dt_bias: Tensor | None,
        h0: Tensor | None,
    ) -> None:
        self.options, self.reset, self.z = options, reset, z
        self.u, self.dt = u, dt
        self.dtype = _compute_dtype((u, dt, A, B, C, D, z, dt_bias, h0))
        self.complex = A.ndim == 3
        self.number = self.dtype.to_complex() if self.complex else self.dtype
        self.originals = (u, dt, A, B, C, D, z, dt_bias, h0)
        self.rows, self.length, self.channels = u.shape
        self.states = A.shape[1]

        self.A = self._number(A).t().contiguous()  # (N, D)
        self.lti_dt, self.lti_B, self.lti_C = dt.ndim == 1, B.shape == A.shape and B.ndim == A.ndim, False
        self.lti_B = B.ndim == (3 if self.complex else 2)
        self.lti_C = C.ndim == (3 if self.complex else 2)
        self.B = self._number(B).t().contiguous() if self.lti_B else self._number(B)
        C = self._number(C)
        if self.complex:
            C = 2 * C
        self.C = C.t().contiguous() if self.lti_C else C
        self.D = None if D is None else D.to(self.dtype)
        self.dt_bias = None if dt_bias is None else dt_bias.to(self.dtype)
        self.h0 = None if h0 is None else self._number(h0).transpose(1, 2)  # (B, N, D)

        self.T = min(self.length, _BLOCK_STEPS)
        self.group = max(1, min(self.rows, _BLOCK_NUMBERS // (self.T * self.states * self.channels)))
        per_step = self.group * self.channels
        self.S = min(self.length, max(1, _SEGMENT_NUMBERS // (per_step * self.T)) * self.T)

    def _number(self, t: Tensor) -> Tensor:
        t = t.to(self.dtype)
        return torch.view_as_complex(t.contiguous()) if self.complex else t

    def empty(self, *shape: int, real: bool = False) -> Tensor:
        return torch.empty(shape, dtype=self.dtype if real else self.number, device=self.u.device)

    def zeros(self, *shape: int, real: bool = False) -> Tensor:
        return self.empty(*shape, real=real).zero_()

    def groups(self) -> list[slice]:
        return [slice(r, min(r + self.group, self.rows)) for r in range(0, self.rows, self.group)]

    def segments(self) -> list[slice]:
        return [slice(s, min(s + self.S, self.length)) for s in range(0, self.length, self.S)]

    def time_major(self, t: Tensor, rows: slice, steps: slice) -> Tensor:
        """(S, b, ...) in the compute dtype, a view where it can be."""
        t = t[rows, steps].transpose(0, 1).to(self.dtype if not t.is_complex() else t.dtype)
        return t if t.stride(-1) == 1 else t.contiguous()

    def reset_steps(self, rows: slice) -> list[int]:
        return [] if self.reset is None else self.reset[rows].any(0).nonzero().flatten().tolist()

    def public_state(self, h: Tensor) -> Tensor:
        h = h.transpose(1, 2)
        return torch.view_as_real(h) if self.complex else h

    def raw_step(self, rows: slice, steps: slice) -> Tensor:
        """Step size before softplus: (S, b, D), or (1, 1, D) if it does not depend on time."""
        dt = self.dt.to(self.dtype)[None, None] if self.lti_dt else self.time_major(self.dt, rows, steps)
        return dt if self.dt_bias is None else dt + self.dt_bias

    def decay(self, dt: Tensor, out: Tensor) -> None:
        """exp(dt A), or exp(dt A) - 1 in precise mode; dt (T, b, D), out (T, b, N, D)."""
        precise = self.options.precise
        dt = dt.unsqueeze(2)
        if not self.complex:
            torch.mul(dt, self.A, out=out)
            if precise:
                out.expm1_()
            else:
                out.exp_()
            return
        # torch's complex exponential runs one number at a time; real ones are vectorised.
        parts = torch.view_as_real(out)
        real, angle = dt * self.A.real, dt * self.A.imag
        if precise:
            scale = torch.exp(real)
            sine = torch.sin(angle / 2)
            torch.addcmul(torch.expm1(real), scale, sine * sine, value=-2, out=parts[..., 0])
        else:
            scale = real.exp_()
            torch.mul(scale, torch.cos(angle), out=parts[..., 0])
        torch.mul(scale, torch.sin(angle), out=parts[..., 1])


class _Buffers:
    """Storage for one block: decay a, and states h with the incoming one in front."""

    def __init__(self, p: _Problem, rows: int) -> None:
        shape = (p.T, rows, p.states, p.channels)
        self.h = p.empty(p.T + 1, *shape[1:])
        self.h_steps = self.h.unbind(0)
        self.lti_ratio: tuple[Tensor, Tensor] | None = None
        if p.lti_dt:
            raw = p.raw_step(slice(0, 1), slice(0, 1))
            dt = F.softplus(raw, threshold=20.0) if p.options.dt_softplus else raw
            self.a = p.empty(1, 1, *shape[2:])
            p.decay(dt, self.a)
            self.a_steps: Sequence[Tensor] = [self.a[0].expand(rows, -1, -1)] * p.T
            if p.options.exact_zoh:
                self.lti_ratio = _expm1_ratio(dt.unsqueeze(2) * p.A)
        else:
            self.a = p.empty(*shape)
            self.a_steps = self.a.unbind(0)


class _Segment:
    """What the blocks of one segment read, time first."""

    def __init__(self, p: _Problem, rows: slice, steps: slice) -> None:
        self.p, self.rows, self.steps = p, rows, steps
        self.size = steps.stop - steps.start
        self.u = p.time_major(p.u, rows, steps)  # (S, b, D)
        self.raw = p.raw_step(rows, steps)
        self.dt = F.softplus(self.raw, threshold=20.0) if p.options.dt_softplus else self.raw
        self.x = self.u if p.options.exact_zoh else self.dt * self.u
        self.B = None if p.lti_B else p.time_major(p.B, rows, steps).contiguous()  # (S, b, N)
        self.C = None if p.lti_C else p.time_major(p.C, rows, steps).contiguous()
        self.z = None if p.z is None else p.time_major(p.z, rows, steps)

    def blocks(self) -> list[slice]:
        return [slice(t, min(t + self.p.T, self.size)) for t in range(0, self.size, self.p.T)]

    def ratio(self, buffers: _Buffers, block: slice) -> tuple[Tensor, Tensor]:
        """f(dt A) and f'(dt A) of the exact zero-order hold."""
        return buffers.lti_ratio or _expm1_ratio(self.dt[block].unsqueeze(2) * self.p.A)

    def run(self, buffers: _Buffers, block: slice, resets: list[int]) -> None:
        """Fills a and h of a block; h[0] already holds the state that comes in."""
        p, size = self.p, block.stop - block.start
        if not p.lti_dt:
            p.decay(self.dt[block], buffers.a[:size])
        h = buffers.h[1 : size + 1]
        B = p.B if self.B is None else self.B[block].unsqueeze(3)
        torch.mul(self.x[block].unsqueeze(2), B, out=h)
        if p.options.exact_zoh:
            h.mul_(self.ratio(buffers, block)[0]).mul_(
                self.dt[block if not p.lti_dt else slice(0, 1)].unsqueeze(2)
            )
        previous = buffers.h_steps[0]
        a_steps, h_steps, precise = buffers.a_steps, buffers.h_steps, p.options.precise
        masks = self.masks(block, resets)
        for t in range(size):
            current = h_steps[t + 1]
            if masks and t in masks:
                previous = previous.masked_fill(masks[t], 0)
            current.addcmul_(a_steps[t], previous)
            if precise:
                current.add_(previous)
            previous = current

    def masks(self, block: slice, resets: list[int]) -> dict[int, Tensor]:
        """Step inside the block -> which rows restart there, (b, 1, 1)."""
        start, stop = self.steps.start + block.start, self.steps.start + block.stop
        hits = resets[bisect_left(resets, start) : bisect_left(resets, stop)]
        if not hits:
            return {}
        reset = self.p.reset
        assert reset is not None
        return {t - start: reset[self.rows, t, None, None] for t in hits}

    def readout(self, buffers: _Buffers, block: slice, out: Tensor) -> None:
        """y_t = sum_n C_t h_t into out (T, b, D)."""
        p, size = self.p, block.stop - block.start
        h = buffers.h[1 : size + 1]
        if self.C is None:
            y = (h * p.C).sum(2)
        else:
            y = torch.bmm(self.C[block].flatten(0, 1).unsqueeze(1), h.flatten(0, 1)).view(out.shape)
        out.copy_(y.real if p.complex else y)


def _forward(p: _Problem, save: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Returns (out, final state in public shape, states at block starts (blocks, B, N, D) or None)."""
    out = torch.empty((p.rows, p.length, p.channels), dtype=p.u.dtype, device=p.u.device)
    final = p.empty(p.rows, p.states, p.channels)
    starts = p.empty(-(-p.length // p.T), p.rows, p.states, p.channels) if save else None
    for rows in p.groups():
        buffers = _Buffers(p, rows.stop - rows.start)
        if p.h0 is None:
            buffers.h[0].zero_()
        else:
            buffers.h[0].copy_(p.h0[rows])
        resets = p.reset_steps(rows)
        for steps in p.segments():
            segment = _Segment(p, rows, steps)
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


def _backward(
    p: _Problem, starts: Tensor, g_out: Tensor | None, g_state: Tensor | None
) -> tuple[Tensor | None, ...]:
    """Gradients in the order of `_Problem.originals`."""
    u, dt, A, B, C, D, z, dt_bias, h0 = p.originals
    N, channels = p.states, p.channels
    gu = torch.empty_like(u, memory_format=torch.contiguous_format)
    gz = None if z is None else torch.empty_like(z, memory_format=torch.contiguous_format)
    gdt = (
        p.zeros(channels, real=True)
        if p.lti_dt
        else torch.empty_like(dt, memory_format=torch.contiguous_format)
    )
    gA = p.zeros(N, channels)
    gB = p.zeros(N, channels) if p.lti_B else p.empty(p.rows, p.length, N)
    gC = p.zeros(N, channels) if p.lti_C else p.empty(p.rows, p.length, N)
    gD = p.zeros(channels, real=True)
    gbias = p.zeros(channels, real=True)
    gh0 = p.empty(p.rows, N, channels) if h0 is not None else None
    carry_in = None
    if g_state is not None:
        carry_in = (
            torch.view_as_complex(g_state.to(p.dtype).contiguous()).conj()
            if p.complex
            else g_state.to(p.dtype)
        )
        carry_in = carry_in.transpose(1, 2)

    for rows in p.groups():
        b = rows.stop - rows.start
        buffers = _Buffers(p, b)
        work = _Work(p, b)
        work.carry.zero_() if carry_in is None else work.carry.copy_(carry_in[rows])
        resets = p.reset_steps(rows)
        for steps in reversed(p.segments()):
            segment = _Segment(p, rows, steps)
            shape = (segment.size, b, channels)
            gy = p.zeros(*shape, real=True) if g_out is None else p.time_major(g_out, rows, steps)
            gated = gy
            y = None
            if segment.z is not None:
                gated = gy * F.silu(segment.z)
                y = p.empty(*shape, real=True)
            work.begin(segment, gated)
            for block in reversed(segment.blocks()):
                buffers.h[0].copy_(starts[(steps.start + block.start) // p.T, rows])
                segment.run(buffers, block, resets)
                if y is not None:
                    segment.readout(buffers, block, y[block])
                work.sweep(buffers, block, resets)

            if y is not None:
                if p.D is not None:
                    y.addcmul_(segment.u, p.D)
                assert gz is not None
                gz[rows, steps].copy_(torch.ops.aten.silu_backward(y.mul_(gy), segment.z).transpose(0, 1))
            gx, g_dt = work.gx, work.g_dt
            if p.options.exact_zoh:
                g_u = gx
            else:
                g_dt.addcmul_(gx, segment.u)
                g_u = gx.mul_(segment.dt)
            if p.D is not None:
                g_u = g_u.addcmul_(gated, p.D)
                gD += (gated * segment.u).sum((0, 1))
            gu[rows, steps].copy_(g_u.transpose(0, 1))
            if p.lti_dt:
                g_dt = g_dt.sum((0, 1), keepdim=True)
            if p.options.dt_softplus:
                g_dt = torch.ops.aten.softplus_backward(g_dt, segment.raw, 1.0, 20.0)
            if p.dt_bias is not None:
                gbias += g_dt.sum((0, 1))
            if p.lti_dt:
                gdt += g_dt[0, 0]
            else:
                gdt[rows, steps].copy_(g_dt.transpose(0, 1))
            if not p.lti_B:
                gB[rows, steps].copy_(work.gB.transpose(0, 1))
            if not p.lti_C:
                gC[rows, steps].copy_(work.gC.transpose(0, 1))
        gA += work.gA.sum((0, 1))
        if p.lti_B:
            gB += work.gB_sum.sum((0, 1))
        if p.lti_C:
            gC += work.gC_sum.sum((0, 1))
        if gh0 is not None:
            gh0[rows].copy_(work.carry)

    def public(g: Tensor, like: Tensor, transpose: bool) -> Tensor:
        if transpose:
            g = g.transpose(-1, -2)
        if p.complex:
            g = torch.view_as_real(g.conj().resolve_conj())
        return g.to(like.dtype)

    if p.complex:
        gC.mul_(2)
    return (
        gu,
        gdt.to(dt.dtype),
        public(gA, A, True),
        public(gB, B, p.lti_B),
        public(gC, C, p.lti_C),
        None if D is None else gD.to(D.dtype),
        gz,
        None if dt_bias is None else gbias.to(dt_bias.dtype),
        None if gh0 is None or h0 is None else public(gh0, h0, True),
    )


class _Work:
    """Storage and sums of the reverse sweep for one group of rows; complex gradients are kept conjugated."""

    def __init__(self, p: _Problem, rows: int) -> None:
        self.p = p
        shape = (p.T, rows, p.states, p.channels)
        self.g, self.w = p.empty(*shape), p.empty(*shape)
        self.g_steps = self.g.unbind(0)
        self.carry = p.empty(*shape[1:])  # gradient that enters the last state of the block to come
        self.gA = p.zeros(*shape)
        if p.lti_B:
            self.gB_sum = p.zeros(*shape)
        if p.lti_C:
            self.gC_sum = p.zeros(*shape)

    def begin(self, segment: _Segment, gy: Tensor) -> None:
        """gy (S, b, D): gradient of the readout."""
        p = self.p
        self.segment, self.gy = segment, gy
        shape = (segment.size, gy.shape[1])
        self.gx = p.empty(*shape, p.channels, real=True)
        self.g_dt = p.empty(*shape, p.channels, real=True)
        if not p.lti_B:
            self.gB = p.empty(*shape, p.states)
        if not p.lti_C:
            self.gC = p.empty(*shape, p.states)

    def sweep(self, buffers: _Buffers, block: slice, resets: list[int]) -> None:
        p, segment, size = self.p, self.segment, block.stop - block.start
        exact, precise = p.options.exact_zoh, p.options.precise
        gy = self.gy[block].unsqueeze(2)
        a = buffers.a if p.lti_dt else buffers.a[:size]
        h, h_previous = buffers.h[1 : size + 1], buffers.h[:size]
        g, w = self.g[:size], self.w[:size]
        dt = segment.dt[slice(0, 1) if p.lti_dt else block].unsqueeze(2)
        x = segment.x[block].unsqueeze(2)

        if segment.C is None:
            self.gC_sum[:size].addcmul_(h, gy.to(p.number))
        else:
            self.gC[block] = torch.mul(h, gy, out=w).sum(3)

        # g_t = C_t gy_t + a_(t+1) g_(t+1)
        torch.mul(p.C if segment.C is None else segment.C[block].unsqueeze(3), gy, out=g)
        masks = segment.masks(block, resets)
        g_steps, a_steps = self.g_steps, buffers.a_steps
        following = g_steps[size - 1].add_(self.carry)
        for t in range(size - 1, -1, -1):
            if masks and t in masks:
                following = following.masked_fill(masks[t], 0)
            if t == 0:
                torch.mul(a_steps[0], following, out=self.carry)
                target = self.carry
            else:
                target = g_steps[t - 1].addcmul_(a_steps[t], following)
            if precise:
                target.add_(following)
            following = target

        # w_t = a_t h_(t-1) g_t
        torch.mul(a, g, out=w)
        if precise:
            w.add_(g)
        w.mul_(h_previous)
        for t, mask in masks.items():
            w[t].masked_fill_(mask, 0)
        self.gA[:size].addcmul_(w, dt)
        w.mul_(p.A)

        B = p.B if segment.B is None else segment.B[block].unsqueeze(3)
        if exact:
            ratio, slope = segment.ratio(buffers, block)
            g_phi = x * B * g
            self.gA[:size].addcmul_(g_phi, dt * dt * slope)
            w.add_(g_phi.mul_(a + 1 if precise else a))
            g.mul_(ratio).mul_(dt)
        self.g_dt[block] = _real(w.sum(2))

        if segment.B is None:
            self.gB_sum[:size].addcmul_(g, x.to(p.number))
            self.gx[block] = _real(torch.mul(g, B, out=w).sum(2))
        else:
            self.gB[block] = torch.mul(g, x, out=w).sum(3)
            self.gx[block] = _real(
                torch.bmm(segment.B[block].flatten(0, 1).unsqueeze(1), g.flatten(0, 1)).view(
                    size, -1, p.channels
                )
            )


def _real(t: Tensor) -> Tensor:
    return t.real if t.is_complex() else t
