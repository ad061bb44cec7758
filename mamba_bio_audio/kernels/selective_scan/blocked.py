"""Selective scan in blocks of time steps, in plain PyTorch: the CPU path, and any other device.

    h_t = a_t h_(t-1) + b_t      a_t = exp(dt_t A)      b_t = dt_t B_t u_t      y_t = sum_n C_t h_t

with the options of `ref.py`. Only blocks of T steps of a_t and h_t exist at a time, in the layout (T, B, N,
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

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_bio_audio.kernels.differentiable_once import refuse_second_order


class _Sizes(NamedTuple):
    """Blocks keep a processor's cache; on other devices they are as large as memory makes sensible, for few launches."""

    fewest: int  # steps of a block; powers of two
    most: int
    numbers: int  # in one (T, b, N, D) buffer, where the fewest steps and one row allow it
    segment: int  # numbers in one (S, b, D) buffer at most
    joins: int  # levels of the tree


_CPU_SIZES = _Sizes(fewest=16, most=64, numbers=1 << 18, segment=1 << 18, joins=3)
_GPU_SIZES = _Sizes(fewest=16, most=1024, numbers=1 << 26, segment=1 << 26, joins=9)
_LOG2_E = 1.4426950408889634
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
    """Returns (out (B, L, D) in u.dtype, final state (B, D, N[, 2]) in fp32 or fp64), as the oracle does.

    Call it with autocast off, as `ops` does; the backward sees to that itself.
    """
    options = Options(dt_softplus, exact_zoh, precise)
    tensors = (u, dt, A, B, C, D, z, dt_bias, h0)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        return _ScanFn.apply(options, reset, *tensors)
    with torch.no_grad():
        return _run(options, reset, tensors)


def _run(options: Options, reset: Tensor | None, tensors: Sequence[Any]) -> tuple[Tensor, Tensor]:
    if tensors[0].shape[1] == 1 and not options.exact_zoh and not options.precise and tensors[2].ndim == 2:
        return _single_step(options, reset, *tensors)
    out, state, _ = _forward(_Problem(options, reset, *tensors), save=False)
    return out, state


class _ScanFn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, options: Options, reset: Tensor | None, *tensors: Any) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.options = options
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


