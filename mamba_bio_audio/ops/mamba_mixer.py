"""A whole Mamba layer as one operation: projections, convolution and scan.

    u, z = split(in_proj(x))         u = silu(conv(u))
    dt, B, C = split(x_proj(u))      dt = dt_proj(dt)                      selective; otherwise parameters
    y = out_proj(scan(u, softplus(dt + dt_bias), A, B, C, D) * silu(z))    A = -exp(A_log), complex: + i A_imag

Mamba (arXiv 2312.00752) section 3.4. Letters: B batch, L length, M model channels, E inner channels, N states, R delta
rank, W convolution width.
"""

from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.kernels.made_once import made_once, staying
from mamba_bio_audio.ops.calls import check, check_reset, choose, shape_of, tracing
from mamba_bio_audio.ops.causal_conv1d import causal_conv1d
from mamba_bio_audio.ops.selective_scan import selective_scan


class MixerWeights(NamedTuple):
    """Parameters of one mixer; those of the published layer, real and selective, come first."""

    in_proj: Tensor  # (2 E, M)
    in_bias: Tensor | None  # (2 E)
    conv: Tensor  # (E, W)
    conv_bias: Tensor | None  # (E)
    x_proj: Tensor | None  # (R + 2 N, E), twice as many for complex B and C; None where nothing is selective
    dt_proj: Tensor | None  # (E, R), None where the step size is fixed
    dt_bias: Tensor  # (E), or the fixed step size, before softplus
    A_log: Tensor  # (E, N)
    D: Tensor  # (E)
    out_proj: Tensor  # (M, E)
    out_bias: Tensor | None  # (M)
    A_imag: Tensor | None = None  # (E, N), of complex states
    B: Tensor | None = None  # (E, N[, 2]) where B is fixed
    C: Tensor | None = None  # likewise

    def A(self) -> Tensor:
        """A, (E, N) and negative, or (E, N, 2) for complex states."""
        A = -torch.exp(self.A_log)
        return A if self.A_imag is None else torch.stack([A, self.A_imag], dim=-1)


_PUBLISHED = 11  # fields


