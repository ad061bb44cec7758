"""Time-invariant scan as matrix products over blocks of time, in plain PyTorch: the CPU path where nothing is selective.

With fixed a = exp(dt A) and b = dt B, a block of T steps that starts from the state h is, per channel, two products:

    y_t = sum_(s <= t) K_(t-s) u_s + Re sum_n C a^(t+1) h        K_j = Re sum_n C a^j b, plus D at j = 0
    h'  = a^T h + sum_s a^(T-1-s) b u_s

(complex A: C counts twice, for the conjugate). So the work is T + 4 N multiply-adds a step and channel (real A: T + 2 N),
all of it in matrix products, where the selective path spends tens of passes over N numbers; only the states at block starts
follow one another.

Letters: B batch, L length, T steps of a block, R = B L / T blocks, D channels, N states, S real numbers of a state.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_bio_audio.kernels.differentiable_once import refuse_second_order
from mamba_bio_audio.kernels.scan.inputs import ScanInputs, complex_numbers
from mamba_bio_audio.kernels.scan.reference import expm1_ratio

# Steps of a block. Shorter spans do not repay the powers of a.
_SHORTEST = 16
_LONGEST = 64


def suits(s: ScanInputs) -> bool:
    """Whether the call is time-invariant and long enough, and needs none of the options that only the other path has."""
    fixed = s.dt.ndim == 1 and s.B.ndim == s.C.ndim == s.A.ndim
    return fixed and s.reset is None and not s.precise and s.u.shape[1] >= _SHORTEST


def scan_lti(s: ScanInputs) -> tuple[Tensor, Tensor]:
    """(out (B, L, D) in u.dtype, final state (B, D, N[, 2])), as the reference returns them."""
    length, dtype = s.u.shape[1], s.state_dtype
    u, state = s.u.to(dtype), s.h0
    steps = _block_size(s.u.shape[0] * length)
    whole = length - length % steps
    parts = []
    # What is left over after whole blocks is a block of its own.
    for start, stop, size in ((0, whole, steps), (whole, length, length - whole)):
        if start < stop:
            span = u[:, start:stop]
            given = (span, state, s.dt, s.dt_bias, s.A, s.B, s.C, s.D)
            y, state = _Blocks.apply(s._replace(u=span, h0=state), size, *given)
            parts.append(y)
    out = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
    if s.z is not None:
        out = out * F.silu(s.z.to(dtype))
    assert state is not None
    return out.to(s.u.dtype), state


def _block_size(positions: int) -> int:
    """Steps of a block: longer ones where more positions share the cost of the powers of a, which grows with them."""
    return max(_SHORTEST, min(_LONGEST, 1 << math.isqrt(positions).bit_length() - 1))


class _Maps(NamedTuple):
    """What the parameters say about a block of T steps."""

    into: Tensor  # (D, T, S): inputs to the state that they leave
    out: Tensor  # (D, S + T, T): the state before the block, and inputs, to outputs
    over: Tensor  # (D, N): decay over the block


class _Powers(torch.autograd.Function):
    """exp(rate t) for t = 0 .. T, (D, T + 1, N), of rates (D, N)."""

    @staticmethod
    def forward(ctx: Any, rate: Tensor, steps: int) -> Tensor:
        times = torch.arange(steps + 1, device=rate.device, dtype=rate.real.dtype)[:, None]
        if rate.is_complex():
            # torch's complex exponential runs one number at a time; real ones are vectorised.
            size, angle = torch.exp(rate.real[:, None] * times), rate.imag[:, None] * times
            powers = torch.empty(size.shape, dtype=rate.dtype, device=rate.device)
            parts = torch.view_as_real(powers)
            torch.mul(size, torch.cos(angle), out=parts[..., 0])
            torch.mul(size, torch.sin(angle), out=parts[..., 1])
        else:
            powers = torch.exp(rate[:, None] * times)
        ctx.save_for_backward(powers, times)
        return powers

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        powers, times = ctx.saved_tensors
        return (g * powers.conj() * times).sum(1), None


def _maps(s: ScanInputs, steps: int) -> _Maps:
    dtype = s.state_dtype
    is_complex = s.A.ndim == 3

    def number(t: Tensor) -> Tensor:
        return complex_numbers(t.to(dtype)) if is_complex else t.to(dtype)

    def real(t: Tensor) -> Tensor:
        return torch.view_as_real(t).flatten(-2) if is_complex else t

    A, B, C = number(s.A), number(s.B), number(s.C)
    dt = s.dt.to(dtype)
    if s.dt_bias is not None:
        dt = dt + s.dt_bias.to(dtype)
    if s.dt_softplus:
        dt = F.softplus(dt, threshold=20.0)
    rate = dt[:, None] * A
    b = dt[:, None] * B * expm1_ratio(rate) if s.exact_zoh else dt[:, None] * B
    if is_complex:
        C = 2 * C
    powers: Tensor = _Powers.apply(rate, steps)
    into = real((powers[:, :steps] * b[:, None]).flip(1))  # (D, T, S)
    readout = powers * C[:, None]  # (D, T + 1, N)
    # Re(C a h) = Re(C a) Re h - Im(C a) Im h.
    readout = real(readout.conj().resolve_conj() if is_complex else readout)  # (D, T + 1, S)
    # Not a product of matrices, which torch runs channel by channel here.
    kernel = (readout[:, :steps] * real(b)[:, None]).sum(2)  # (D, T)
    if s.D is not None:
        kernel = torch.cat([kernel[:, :1] + s.D.to(dtype)[:, None], kernel[:, 1:]], 1)
    # Row s of the Toeplitz matrix is the kernel moved right by s: rows of 2 T numbers, read as rows of 2 T - 1.
    rows = F.pad(kernel, (0, steps))[:, None].expand(-1, steps, -1).flatten(1)[:, : steps * (2 * steps - 1)]
    toeplitz = rows.unflatten(1, (steps, 2 * steps - 1))[:, :, :steps]
    return _Maps(into, torch.cat([readout[:, 1:].transpose(1, 2), toeplitz], 1), powers[:, steps])


class _Blocks(torch.autograd.Function):
    """Whole blocks of a span: (y (B, L, D), final state); the gate is left to the caller."""

    @staticmethod
    def forward(ctx: Any, s: ScanInputs, steps: int, *tensors: Tensor | None) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        batch, length, channels = s.u.shape
        with torch.no_grad():
            maps = _maps(s, steps)
            size = maps.into.shape[2]
            # Rows of an even number of numbers, for complex states.
            both = s.u.new_empty(channels, batch * length // steps, size + steps + steps % 2)[:, :, : size + steps]
            x = both[:, :, size:]
            x.copy_(_blocks_first(s.u, steps))
            h = _carry(maps.over, x @ maps.into, s.h0, both[:, :, :size], batch)
            y = _time_first(both @ maps.out, batch)
        ctx.batch, ctx.steps, ctx.options = batch, steps, s.with_tensors(*[None] * 9)
        ctx.save_for_backward(both, *tensors[1:])
        return y, h

    @staticmethod
    def backward(ctx: Any, g_out: Tensor | None, g_state: Tensor | None) -> Any:
        both, h0, *given = ctx.saved_tensors
        steps, size = ctx.steps, both.shape[2] - ctx.steps
        states, x = both[:, :, :size], both[:, :, size:]
        with torch.autocast(both.device.type, enabled=False):
            with torch.enable_grad():
                leaves = [None if t is None else t.detach().requires_grad_() for t in given]
                dt, dt_bias, A, B, C, D = leaves
                maps = _maps(ctx.options._replace(u=both, dt=dt, dt_bias=dt_bias, A=A, B=B, C=C, D=D, h0=h0), steps)
            with torch.no_grad():
                batch = ctx.batch
                g_y = both.new_zeros(x.shape) if g_out is None else _blocks_first(g_out, steps).contiguous()
                g_both = g_y @ maps.out.transpose(1, 2)
                g_map = both.transpose(1, 2) @ g_y
                g_local, g_over, g_h0 = _carry_back(maps.over, states, g_both[:, :, :size], g_state, batch)
                g_u = torch.baddbmm(g_both[:, :, size:], g_local, maps.into.transpose(1, 2))
                g_into = x.transpose(1, 2) @ g_local
            wanted = [t for t in leaves if t is not None]
            found = iter(torch.autograd.grad(list(maps), wanted, [g_into, g_map, g_over]))
        grads = [_time_first(g_u, batch), None if h0 is None else g_h0.to(h0.dtype)]
        grads += [None if t is None else next(found) for t in leaves]
        kept = tuple(g if need else None for g, need in zip(grads, ctx.needs_input_grad[2:], strict=True))
        return None, None, *refuse_second_order("selective_scan", kept)


def _blocks_first(t: Tensor, steps: int) -> Tensor:
    """(B, L, D) as (D, R, T), the blocks of a row one after another."""
    batch, length, channels = t.shape
    return t.permute(2, 0, 1).reshape(channels, batch * length // steps, steps)


def _time_first(t: Tensor, batch: int) -> Tensor:
    """The inverse of `_blocks_first`."""
    return t.reshape(t.shape[0], batch, -1).permute(1, 2, 0)


def _numbers(t: Tensor, batch: int, is_complex: bool) -> Tensor:
    """(D, R, S) as (D, B, blocks, N), a view."""
    t = t.unflatten(1, (batch, -1))
    return torch.view_as_complex(t.unflatten(3, (-1, 2))) if is_complex else t


def _carry(over: Tensor, local: Tensor, h0: Tensor | None, states: Tensor, batch: int) -> Tensor:
    """Fills the states before each block, and returns the last one in public shape (B, D, N[, 2])."""
    is_complex = over.is_complex()
    local, starts = _numbers(local, batch, is_complex), _numbers(states, batch, is_complex)
    if h0 is None:
        h = torch.zeros_like(local[:, :, 0])
    else:
        h = h0.to(states.dtype).transpose(0, 1)
        h = torch.view_as_complex(h.contiguous()) if is_complex else h
    decay = over[:, None]
    for start, own in zip(starts.unbind(2), local.unbind(2), strict=True):
        start.copy_(h)
        h = torch.addcmul(own, decay, h)
    h = h.transpose(0, 1)
    return torch.view_as_real(h).contiguous() if is_complex else h.contiguous()


def _carry_back(
    over: Tensor, states: Tensor, g_states: Tensor, g_final: Tensor | None, batch: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `_carry`'s local states (D, R, S), decay (D, N) and first state, from those of what it made."""
    is_complex = over.is_complex()
    starts, given = _numbers(states, batch, is_complex), _numbers(g_states.contiguous(), batch, is_complex)
    g_local = torch.empty_like(states)
    local = _numbers(g_local, batch, is_complex)
    if g_final is None:
        g = torch.zeros_like(starts[:, :, 0])
    else:
        g = g_final.to(states.dtype).transpose(0, 1)
        g = torch.view_as_complex(g.contiguous()) if is_complex else g
    decay = over.conj().resolve_conj()[:, None]
    for own, start in zip(reversed(local.unbind(2)), reversed(given.unbind(2)), strict=True):
        own.copy_(g)
        g = torch.addcmul(start, decay, g)
    g_over = (starts.conj() * local).sum((1, 2))
    g = g.transpose(0, 1)
    return g_local, g_over, torch.view_as_real(g).contiguous() if is_complex else g.contiguous()
