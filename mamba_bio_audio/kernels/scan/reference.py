"""Sequential oracle of the selective scan: plain differentiable PyTorch, obvious rather than fast.

    dt_t = softplus(dt_t + dt_bias)                       per channel
    a_t  = exp(dt_t A)                                    per channel and state
    b_t  = dt_t B_t u_t                                   or, with exact_zoh, (exp(dt_t A) - 1) / A * B_t u_t
    h_t  = a_t h_(t-1) + b_t                              fp32, fp64 for fp64 inputs
    y_t  = sum_n C_t h_t + D u_t                          complex: 2 Re(sum_n C_t h_t) + D u_t
    out  = y_t * silu(z_t)

Mamba (arXiv 2312.00752) section 3.2, algorithm 2; zero-order hold: equation 4. Letters: B batch, L length,
D channels, N states. Shapes are those of `mamba_bio_audio.ops.selective_scan`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_bio_audio.kernels.scan.inputs import ScanInputs, complex_numbers

# expm1(x) / x is summed as a series below this |x|: there the closed form and its derivative cancel.
_SERIES_BELOW = 0.5
_SERIES_TERMS = 16


def expm1_ratio(x: Tensor) -> Tensor:
    """(exp(x) - 1) / x, real or complex, accurate and differentiable to any order also around 0."""
    small = x.abs() < _SERIES_BELOW
    # Both branches get harmless arguments where they are not used, so that no NaN enters the gradient.
    near = torch.where(small, x, torch.zeros_like(x))
    far = torch.where(small, torch.ones_like(x), x)
    series = torch.ones_like(x)
    for k in range(_SERIES_TERMS, 1, -1):
        series = 1 + near / k * series
    return torch.where(small, series, torch.expm1(far) / far)


def scan_reference(s: ScanInputs) -> tuple[Tensor, Tensor]:
    """(out (B, L, D) in u.dtype, final state (B, D, N[, 2]) in fp32 or fp64)."""
    u, dt, A, B, C = s.u, s.dt, s.A, s.B, s.C
    dtype = s.state_dtype
    out_dtype = u.dtype
    is_complex = A.ndim == 3
    batch, length, channels = u.shape

    def number(t: Tensor) -> Tensor:
        return complex_numbers(t.to(dtype)) if is_complex else t.to(dtype)

    A, B, C = number(A), number(B), number(C)
    u = u.to(dtype)
    dt = dt.to(dtype)
    if s.dt_bias is not None:
        dt = dt + s.dt_bias.to(dtype)
    if s.dt_softplus:
        dt = F.softplus(dt, threshold=20.0)
    dt = dt.expand(batch, length, channels)

    h = torch.zeros(batch, *A.shape, dtype=A.dtype, device=u.device) if s.h0 is None else number(s.h0)
    ys = []
    for t in range(length):
        if s.reset is not None:
            h = torch.where(s.reset[:, t, None, None], torch.zeros_like(h), h)
        dt_t = dt[:, t, :, None]  # (B, D, 1)
        B_t = B[:, t, None, :] if B.ndim == 3 else B  # (B, 1, N) or (D, N)
        C_t = C[:, t, None, :] if C.ndim == 3 else C
        b = dt_t * B_t * u[:, t, :, None]
        if s.exact_zoh:
            b = b * expm1_ratio(dt_t * A)
        h = h + (torch.expm1(dt_t * A) * h + b) if s.precise else torch.exp(dt_t * A) * h + b
        y = (C_t * h).sum(-1)
        ys.append(2 * y.real if is_complex else y)
    out = torch.stack(ys, dim=1)
    if s.D is not None:
        out = out + s.D.to(dtype) * u
    if s.z is not None:
        out = out * F.silu(s.z.to(dtype))
    state = torch.view_as_real(h) if is_complex else h
    return out.to(out_dtype), state