def mamba_mixer(
    x: Tensor,
    weights: MixerWeights,
    *,
    tail: Tensor | None = None,
    h0: Tensor | None = None,
    reset: Tensor | None = None,
    exact_zoh: bool = False,
    precise: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Runs a whole Mamba mixer over a span.

    On a GPU, the published layer (real and selective) runs as one fused function that recomputes in its backward what the
    separate operations would keep (appendix D of the paper). Any other layer runs as its projections, `causal_conv1d` and
    `selective_scan` in turn, and so does every layer on a CPU or in a compiled graph.

    Args:
        x: (B, L, M), any L >= 1. Under autocast everything but states and sums is in its dtype.
        weights: parameters.
        tail: the W - 1 inputs of the convolution before the span (B, W-1, E); None means zeros.
        h0: state before the span (B, E, N[, 2]); None means zeros.
        reset: bool (B, L), True where the state is zeroed before the position.
        exact_zoh: as in `selective_scan`.
        precise: as in `selective_scan`.
        backend: "auto", "triton" (the fused function), "torch" or "reference".

    Returns:
        y (B, L, M), the tail after the span, and the state after it (B, E, N[, 2]) in fp32 (fp64 if any input of the
        scan is fp64).

    Raises:
        InputError: x, tail, h0 or reset of a wrong shape, dtype or device; an unknown or unavailable backend.
    """
    where, w = "mamba_mixer", weights
    if x.ndim != 3 or x.shape[1] < 1 or x.shape[2] != w.in_proj.shape[1]:
        raise InputError(f"{where}: x must be (B, L, M={w.in_proj.shape[1]}) with L >= 1, not {shape_of(x)}")
    # The kernels read what they are told is there, and would read beyond a state that is too small.
    (inner, width), batch = w.conv.shape, x.shape[0]
    states = w.A_log.shape if w.A_imag is None else (*w.A_log.shape, 2)
    check(where, tail, "tail", (batch, width - 1, inner), x)
    check(where, h0, "h0", (batch, *states), x)
    check_reset(where, reset, (batch, x.shape[1]), x)

    # A compiled graph keeps only the inputs of operations anyway, and sees more of a layer that consists of them. No
    # notice of falling back: each of them gives its own.
    path = "torch"
    if not tracing(backend):
        path = choose(where, backend, x, lambda: _not_fused(x, w, h0, exact_zoh), announce=False)
    if path == "triton":
        dtype, published = _activation_dtype(x), _kernels().MixerWeights(*w[:_PUBLISHED])
        with torch.autocast(x.device.type, enabled=False):
            return _kernels().mixer_triton(  # type: ignore[no-any-return]
                x, published, tail=tail, h0=h0, reset=reset, precise=precise, dtype=dtype
            )
    if not tracing(backend) and staying():
        w, A = made_once(_ready, w, _activation_dtype(x), x.is_cuda)
    else:
        A = w.A()
    u, z = F.linear(x, w.in_proj, w.in_bias).chunk(2, dim=-1)  # (B, L, E) each
    u, tail = causal_conv1d(u, w.conv, w.conv_bias, tail=tail, return_tail=True, reset=reset, backend=backend)
    dt, B, C = _selection(u, w)
    # The bias is added inside the scan, in fp32.
    bias = None if w.dt_proj is None else w.dt_bias
    how: dict[str, Any] = {"reset": reset, "exact_zoh": exact_zoh, "precise": precise, "backend": backend}
    if (w.B is None) != (w.C is None):
        y, state = _scan_of_single_states(u, dt, A, B, C, bias, h0, how)
        y = (y + w.D * u) * F.silu(z)
    else:
        y, state = selective_scan(u, dt, A, B, C, w.D, z=z, dt_bias=bias, h0=h0, return_state=True, **how)
    return F.linear(y, w.out_proj, w.out_bias), tail, state


def _ready(w: MixerWeights, dtype: torch.dtype, gpu: bool) -> tuple[MixerWeights, Tensor]:
    """Weights that each operation takes without a cast or a copy, and A.

    Args:
        w: the layer's.
        dtype: of activations.
        gpu: whether to lay them out in memory as the Triton kernels read them.
    """
    if torch.is_autocast_enabled(w.in_proj.device.type):
        w = w._replace(
            in_proj=w.in_proj.to(dtype),
            in_bias=_narrow(w.in_bias, dtype),
            x_proj=_narrow(w.x_proj, dtype),
            dt_proj=_narrow(w.dt_proj, dtype),
            out_proj=w.out_proj.to(dtype),
            out_bias=_narrow(w.out_bias, dtype),
        )
    A = w.A()
    if gpu:
        B, C = (None if t is None else _in_planes(t, w.A_imag is not None) for t in (w.B, w.C))
        w = w._replace(B=B, C=C)
        A = _in_planes(A, w.A_imag is not None)
    return w, A


def _narrow(t: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if t is None else t.to(dtype)


def _in_planes(t: Tensor, is_complex: bool) -> Tensor:
    """(E, N[, 2]) that lies in memory as ([2,] N, E)."""
    return t.permute(2, 1, 0).contiguous().permute(2, 1, 0) if is_complex else t.t().contiguous().t()


def _not_fused(x: Tensor, w: MixerWeights, h0: Tensor | None, exact_zoh: bool) -> str | None:
    """Why the fused function cannot run this call, or None where it can."""
    if w.A_imag is not None or w.B is not None or w.C is not None or w.dt_proj is None or exact_zoh:
        return "complex, time-invariant or exactly held layers"
    if h0 is not None and h0.dtype == torch.float64:
        return "a float64 state"
    kernels = _kernels()
    return kernels.unsupported_reason(_activation_dtype(x), kernels.MixerWeights(*w[:_PUBLISHED]))  # type: ignore[no-any-return]


@cache
def _kernels() -> ModuleType:
    from mamba_bio_audio.kernels.mixer import recompute

    return recompute


def _selection(u: Tensor, w: MixerWeights) -> tuple[Tensor, Tensor, Tensor]:
    """Step size (before bias and softplus), B and C: projected from this input where selective, otherwise parameters."""
    parts: list[Tensor] = []
    if w.x_proj is not None:
        rank = 0 if w.dt_proj is None else w.dt_proj.shape[1]
        selected = (w.B is None) + (w.C is None)
        columns = (w.x_proj.shape[0] - rank) // max(1, selected)  # of B, and of C
        parts += F.linear(u, w.x_proj).split([rank] * (rank > 0) + [columns] * selected, dim=-1)
    dt = w.dt_bias if w.dt_proj is None else F.linear(parts.pop(0), w.dt_proj)
    if w.B is not None and w.C is not None:
        return dt, w.B, w.C
    if w.B is not None or w.C is not None:
        (only,) = parts
        return (dt, only, w.C) if w.C is not None else (dt, w.B, only)  # type: ignore[return-value]
    B, C = parts
    if w.A_imag is not None:
        B, C = (part.unflatten(-1, (*w.A_imag.shape[1:], 2)) for part in (B, C))
    return dt, B, C


def _scan_of_single_states(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, bias: Tensor | None, h0: Tensor | None, how: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """The scan of real states where one of B and C is fixed (E, N) and the other not (B, L, N): y (B, L, E), and the state.

    Every state becomes a channel of its own, into which u * B goes and of which C * h is read: N times the work, for
    comparisons of what being selective is worth.
    """
    channels, states = A.shape
    source = u.unsqueeze(-1) * (B if B.ndim == 2 else B.unsqueeze(2))  # (B, L, E, N)
    one = torch.ones(channels * states, 1, dtype=A.dtype, device=A.device)
    # A step size that depends on the input needs B and C that do.
    ones = one if dt.ndim == 1 else torch.ones(*u.shape[:2], 1, dtype=u.dtype, device=u.device)
    h, state = selective_scan(
        source.flatten(2),
        dt.repeat_interleave(states, dim=-1),
        A.reshape(-1, 1),
        ones,
        ones,
        None,
        dt_bias=None if bias is None else bias.repeat_interleave(states),
        h0=None if h0 is None else h0.reshape(len(h0), -1, 1),
        return_state=True,
        **how,
    )
    y = (h.unflatten(-1, (channels, states)) * (C if C.ndim == 2 else C.unsqueeze(2))).sum(-1)
    return y.to(u.dtype), state.reshape(-1, channels, states)


def _activation_dtype(x: Tensor) -> torch.dtype:
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