def _softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)), and x above 20.

    torch's own takes 2.7 ms for 2^18 numbers on one core because of log1p, as long as a pass over all states.
    With e = exp(-|x|) <= 1, log1p(e) = 2 atanh(e / (2 + e)) cancels nothing; beside x above 20 it is nothing in
    fp32.
    """
    if x.dtype != torch.float32 or x.device.type != "cpu":
        return F.softplus(x, threshold=20.0)
    e = torch.abs(x).mul_(-_LOG2_E).exp2_()
    return torch.relu(x).add_(torch.div(e, e + 2, out=e).atanh_(), alpha=2)


def _expm1_ratio(x: Tensor) -> tuple[Tensor, Tensor]:
    """f(x) = (exp(x) - 1) / x and f'(x) = (x exp(x) - exp(x) + 1) / x^2, as series where these cancel."""
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
        self.A_log2 = self.A * _LOG2_E
        self.lti_dt = dt.ndim == 1
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

        sizes = self.sizes = _CPU_SIZES if u.device.type == "cpu" else _GPU_SIZES
        fitting = sizes.numbers // (self.states * self.channels)
        self.T = min(self.length, sizes.most, max(sizes.fewest, 1 << max(fitting, 1).bit_length() - 1))
        self.group = max(1, min(self.rows, sizes.numbers // (self.T * self.states * self.channels)))
        per_step = self.group * self.channels
        self.S = min(self.length, max(1, sizes.segment // (per_step * self.T)) * self.T)

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
            # exp2 is three times as fast as exp on the CPU.
            if precise:
                torch.mul(dt, self.A, out=out).expm1_()
            else:
                torch.mul(dt, self.A_log2, out=out).exp2_()
            return
        # torch's complex exponential runs one number at a time; real ones are vectorised.
        parts = torch.view_as_real(out)
        scale, angle = torch.exp2(dt * self.A_log2.real), dt * self.A.imag
        if precise:
            sine = torch.sin(angle / 2)
            growth = torch.expm1(dt * self.A.real)
            torch.addcmul(growth, scale, sine * sine, value=-2, out=parts[..., 0])
        else:
            torch.mul(scale, torch.cos(angle), out=parts[..., 0])
        torch.mul(scale, torch.sin(angle), out=parts[..., 1])


class _Tree:
    """The linear recurrence over the slots of one block, H[s+1] += a[s] H[s] or G[s] += a[s] G[s+1]."""

    def __init__(self, decay: Tensor, steps: int, joins: int) -> None:
        """decay (steps, b, N, D), or (1, 1, N, D) where it is the same at every step; at most `joins` levels."""
        self.steps, self.fixed = steps, decay.shape[0] == 1 and steps > 1
        self.levels = [decay]
        while len(self.levels) <= joins and steps % 2 == 0 and steps > 2:
            steps //= 2
            self.levels.append(torch.empty_like(decay if self.fixed else decay[:steps]))
        if self.fixed:
            self.join()
        last = self.levels[-1]
        self.last = [last[0]] * steps if self.fixed else list(last.unbind(0))
        self.stride = 1 << len(self.levels) - 1

    def _halves(self, level: int) -> tuple[Tensor, Tensor]:
        decay = self.levels[level]
        return (decay, decay) if self.fixed else (decay[0::2], decay[1::2])

    def join(self) -> None:
        """Decays over 2, 4, ... steps."""
        for level in range(1, len(self.levels)):
            left, right = self._halves(level - 1)
            torch.mul(left, right, out=self.levels[level])

    def bind(self, slots: Tensor, reverse: bool) -> "_Sweep":
        """slots (steps + 1, b, N, D), whose contents each call of the sweep replaces."""
        up, down = [], []
        for level in range(len(self.levels) - 1):
            stride, (left, right) = 1 << level, self._halves(level)
            ends, middles = slots[:: 2 * stride], slots[stride :: 2 * stride]
            if reverse:
                up.append((ends[:-1], left, middles))
                down.append((middles, right, ends[1:]))
            else:
                up.append((ends[1:], right, middles))
                down.append((middles, left, ends[:-1]))
        joined = slots[:: self.stride].unbind(0)
        steps = range(len(joined) - 1)
        if reverse:
            along = [(joined[s], self.last[s], joined[s + 1]) for s in reversed(steps)]
        else:
            along = [(joined[s + 1], self.last[s], joined[s]) for s in steps]
        return _Sweep(up + along + down[::-1])


class _Sweep(NamedTuple):
    multiply_adds: list[tuple[Tensor, Tensor, Tensor]]

    def __call__(self) -> None:
        for target, decay, source in self.multiply_adds:
            target.addcmul_(decay, source)


class _Buffers:
    """Storage for one block: decay a, and states h with the incoming one in front."""

    def __init__(self, p: _Problem, rows: int) -> None:
        shape = (p.T, rows, p.states, p.channels)
        self.h = p.empty(p.T + 1, *shape[1:])
        self.h_steps = self.h.unbind(0)
        self.lti_ratio: tuple[Tensor, Tensor] | None = None
        if p.lti_dt:
            raw = p.raw_step(slice(0, 1), slice(0, 1))
            dt = _softplus(raw) if p.options.dt_softplus else raw
            self.a = p.empty(1, 1, *shape[2:])
            p.decay(dt, self.a)
            self.a_steps: Sequence[Tensor] = [self.a[0]] * p.T
            if p.options.exact_zoh:
                self.lti_ratio = _expm1_ratio(dt.unsqueeze(2) * p.A)
        else:
            self.a = p.empty(*shape)
            self.a_steps = self.a.unbind(0)
        self.tree = _Tree(self.a, p.T, p.sizes.joins)
        self.sweep = self.tree.bind(self.h, reverse=False)


class _Segment:
    """What the blocks of one segment read, time first."""

    def __init__(self, p: _Problem, rows: slice, steps: slice) -> None:
        self.p, self.rows, self.steps = p, rows, steps
        self.size = steps.stop - steps.start
        self.u = p.time_major(p.u, rows, steps)  # (S, b, D)
        self.raw = p.raw_step(rows, steps)
        self.dt = _softplus(self.raw) if p.options.dt_softplus else self.raw
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
            h.mul_(self.ratio(buffers, block)[0]).mul_(self.dt[block if not p.lti_dt else slice(0, 1)].unsqueeze(2))
        precise, masks = p.options.precise, self.masks(block, resets)
        if size == p.T and not precise and not masks:
            if not p.lti_dt:
                buffers.tree.join()
            buffers.sweep()
            return
        # A block with a restart goes step by step, so that nothing from before it gets through, not even a
        # NaN.
        a_steps, h_steps = buffers.a_steps, buffers.h_steps
        previous = h_steps[0]
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
        p = self.p
        h = buffers.h[1 : block.stop - block.start + 1]
        if self.C is None:
            _keep_real((h * p.C).sum(2), out)
        else:
            _over_states(self.C[block], h, out)


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


def _backward(p: _Problem, starts: Tensor, g_out: Tensor | None, g_state: Tensor | None) -> tuple[Tensor | None, ...]:
    """Gradients in the order of `_Problem.originals`."""
    u, dt, A, B, C, D, z, dt_bias, h0 = p.originals
    N, channels = p.states, p.channels
    gu = torch.empty_like(u, memory_format=torch.contiguous_format)
    gz = None if z is None else torch.empty_like(z, memory_format=torch.contiguous_format)
    gdt = p.zeros(channels, real=True) if p.lti_dt else torch.empty_like(dt, memory_format=torch.contiguous_format)
    gA = p.zeros(N, channels)
    gB = p.zeros(N, channels) if p.lti_B else p.empty(p.rows, p.length, N)
    gC = p.zeros(N, channels) if p.lti_C else p.empty(p.rows, p.length, N)
    gD = p.zeros(channels, real=True)
    gbias = p.zeros(channels, real=True)
    gh0 = p.empty(p.rows, N, channels) if h0 is not None else None
    carry_in = None
    if g_state is not None:
        carry_in = torch.view_as_complex(g_state.to(p.dtype).contiguous()).conj() if p.complex else g_state.to(p.dtype)
        carry_in = carry_in.transpose(1, 2)

    for rows in p.groups():
        b = rows.stop - rows.start
        buffers = _Buffers(p, b)
        work = _Work(p, buffers, b)
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
                work.sweep(block, resets)

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

    def __init__(self, p: _Problem, buffers: _Buffers, rows: int) -> None:
        self.p, self.buffers = p, buffers
        shape = (p.T, rows, p.states, p.channels)
        self.g, self.w = p.empty(p.T + 1, *shape[1:]), p.empty(*shape)
        self.g_steps = self.g.unbind(0)
        # Slot 0 collects the gradient that leaves the block towards earlier steps.
        self.carry = self.g_steps[0]
        self.reverse = buffers.tree.bind(self.g, reverse=True)
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

    def sweep(self, block: slice, resets: list[int]) -> None:
        """One block in reverse, after `_Segment.run` has filled its decays and states."""
        p, segment, buffers, size = self.p, self.segment, self.buffers, block.stop - block.start
        exact, precise = p.options.exact_zoh, p.options.precise
        gy = self.gy[block]
        a = buffers.a if p.lti_dt else buffers.a[:size]
        h, h_previous = buffers.h[1 : size + 1], buffers.h[:size]
        g, w = self.g[1 : size + 1], self.w[:size]
        dt = segment.dt[slice(0, 1) if p.lti_dt else block].unsqueeze(2)
        x = segment.x[block]

        if segment.C is None:
            self.gC_sum[:size].addcmul_(h, gy.unsqueeze(2).to(p.number))
            C = p.C
        else:
            _over_channels(gy, h, self.gC[block])
            C = segment.C[block].unsqueeze(3)

        # g_t = C_t gy_t + a_(t+1) g_(t+1)
        torch.mul(C, gy.unsqueeze(2), out=g)
        self.g_steps[size].add_(self.carry)
        self.carry.zero_()
        masks = segment.masks(block, resets)
        if size == p.T and not precise and not masks:
            self.reverse()
        else:
            following = self.g_steps[size]
            for t in range(size - 1, -1, -1):
                if masks and t in masks:
                    following = following.masked_fill(masks[t], 0)
                target = self.g_steps[t].addcmul_(buffers.a_steps[t], following)
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
            g_phi = x.unsqueeze(2) * B * g
            self.gA[:size].addcmul_(g_phi, dt * dt * slope)
            w.add_(g_phi.mul_(a + 1 if precise else a))
            g.mul_(ratio).mul_(dt)
        if p.complex:
            _keep_real(w.sum(2), self.g_dt[block])
        else:
            torch.sum(w, 2, out=self.g_dt[block])

        if segment.B is None:
            self.gB_sum[:size].addcmul_(g, x.unsqueeze(2).to(p.number))
            _keep_real(torch.mul(g, B, out=w).sum(2), self.gx[block])
        else:
            _over_channels(x, g, self.gB[block])
            _over_states(segment.B[block], g, self.gx[block])


def _over_states(weights: Tensor, values: Tensor, out: Tensor) -> None:
    """Re sum_n weights (T, b, N) values (T, b, N, D) into out (T, b, D)."""
    weights, values = weights.flatten(0, 1).unsqueeze(1), values.flatten(0, 1)
    if values.is_complex():
        _keep_real(torch.bmm(weights, values).view(out.shape), out)
    else:
        torch.bmm(weights, values, out=out.view(-1, 1, out.shape[-1]))


def _over_channels(weights: Tensor, values: Tensor, out: Tensor) -> None:
    """sum_d weights (T, b, D) values (T, b, N, D) into out (T, b, N); real weights."""
    # In this order the product runs along the contiguous channels of both.
    row = weights.reshape(-1, 1, weights.shape[-1]).to(values.dtype)
    torch.bmm(row, values.flatten(0, 1).transpose(1, 2), out=out.view(-1, 1, out.shape[-1]))


def _keep_real(t: Tensor, out: Tensor) -> None:
    out.copy_(t.real if t.is_complex() else t)
