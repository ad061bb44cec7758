"""State space dual in chunks of Q positions, in plain PyTorch: the CPU path, and any other device.

Within a chunk, with l the sum of log decays from its first position on (that position's included), i and s positions:

    K_is = exp(l_i - l_s) source_s for s < i, diagonal_i for s = i, else 0         M = K * (C B')
    y = M x + exp(l) (S C) + D x            S_next = exp(l_Q) S + sum_s exp(l_Q - l_s) source_s x_s B_s'

All exponents are <= 0. A reset cuts the chunk into sequences: K is 0 between two of them, the state that comes in is
read by the first, and the one that leaves is the last one's. The forward keeps its inputs and the state before every
chunk; the backward walks the chunks in reverse with the gradient G of the state behind the chunk:

    E = dy x'       dx = M' dy + source exp(l_Q - l) (G B) + D dy
    dC = (E K) B + exp(l) (dy S)          dB = (E K)' C + source exp(l_Q - l) (x G)
    G_before = exp(l_Q) G + sum_i exp(l_i) dy_i C_i'

and with V = E * (C B') * exp(l_i - l_s), s < i, W = V source_s, f_s = exp(l_Q - l_s):

    dsource_s = sum_i V_is + f_s x_s . (G B_s)      ddiagonal_i = E_ii (C B')_ii
    dl_i = sum_s W_is - sum_j W_ji + exp(l_i) C_i . (dy_i S) - source_i f_i x_i . (G B_i)
    dl_Q gets besides exp(l_Q) <G, S> + sum_s source_s f_s x_s . (G B_s)            da_i = sum of dl from i on

Mamba-2 (arXiv 2405.21060) section 6; letters as in `reference.py`, Z for one of the B times H sequences of heads.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from mamba_bio_audio.kernels.differentiable_once import refuse_second_order, will_differentiate
from mamba_bio_audio.kernels.ssd.inputs import SsdInputs

_CHUNK = 64


def ssd_torch(s: SsdInputs) -> tuple[Tensor, Tensor]:
    """(y (B, L, H, P) in x.dtype, final state (B, H, P, N) in fp32 or fp64), as the reference returns them.

    Call it with autocast off, as `ops` does; the backward sees to that itself.
    """
    if will_differentiate(*s.tensors):
        return _SsdFn.apply(*s)
    with torch.no_grad():
        return _step(s) if s.x.shape[1] == 1 else _forward(s, None)


def _step(s: SsdInputs) -> tuple[Tensor, Tensor]:
    """One position, no gradient: what generation runs for every symbol."""
    dtype = s.state_dtype
    heads = s.x.shape[2] // s.B.shape[2]
    x, a = s.x[:, 0].to(dtype), s.a[:, 0].to(dtype)
    B, C = (t[:, 0].to(dtype).repeat_interleave(heads, dim=1) for t in (s.B, s.C))
    scaled = x if s.source is None else x * s.source[:, 0, :, None]
    h = scaled.unsqueeze(3) * B.unsqueeze(2)
    if s.h0 is not None:
        decay = torch.exp(a)
        if s.reset is not None:
            decay = decay.masked_fill(s.reset, 0.0)
        h = torch.addcmul(h, decay[:, :, None, None], s.h0.to(dtype))
    y = (h @ C.unsqueeze(3)).squeeze(3)
    if s.diagonal is not None:
        more = (s.diagonal[:, 0] - (1 if s.source is None else s.source[:, 0])).to(dtype) * (B * C).sum(-1)
        y = torch.addcmul(y, more.unsqueeze(2), x)
    if s.D is not None:
        y = torch.addcmul(y, s.D.to(dtype)[:, None], x)
    return y.to(s.x.dtype).unsqueeze(1), h


class _Chunk(NamedTuple):
    """What both passes need of Q positions; Z = B H."""

    x: Tensor  # (Z, Q, P)
    B: Tensor  # (Z, Q, N)
    C: Tensor  # (Z, Q, N)
    source: Tensor | None  # (Z, Q)
    diagonal: Tensor | None  # (Z, Q)
    decays: Tensor  # (Z, Q, Q), exp(l_i - l_s) for s < i of one sequence, else 0
    into: Tensor  # (Z, Q), exp(l_i) in the first sequence, else 0
    out: Tensor  # (Z, Q), exp(l_Q - l_s) in the last sequence, else 0
    through: Tensor  # (Z), exp(l_Q) where the first is the last, else 0

    def weights(self) -> Tensor:
        """K (Z, Q, Q)."""
        K = self.decays if self.source is None else self.decays * self.source.unsqueeze(1)
        own = self.source if self.diagonal is None else self.diagonal
        ones = torch.ones_like(self.into) if own is None else own
        return K + torch.diag_embed(ones)

    def sources(self) -> Tensor:
        """source_s exp(l_Q - l_s) (Z, Q)."""
        return self.out if self.source is None else self.out * self.source


def _heads(t: Tensor, steps: slice, dtype: torch.dtype, repeats: int = 1) -> Tensor:
    """(B, L, H, P) or (B, L, H) to (Z, Q, P) or (Z, Q); groups are repeated for their heads."""
    t = t[:, steps].to(dtype).transpose(1, 2)
    return (t if repeats == 1 else t.repeat_interleave(repeats, dim=1)).flatten(0, 1)


def _chunk(s: SsdInputs, steps: slice) -> _Chunk:
    dtype = s.state_dtype
    heads = s.x.shape[2]
    repeats = heads // s.B.shape[2]
    # In fp64: the difference of two sums of fast decays would lose what fp32 has.
    total = _heads(s.a, steps, torch.float64).cumsum(1)
    length = total.shape[1]
    later = torch.ones(length, length, dtype=torch.bool, device=total.device).tril(-1)
    alone = torch.zeros((), dtype=dtype, device=total.device)
    decays = torch.exp((total.unsqueeze(2) - total.unsqueeze(1)).to(dtype).clamp_(max=0.0))
    into, out, through = (torch.exp(t.to(dtype)) for t in (total, (total[:, -1:] - total).clamp(max=0.0), total[:, -1]))
    mask = later
    if s.reset is not None:
        number = s.reset[:, steps].cumsum(1).repeat_interleave(heads, dim=0)  # of the sequence, (Z, Q)
        mask = later & (number.unsqueeze(2) == number.unsqueeze(1))
        into = torch.where(number == 0, into, alone)
        out = torch.where(number == number[:, -1:], out, alone)
        through = torch.where(number[:, -1] == 0, through, alone)
    return _Chunk(
        _heads(s.x, steps, dtype),
        _heads(s.B, steps, dtype, repeats),
        _heads(s.C, steps, dtype, repeats),
        None if s.source is None else _heads(s.source, steps, dtype),
        None if s.diagonal is None else _heads(s.diagonal, steps, dtype),
        torch.where(mask, decays, alone),
        into,
        out,
        through,
    )


def _spans(length: int) -> list[slice]:
    return [slice(low, min(low + _CHUNK, length)) for low in range(0, length, _CHUNK)]


def _forward(s: SsdInputs, starts: list[Tensor] | None) -> tuple[Tensor, Tensor]:
    """(y, final state); states before the chunks (Z, P, N) are appended to `starts`."""
    dtype = s.state_dtype
    batch, length, heads, channels = s.x.shape
    states = s.B.shape[3]
    y = torch.empty_like(s.x, memory_format=torch.contiguous_format)
    h = s.x.new_zeros(batch * heads, channels, states, dtype=dtype)
    if s.h0 is not None:
        h = s.h0.to(dtype).reshape_as(h)
    D = None if s.D is None else s.D.to(dtype).repeat(batch)[:, None, None]
    for steps in _spans(length):
        c = _chunk(s, steps)
        M = (c.C @ c.B.transpose(1, 2)).mul_(c.weights())
        out = torch.baddbmm((c.C @ h.transpose(1, 2)).mul_(c.into.unsqueeze(2)), M, c.x)
        if D is not None:
            out.addcmul_(c.x, D)
        y[:, steps] = out.unflatten(0, (batch, heads)).transpose(1, 2)
        if starts is not None:
            starts.append(h)
        h = torch.baddbmm(h * c.through[:, None, None], (c.x * c.sources().unsqueeze(2)).transpose(1, 2), c.B)
    return y, h.view(batch, heads, channels, states)


class _SsdFn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Any) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        starts: list[Tensor] = []
        y, state = _forward(SsdInputs(*given), starts)
        ctx.save_for_backward(*given, *starts)
        return y, state

    @staticmethod
    def backward(ctx: Any, g_y: Tensor | None, g_state: Tensor | None) -> Any:
        saved = ctx.saved_tensors
        count = len(SsdInputs._fields)
        s = SsdInputs(*saved[:count])
        with torch.no_grad(), torch.autocast(s.x.device.type, enabled=False):
            grads = _backward(s, saved[count:], g_y, g_state)
        wanted = (g if need else None for g, need in zip(grads, ctx.needs_input_grad, strict=False))
        return *refuse_second_order("ssd", tuple(wanted)), None


def _backward(
    s: SsdInputs, starts: tuple[Tensor, ...], g_y: Tensor | None, g_state: Tensor | None
) -> tuple[Tensor | None, ...]:
    """Gradients of `SsdInputs.tensors`, None for those that are None."""
    dtype = s.state_dtype
    batch, length, heads, _ = s.x.shape
    groups = s.B.shape[2]
    if g_y is None:
        g_y = torch.zeros_like(s.x)
    G = torch.zeros_like(starts[0]) if g_state is None else g_state.to(dtype).reshape_as(starts[0])
    empty = [None if t is None else torch.empty_like(t, dtype=dtype) for t in s.tensors]
    grads = SsdInputs(*empty)  # type: ignore[arg-type]
    d_skip = None if s.D is None else s.x.new_zeros(batch * heads, dtype=dtype)
    D = None if s.D is None else s.D.to(dtype).repeat(batch)[:, None, None]

    def write(whole: Tensor | None, steps: slice, part: Tensor, per_group: bool = False) -> None:
        if whole is not None:
            part = part.unflatten(0, (batch, heads))
            if per_group:
                part = part.unflatten(1, (groups, heads // groups)).sum(2)
            whole[:, steps] = part.transpose(1, 2)

    for steps, h in zip(reversed(_spans(length)), reversed(starts), strict=True):
        c = _chunk(s, steps)
        dy = _heads(g_y, steps, dtype)
        K, CB = c.weights(), c.C @ c.B.transpose(1, 2)
        E = dy @ c.x.transpose(1, 2)
        EK = E * K
        sources = c.sources()
        from_state = (c.B @ G.transpose(1, 2)).mul_(c.out.unsqueeze(2))  # f_s (G B_s), (Z, Q, P)
        to_state = (dy @ h).mul_(c.into.unsqueeze(2))  # exp(l_i) (dy_i S), (Z, Q, N)
        dx = (K * CB).transpose(1, 2) @ dy
        weighed = (c.x * from_state).sum(2)
        dx.add_(from_state if c.source is None else from_state.mul_(c.source.unsqueeze(2)))
        if D is not None and d_skip is not None:
            dx.addcmul_(dy, D)
            d_skip.add_((dy * c.x).sum((1, 2)))
        write(grads.x, steps, dx)
        write(grads.C, steps, torch.baddbmm(to_state, EK, c.B), per_group=True)
        dB = (c.x @ G).mul_(sources.unsqueeze(2))
        write(grads.B, steps, torch.baddbmm(dB, EK.transpose(1, 2), c.C), per_group=True)
        V = E.mul_(CB)
        own = V.diagonal(dim1=1, dim2=2).clone()
        V = V.mul_(c.decays)
        columns = V.sum(1)
        d_source = columns + weighed
        write(grads.source, steps, d_source + own if s.diagonal is None else d_source)
        write(grads.diagonal, steps, own)
        weighed = weighed if c.source is None else weighed * c.source
        columns = columns if c.source is None else columns * c.source
        rows = V.sum(2) if c.source is None else (V @ c.source.unsqueeze(2)).squeeze(2)
        dl = rows - columns + (c.C * to_state).sum(2) - weighed
        dl[:, -1] += c.through * (G * h).sum((1, 2)) + weighed.sum(1)
        da = dl.flip(1).cumsum(1).flip(1)
        if s.reset is not None:
            # Nothing passes through such a position; the sum says so up to rounding.
            da = da.masked_fill(s.reset[:, steps].repeat_interleave(heads, dim=0), 0.0)
        write(grads.a, steps, da)
        G = torch.baddbmm(G * c.through[:, None, None], (dy * c.into.unsqueeze(2)).transpose(1, 2), c.C)
    if s.h0 is not None:
        grads = grads._replace(h0=G.view_as(s.h0))
    if d_skip is not None:
        grads = grads._replace(D=d_skip.view(batch, heads).sum(0))
    return tuple(None if g is None else g.to(t.dtype) for g, t in zip(grads.tensors, s.tensors, strict=True))  # type: ignore
