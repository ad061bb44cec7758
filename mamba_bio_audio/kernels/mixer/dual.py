"""The whole Mamba-2 mixer as one differentiable function of Triton kernels and torch's products of matrices.

    z, xBC, raw = split(in_proj(x))      x', B, C = split(silu(conv(xBC)))      dt = clamp(softplus(raw + bias))
    y = out_proj(norm(ssd(x', dt A, B, C, dt, D) * silu(z)))

Mamba-2 (arXiv 2405.21060) section 7. All parts of the projection stay where it wrote them, and their gradients are written
side by side, so that nothing is cut, padded or copied. Kept for backward are x, the projection, the convolution's output,
y before the gate and the states before chunks; the gated output is made again. Deterministic if the products of matrices are.

Letters: B batch, L length, M model channels, E inner channels, H heads of P channels, G groups, N states, W convolution
width, F = E + 2 G N channels of the convolution.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_bio_audio.kernels.conv.gpu import conv_backward, conv_forward
from mamba_bio_audio.kernels.conv.tail import kept_in_tail, next_tail
from mamba_bio_audio.kernels.differentiable_once import refuse_second_order, will_differentiate
from mamba_bio_audio.kernels.made_once import made_once
from mamba_bio_audio.kernels.mixer.inputs import Mamba2Settings, Mamba2Weights
from mamba_bio_audio.kernels.mixer.recompute import _product as product
from mamba_bio_audio.kernels.norm import gated_gpu
from mamba_bio_audio.kernels.ssd import launch as dual
from mamba_bio_audio.kernels.ssd.steps import steps_backward, steps_forward

# Rows of in_proj are a multiple of this: 16 bytes, without which products of matrices are half as fast.
_ALIGNED = 8
_ACTIVATIONS = (torch.bfloat16, torch.float16, torch.float32)


def unsupported_reason(dtype: torch.dtype, weights: Mamba2Weights, shape: Mamba2Settings) -> str | None:
    """Why this function cannot run a call in `dtype`, or None where it can."""
    inner, states = weights.norm.shape[0], (weights.conv.shape[0] - weights.norm.shape[0]) // (2 * shape.groups)
    if dtype not in _ACTIVATIONS:
        return f"{dtype} activations"
    if any(w is not None and w.dtype == torch.float64 for w in weights):
        return "float64 parameters"
    if states > dual.MAX_STATES:
        return f"more than {dual.MAX_STATES} states"
    if weights.conv.shape[1] < 2:
        return "a convolution of one tap"
    probe = torch.empty(0, inner, dtype=dtype, device="meta")
    return gated_gpu.unsupported_reason(probe, probe, weights.norm, shape.groups)


class _Cast(NamedTuple):
    """The weights as kernels and products want them."""

    in_proj: Tensor  # rows padded
    in_bias: Tensor | None
    conv: Tensor
    conv_bias: Tensor | None
    dt_bias: Tensor
    A: Tensor  # (H) fp32, negative
    D: Tensor
    norm: Tensor
    out_proj: Tensor
    out_bias: Tensor | None


def _cast(w: Mamba2Weights, dtype: torch.dtype) -> _Cast:
    padding = -w.in_proj.shape[0] % _ALIGNED
    in_proj, in_bias = w.in_proj.to(dtype), None if w.in_bias is None else w.in_bias.to(dtype)
    if padding:
        in_proj = F.pad(in_proj, (0, 0, 0, padding))
        in_bias = None if in_bias is None else F.pad(in_bias, (0, padding))
    return _Cast(
        in_proj,
        in_bias,
        w.conv.float(),
        None if w.conv_bias is None else w.conv_bias.float(),
        w.dt_bias.float().contiguous(),
        -torch.exp(w.A_log.float()),
        w.D.float().contiguous(),
        w.norm.float().contiguous(),
        w.out_proj.to(dtype),
        None if w.out_bias is None else w.out_bias.to(dtype),
    )


class _Parts(NamedTuple):
    """Views of the projection (B, L, E + F + H and padding)."""

    z: Tensor
    mixed: Tensor
    raw: Tensor


def _parts(t: Tensor, w: _Cast) -> _Parts:
    inner, mixed, heads = w.norm.shape[0], w.conv.shape[0], w.D.shape[0]
    return _Parts(t[..., :inner], t[..., inner : inner + mixed], t[..., inner + mixed : inner + mixed + heads])


def _call(
    u: Tensor, dt: Tensor, sums: Tensor, flags: Tensor | None, w: _Cast, shape: Mamba2Settings, plan: dual.Plan
) -> dual.SsdCall:
    """The dual's arguments, parts of the convolution's output u (B, L, F)."""
    inner, heads = w.norm.shape[0], w.D.shape[0]
    B, C = u[..., inner:].unflatten(2, (2, shape.groups, -1)).unbind(2)
    return dual.SsdCall(u[..., :inner].unflatten(2, (heads, -1)), B, C, sums, dt, None, w.D, flags, plan)


class _Settings(NamedTuple):
    dtype: torch.dtype  # of the activations
    shape: Mamba2Settings
    train: bool  # whether a backward may follow


class _DualFn(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        settings: _Settings,
        x: Tensor,
        tail: Tensor | None,
        h0: Tensor | None,
        reset: Tensor | None,
        *weights: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        dtype, shape = settings.dtype, settings.shape
        given = Mamba2Weights(*weights)  # type: ignore[arg-type]
        w = made_once(_cast, given, dtype)
        ctx.dtypes = tuple(None if t is None else t.dtype for t in (x, tail, h0))
        x = x.to(dtype)
        batch, length, _ = x.shape
        inner, heads = w.norm.shape[0], w.D.shape[0]
        states = (w.conv.shape[0] - inner) // (2 * shape.groups)
        flags = None if reset is None else reset.contiguous().view(torch.uint8)
        start = None if tail is None else tail.to(dtype).contiguous()
        plan = dual.make_plan(batch, length, heads, inner // heads, shape.groups, states, dtype, x.device)
        xz = F.linear(x, w.in_proj, w.in_bias)
        parts = _parts(xz, w)
        u = conv_forward(parts.mixed, w.conv, w.conv_bias, start, flags, True)
        dt, sums = steps_forward(parts.raw, w.dt_bias, w.A, shape.limit, plan)
        call = _call(u, dt, sums, flags, w, shape, plan)
        y, end, starts = dual.ssd_forward(call, h0, settings.train)
        out = gated_gpu.gated_forward(y.flatten(2), parts.z, w.norm, shape.eps, shape.groups, True)
        if settings.train:
            ctx.save_for_backward(x, start, reset, xz, u, dt, sums, y, starts, *w, *weights)
            ctx.settings, ctx.plan = settings, plan
        after = next_tail(parts.mixed, start, w.conv.shape[1], reset)
        return F.linear(out, w.out_proj, w.out_bias), after, end

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        with torch.no_grad(), torch.autocast(ctx.saved_tensors[0].device.type, enabled=False):
            found = _backward(ctx, *grads)
        return None, *refuse_second_order("mamba2_mixer", found)


def _backward(ctx: Any, g_out: Tensor | None, g_tail: Tensor | None, g_h: Tensor | None) -> tuple[Tensor | None, ...]:
    """Gradients of everything but the settings, in the order of `_DualFn.forward`."""
    x, start, reset, xz, u, dt, sums, y, states, *rest = ctx.saved_tensors
    w, weights = _Cast(*rest[: len(_Cast._fields)]), Mamba2Weights(*rest[len(_Cast._fields) :])
    dtype, shape, plan = ctx.settings.dtype, ctx.settings.shape, ctx.plan
    batch, length, _ = x.shape
    inner, width = w.norm.shape[0], w.conv.shape[1]
    g = (
        torch.zeros(batch, length, w.out_proj.shape[0], dtype=dtype, device=x.device)
        if g_out is None
        else g_out.to(dtype)
    )
    flags = None if reset is None else reset.contiguous().view(torch.uint8)
    parts = _parts(xz, w)
    call = _call(u, dt, sums, flags, w, shape, plan)
    dxz = torch.empty_like(xz)
    d_parts = _parts(dxz, w)
    rows = y.flatten(2)
    out = torch.empty_like(rows)
    dy, _, d_norm = gated_gpu.gated_backward(
        rows, parts.z, w.norm, g @ w.out_proj, shape.eps, shape.groups, True, d_parts.z, out
    )
    d_out_proj = product(g, out)
    del out
    du = torch.empty_like(u)
    d_maps = du[..., inner:].unflatten(2, (2, shape.groups, -1))
    found = dual.ssd_backward(call, states, dy.view(y.shape), g_h, (du[..., :inner].unflatten(2, y.shape[2:]), d_maps))
    assert found.source is not None
    # With the columns of padding, which nothing else writes.
    d_bias, dA = steps_backward(
        parts.raw, w.dt_bias, w.A, shape.limit, dt, found.l, found.source, flags,
        dxz[..., inner + w.conv.shape[0] :], plan,
    )  # fmt: skip
    conv = conv_backward(parts.mixed, w.conv, w.conv_bias, start, flags, True, du, dx=d_parts.mixed)
    d_tail = conv.tail
    if g_tail is not None:
        kept = kept_in_tail(reset, width, length)
        passed = (g_tail if kept is None else g_tail * kept).to(dtype)
        own = min(length, width - 1)  # of the last W - 1 inputs, how many are this span's
        d_parts.mixed[:, length - own :] += passed[:, width - 1 - own :]
        if d_tail is not None and own < width - 1:
            d_tail[:, own:] += passed[:, : width - 1 - own]
    count = weights.in_proj.shape[0]
    x_dtype, tail_dtype, h_dtype = ctx.dtypes
    return (
        (dxz @ w.in_proj).to(x_dtype),
        None if d_tail is None or tail_dtype is None else d_tail.to(tail_dtype),
        None if h_dtype is None else found.h0.to(h_dtype),
        None,
        product(dxz, x)[:count].to(weights.in_proj.dtype),
        None if weights.in_bias is None else dxz.float().sum((0, 1))[:count].to(weights.in_bias.dtype),
        conv.weight.to(weights.conv.dtype),
        None if weights.conv_bias is None or conv.bias is None else conv.bias.to(weights.conv_bias.dtype),
        d_bias.to(weights.dt_bias.dtype),
        # A = -exp(A_log), so dA/dA_log = A.
        (dA * w.A).to(weights.A_log.dtype),
        None if found.skip is None else found.skip.to(weights.D.dtype),
        d_norm.to(weights.norm.dtype),
        d_out_proj.to(weights.out_proj.dtype),
        None if weights.out_bias is None else g.float().sum((0, 1)).to(weights.out_bias.dtype),
    )


def dual_triton(
    x: Tensor,
    weights: Mamba2Weights,
    shape: Mamba2Settings,
    *,
    tail: Tensor | None = None,
    h0: Tensor | None = None,
    reset: Tensor | None = None,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Runs the mixer on a span.

    Args:
        x: (B, L, M), any L >= 1.
        weights, shape: parameters.
        tail: (B, W - 1, F), the convolution's inputs before the span. h0: (B, H, P, N), the state there.
        reset: bool (B, L), the state is cleared before these positions.
        dtype: of the activations.

    Returns:
        y (B, L, M) in `dtype`, the tail after the span in `dtype` and the state after it (B, H, P, N) in fp32.
    """
    settings = _Settings(dtype, shape, will_differentiate(x, tail, h0, *weights))
    return _DualFn.apply(settings, x, tail, h0, reset, *weights)
