"""Sequential oracle of the state space dual: plain differentiable PyTorch, obvious rather than fast.

    S_t = exp(a_t) S_(t-1) + source_t x_t B_t'                                     per head, (P, N)
    y_t = exp(a_t) S_(t-1) C_t + diagonal_t (B_t . C_t) x_t + D x_t                diagonal = source: S_t C_t + D x_t

Mamba-2 (arXiv 2405.21060) sections 3 and 6. Letters: B batch, L length, H heads, P channels of a head, G groups of B and
C, each for H / G heads in a row, N states. Shapes are those of `mamba_bio_audio.ops.ssd`.
"""

import torch
from torch import Tensor

from mamba_bio_audio.kernels.ssd.inputs import SsdInputs


def ssd_reference(s: SsdInputs) -> tuple[Tensor, Tensor]:
    """(y (B, L, H, P) in x.dtype, final state (B, H, P, N) in fp32 or fp64)."""
    dtype = s.state_dtype
    batch, length, heads, channels = s.x.shape
    groups, states = s.B.shape[2:]
    x, a = s.x.to(dtype), s.a.to(dtype)
    B, C = (t.to(dtype).repeat_interleave(heads // groups, dim=2) for t in (s.B, s.C))  # (B, L, H, N)
    source = torch.ones_like(a) if s.source is None else s.source.to(dtype)
    diagonal = source if s.diagonal is None else s.diagonal.to(dtype)
    h = s.x.new_zeros(batch, heads, channels, states, dtype=dtype) if s.h0 is None else s.h0.to(dtype)
    ys = []
    for t in range(length):
        if s.reset is not None:
            h = torch.where(s.reset[:, t, None, None, None], torch.zeros_like(h), h)
        before = torch.exp(a[:, t, :, None, None]) * h
        own = x[:, t, :, :, None] * B[:, t, :, None, :]
        h = before + source[:, t, :, None, None] * own
        ys.append(((before + diagonal[:, t, :, None, None] * own) * C[:, t, :, None, :]).sum(-1))
    y = torch.stack(ys, dim=1)
    if s.D is not None:
        y = y + s.D.to(dtype)[:, None] * x
    return y.to(s.x.dtype), h
