"""A whole Mamba-2 layer as one operation: projections, convolution, state space dual and gated norm.

    z, xBC, dt = split(in_proj(x))       x, B, C = split(silu(conv(xBC)))      dt = clamp(softplus(dt + dt_bias))
    y = out_proj(norm(ssd(x, dt A, B, C, dt, D) * silu(z)))                    A = -exp(A_log)

Mamba-2 (arXiv 2405.21060) section 7. Letters: B batch, L length, M model channels, E inner channels, H heads of P channels,
G groups, N states, W convolution width, F = E + 2 G N channels of the convolution.
"""

from functools import cache
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.kernels.mixer.inputs import Mamba2Settings, Mamba2Weights
from mamba_bio_audio.ops.calls import check, check_reset, choose, shape_of, tracing
from mamba_bio_audio.ops.causal_conv1d import causal_conv1d
from mamba_bio_audio.ops.gated_rms_norm import gated_rms_norm
from mamba_bio_audio.ops.ssd import ssd


def mamba2_mixer(
    x: Tensor,
    weights: Mamba2Weights,
    *,
    groups: int = 1,
    eps: float = 1e-5,
    dt_limit: tuple[float, float] | None = None,
    tail: Tensor | None = None,
    h0: Tensor | None = None,
    reset: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Runs a whole Mamba-2 mixer over a span.

    On a GPU it runs as one function that writes all gradients of the projection side by side. On a CPU, or in a compiled
    graph, it runs as its projections, `causal_conv1d`, `ssd` and `gated_rms_norm` in turn.

    Args:
        x: (B, L, M), any L >= 1. Under autocast everything but step sizes, states and sums is in its dtype.
        weights: parameters.
        groups: of heads that share B and C, and of the norm's channels.
        eps: of the norm.
        dt_limit: what step sizes are clamped to; None means not at all.
        tail: the W - 1 inputs of the convolution before the span (B, W-1, F); None means zeros.
        h0: state before the span (B, H, P, N); None means zeros.
        reset: bool (B, L), True where the state is zeroed before the position.
        backend: "auto", "triton" (the one function), "torch" or "reference".

    Returns:
        y (B, L, M), the tail after the span, and the state after it (B, H, P, N) in fp32 (fp64 if any input of the dual is
        fp64).

    Raises:
        InputError: x, tail, h0 or reset of a wrong shape, dtype or device; an unknown or unavailable backend.
    """
    where, w = "mamba2_mixer", weights
    if x.ndim != 3 or x.shape[1] < 1 or x.shape[2] != w.in_proj.shape[1]:
        raise InputError(f"{where}: x must be (B, L, M={w.in_proj.shape[1]}) with L >= 1, not {shape_of(x)}")
    # The kernels read what they are told is there, and would read beyond a state that is too small.
    (mixed, width), inner, heads, batch = w.conv.shape, w.norm.shape[0], w.D.shape[0], x.shape[0]
    states = (mixed - inner) // (2 * groups)
    check(where, tail, "tail", (batch, width - 1, mixed), x)
    check(where, h0, "h0", (batch, heads, inner // heads, states), x)
    check_reset(where, reset, (batch, x.shape[1]), x)

    # No notice of falling back: each of the operations gives its own.
    path, kind = "torch", x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    if not tracing(backend):
        limit = None if dt_limit is None else (float(dt_limit[0]), float(dt_limit[1]))
        settings = Mamba2Settings(groups, eps, limit)
        path = choose(where, backend, x, lambda: _not_fused(dtype, w, h0, settings), announce=False)
    if path == "triton":
        with torch.autocast(kind, enabled=False):
            return _kernels().dual_triton(  # type: ignore[no-any-return]
                x, w, settings, tail=tail, h0=h0, reset=reset, dtype=dtype
            )
    z, xBC, raw = F.linear(x, w.in_proj, w.in_bias).split([inner, mixed, heads], dim=2)
    tail = None if tail is None else tail.to(xBC.dtype)
    u, tail = causal_conv1d(xBC, w.conv, w.conv_bias, tail=tail, return_tail=True, reset=reset, backend=backend)
    u, B, C = u.split([inner, groups * states, groups * states], dim=2)
    B, C = (t.unflatten(2, (groups, states)) for t in (B, C))
    dt = F.softplus(raw.to(w.dt_bias.dtype) + w.dt_bias)
    if dt_limit is not None:
        dt = dt.clamp(*dt_limit)
    a = dt * -torch.exp(w.A_log)
    y, state = ssd(
        u.unflatten(2, (heads, -1)), a, B, C, dt, D=w.D, h0=h0, return_state=True, reset=reset, backend=backend
    )
    y = gated_rms_norm(y.flatten(2), z, w.norm, eps, groups=groups, backend=backend)
    return F.linear(y, w.out_proj, w.out_bias), tail, state


def _not_fused(dtype: torch.dtype, w: Mamba2Weights, h0: Tensor | None, settings: Mamba2Settings) -> str | None:
    """Why the one function cannot run this call, or None where it can."""
    if h0 is not None and h0.dtype == torch.float64:
        return "a float64 state"
    return _kernels().unsupported_reason(dtype, w, settings)  # type: ignore[no-any-return]


@cache
def _kernels() -> ModuleType:
    from mamba_bio_audio.kernels.mixer import dual

    return dual
