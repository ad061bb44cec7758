"""Blocks of time steps of a scan in plain PyTorch: what `cpu` and `cpu_backward` walk over; the method is in `cpu`."""

from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_bio_audio.kernels.scan.inputs import ScanInputs, complex_numbers


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


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)), and x above 20.

    torch's own takes 2.7 ms for 2^18 numbers on one core because of log1p, as long as a pass over all states.
    With e = exp(-|x|) <= 1, log1p(e) = 2 atanh(e / (2 + e)) cancels nothing; beside x above 20 it is nothing in
    fp32.
    """
    if x.dtype != torch.float32 or x.device.type != "cpu":
        return F.softplus(x, threshold=20.0)
    e = torch.abs(x).mul_(-_LOG2_E).exp2_()
    return torch.relu(x).add_(torch.div(e, e + 2, out=e).atanh_(), alpha=2)


def expm1_ratio(x: Tensor) -> tuple[Tensor, Tensor]:
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


class Problem:
    """The inputs of one call in the layout of the sweep, and the walk over rows, segments and blocks."""

    def __init__(self, s: ScanInputs) -> None:
        self.inputs = s
        self.u, self.dt, self.z, self.reset = s.u, s.dt, s.z, s.reset
        A, B, C, D, dt_bias, h0 = s.A, s.B, s.C, s.D, s.dt_bias, s.h0
        case = s.case
        self.dtype = s.state_dtype
        self.complex, self.exact, self.precise, self.softplus = case.complex, s.exact_zoh, s.precise, s.dt_softplus
        self.number = self.dtype.to_complex() if self.complex else self.dtype
        self.rows, self.length, self.channels = s.u.shape
        self.states = A.shape[1]

        self.A = self._number(A).t().contiguous()  # (N, D)
        self.A_log2 = self.A * _LOG2_E
        self.lti_dt, self.lti_B, self.lti_C = case.dt_lti, case.B_lti, case.C_lti
        self.B = self._number(B).t().contiguous() if self.lti_B else self._number(B)
        C = self._number(C)
        if self.complex:
            C = 2 * C
        self.C = C.t().contiguous() if self.lti_C else C
        self.D = None if D is None else D.to(self.dtype)
        self.dt_bias = None if dt_bias is None else dt_bias.to(self.dtype)
        self.h0 = None if h0 is None else self._number(h0).transpose(1, 2)  # (B, N, D)

        sizes = self.sizes = _CPU_SIZES if s.u.device.type == "cpu" else _GPU_SIZES
        fitting = sizes.numbers // (self.states * self.channels)
        self.T = min(self.length, sizes.most, max(sizes.fewest, 1 << max(fitting, 1).bit_length() - 1))
        self.group = max(1, min(self.rows, sizes.numbers // (self.T * self.states * self.channels)))
        per_step = self.group * self.channels
        self.S = min(self.length, max(1, sizes.segment // (per_step * self.T)) * self.T)

    def _number(self, t: Tensor) -> Tensor:
        t = t.to(self.dtype)
        return complex_numbers(t) if self.complex else t

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
        precise = self.precise
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


class Buffers:
    """Storage for one block: decay a, and states h with the incoming one in front."""

    def __init__(self, p: Problem, rows: int) -> None:
        shape = (p.T, rows, p.states, p.channels)
        self.h = p.empty(p.T + 1, *shape[1:])
        self.h_steps = self.h.unbind(0)
        self.lti_ratio: tuple[Tensor, Tensor] | None = None
        if p.lti_dt:
            raw = p.raw_step(slice(0, 1), slice(0, 1))
            dt = softplus(raw) if p.softplus else raw
            self.a = p.empty(1, 1, *shape[2:])
            p.decay(dt, self.a)
            self.a_steps: Sequence[Tensor] = [self.a[0]] * p.T
            if p.exact:
                self.lti_ratio = expm1_ratio(dt.unsqueeze(2) * p.A)
        else:
            self.a = p.empty(*shape)
            self.a_steps = self.a.unbind(0)
        self.tree = _Tree(self.a, p.T, p.sizes.joins)
        self.sweep = self.tree.bind(self.h, reverse=False)


class Segment:
    """What the blocks of one segment read, time first."""

    def __init__(self, p: Problem, rows: slice, steps: slice) -> None:
        self.p, self.rows, self.steps = p, rows, steps
        self.size = steps.stop - steps.start
        self.u = p.time_major(p.u, rows, steps)  # (S, b, D)
        self.raw = p.raw_step(rows, steps)
        self.dt = softplus(self.raw) if p.softplus else self.raw
        self.x = self.u if p.exact else self.dt * self.u
        self.B = None if p.lti_B else p.time_major(p.B, rows, steps).contiguous()  # (S, b, N)
        self.C = None if p.lti_C else p.time_major(p.C, rows, steps).contiguous()
        self.z = None if p.z is None else p.time_major(p.z, rows, steps)

    def blocks(self) -> list[slice]:
        return [slice(t, min(t + self.p.T, self.size)) for t in range(0, self.size, self.p.T)]

    def ratio(self, buffers: Buffers, block: slice) -> tuple[Tensor, Tensor]:
        """f(dt A) and f'(dt A) of the exact zero-order hold."""
        return buffers.lti_ratio or expm1_ratio(self.dt[block].unsqueeze(2) * self.p.A)

    def run(self, buffers: Buffers, block: slice, resets: list[int]) -> None:
        """Fills a and h of a block; h[0] already holds the state that comes in."""
        p, size = self.p, block.stop - block.start
        if not p.lti_dt:
            p.decay(self.dt[block], buffers.a[:size])
        h = buffers.h[1 : size + 1]
        B = p.B if self.B is None else self.B[block].unsqueeze(3)
        torch.mul(self.x[block].unsqueeze(2), B, out=h)
        if p.exact:
            h.mul_(self.ratio(buffers, block)[0]).mul_(self.dt[block if not p.lti_dt else slice(0, 1)].unsqueeze(2))
        precise, masks = p.precise, self.masks(block, resets)
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

    def readout(self, buffers: Buffers, block: slice, out: Tensor) -> None:
        """y_t = sum_n C_t h_t into out (T, b, D)."""
        p = self.p
        h = buffers.h[1 : block.stop - block.start + 1]
        if self.C is None:
            keep_real((h * p.C).sum(2), out)
        else:
            over_states(self.C[block], h, out)


def over_states(weights: Tensor, values: Tensor, out: Tensor) -> None:
    """Re sum_n weights (T, b, N) values (T, b, N, D) into out (T, b, D)."""
    weights, values = weights.flatten(0, 1).unsqueeze(1), values.flatten(0, 1)
    if values.is_complex():
        keep_real(torch.bmm(weights, values).view(out.shape), out)
    else:
        torch.bmm(weights, values, out=out.view(-1, 1, out.shape[-1]))


def over_channels(weights: Tensor, values: Tensor, out: Tensor) -> None:
    """sum_d weights (T, b, D) values (T, b, N, D) into out (T, b, N); real weights."""
    # In this order the product runs along the contiguous channels of both.
    row = weights.reshape(-1, 1, weights.shape[-1]).to(values.dtype)
    torch.bmm(row, values.flatten(0, 1).transpose(1, 2), out=out.view(-1, 1, out.shape[-1]))


def keep_real(t: Tensor, out: Tensor) -> None:
    out.copy_(t.real if t.is_complex() else t)
