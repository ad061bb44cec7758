"""Root-mean-square normalisation of groups of channels with a gate, in Triton. Equations as in `gated.py`.

x, gate (M, D) rows with any row stride, weight (D). Nothing is kept for backward but the inputs. Every program of the backward
walks over its share of the rows and leaves one partial sum for the weight; they are added in a fixed order.
"""

# mypy: disable-error-code="no-untyped-def, assignment"
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mamba_bio_audio.kernels.conv.gpu import sigmoid
from mamba_bio_audio.kernels.differentiable_once import refuse_second_order, will_differentiate
from mamba_bio_audio.kernels.launch import cdiv, launch, on, power_of_2

MAX_CHANNELS = 16384
_ACTIVATIONS = (torch.bfloat16, torch.float16, torch.float32)
_BACKWARD_PROGRAMS = 1056


@triton.jit
def means(u, ROWS: tl.constexpr, GROUPS: tl.constexpr, SPAN: tl.constexpr, WIDTH: tl.constexpr):
    """Mean of each group of SPAN channels, of which WIDTH are there: u [ROWS, GROUPS * SPAN] to the same shape."""
    if GROUPS == 1:
        return (tl.sum(u, axis=1) / WIDTH)[:, None]
    else:
        parts = tl.reshape(u, (ROWS, GROUPS, SPAN))
        mean = (tl.sum(parts, axis=2) / WIDTH)[:, :, None]
        return tl.reshape(tl.broadcast_to(mean, (ROWS, GROUPS, SPAN)), (ROWS, GROUPS * SPAN))


@triton.jit
def places(D: tl.constexpr, GROUPS: tl.constexpr, SPAN: tl.constexpr):
    """Channel of each column of a tile, and whether it is there: groups lie SPAN columns apart."""
    column = tl.arange(0, GROUPS * SPAN)
    inside = column % SPAN
    return column // SPAN * (D // GROUPS) + inside, inside < D // GROUPS


@triton.jit(do_not_specialize=["M", "eps"])
def gated_fwd_kernel(
    x_p, gate_p, weight_p, y_p, M, eps, L, x_batch, gate_batch,
    D: tl.constexpr, GROUPS: tl.constexpr, SPAN: tl.constexpr, ROWS: tl.constexpr, X_ROW: tl.constexpr,
    GATE_ROW: tl.constexpr, GATE_FIRST: tl.constexpr,
):  # fmt: skip
    """Writes y (M, D); row m of x lies at (m // L) * x_batch + (m % L) * X_ROW, and so for the gate."""
    d, there = places(D, GROUPS, SPAN)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    mask = (row < M)[:, None] & there[None, :]
    x_at = (row // L * x_batch + row % L * X_ROW)[:, None] + d[None, :]
    gate_at = (row // L * gate_batch + row % L * GATE_ROW)[:, None] + d[None, :]
    x = tl.load(x_p + x_at, mask=mask, other=0.0).to(tl.float32)
    gate = tl.load(gate_p + gate_at, mask=mask, other=0.0).to(tl.float32)
    weight = tl.load(weight_p + d, mask=there, other=0.0).to(tl.float32)
    opened = gate * sigmoid(gate)
    u = x
    if GATE_FIRST:
        u = x * opened
    y = u * tl.rsqrt(means(u * u, ROWS, GROUPS, SPAN, D // GROUPS) + eps) * weight[None, :]
    if not GATE_FIRST:
        y = y * opened
    tl.store(y_p + row[:, None] * D + d[None, :], y.to(y_p.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["M", "eps"])
def gated_bwd_kernel(
    x_p, gate_p, weight_p, g_p, dx_p, dgate_p, dweight_p, y_p, M, eps, L, x_batch, gate_batch, dgate_batch,
    D: tl.constexpr, GROUPS: tl.constexpr, SPAN: tl.constexpr, ROWS: tl.constexpr, X_ROW: tl.constexpr,
    GATE_ROW: tl.constexpr, DGATE_ROW: tl.constexpr, GATE_FIRST: tl.constexpr, WRITE_Y: tl.constexpr,
):  # fmt: skip
    """Writes dx (M, D), dgate in rows as those of the gate, partial sums dweight (programs, D), and y again where wanted."""
    d, there = places(D, GROUPS, SPAN)
    weight = tl.load(weight_p + d, mask=there, other=0.0).to(tl.float32)
    total = tl.zeros([ROWS, GROUPS * SPAN], tl.float32)
    first = tl.program_id(0)
    for tile in range(first, tl.cdiv(M, ROWS), tl.num_programs(0)):
        row = first.to(tl.int64) * 0 + tile * ROWS + tl.arange(0, ROWS)
        mask = (row < M)[:, None] & there[None, :]
        x_at = (row // L * x_batch + row % L * X_ROW)[:, None] + d[None, :]
        gate_at = (row // L * gate_batch + row % L * GATE_ROW)[:, None] + d[None, :]
        at = row[:, None] * D + d[None, :]
        x = tl.load(x_p + x_at, mask=mask, other=0.0).to(tl.float32)
        gate = tl.load(gate_p + gate_at, mask=mask, other=0.0).to(tl.float32)
        g = tl.load(g_p + at, mask=mask, other=0.0).to(tl.float32)
        s = sigmoid(gate)
        opened = gate * s
        slope = s * (1.0 + gate * (1.0 - s))
        u = x
        if GATE_FIRST:
            u = x * opened
        scale = tl.rsqrt(means(u * u, ROWS, GROUPS, SPAN, D // GROUPS) + eps)
        n = u * scale
        into = g
        if not GATE_FIRST:
            into = g * opened
        total += into * n
        q = into * weight[None, :]
        du = scale * (q - n * means(q * n, ROWS, GROUPS, SPAN, D // GROUPS))
        if GATE_FIRST:
            dx = du * opened
            dgate = du * x * slope
        else:
            dx = du
            dgate = g * weight[None, :] * n * slope
        tl.store(dx_p + at, dx.to(dx_p.dtype.element_ty), mask=mask)
        dgate_at = (row // L * dgate_batch + row % L * DGATE_ROW)[:, None] + d[None, :]
        tl.store(dgate_p + dgate_at, dgate.to(dgate_p.dtype.element_ty), mask=mask)
        if WRITE_Y:
            y = n * weight[None, :]
            if not GATE_FIRST:
                y = y * opened
            tl.store(y_p + at, y.to(y_p.dtype.element_ty), mask=mask)
    tl.store(dweight_p + first.to(tl.int64) * D + d, tl.sum(total, axis=0), mask=there)


def unsupported_reason(x: Tensor, gate: Tensor, weight: Tensor, groups: int) -> str | None:
    """Why these kernels cannot run this call, or None where they can."""
    if _span(x.shape[-1], groups) * power_of_2(groups) > MAX_CHANNELS:
        return f"more than {MAX_CHANNELS} channels"
    if groups & (groups - 1):
        return f"{groups} groups"
    if x.dtype not in _ACTIVATIONS or gate.dtype not in _ACTIVATIONS or weight.dtype == torch.float64:
        return f"{x.dtype} inputs with {gate.dtype} gates and {weight.dtype} weights"
    return None


def _span(channels: int, groups: int) -> int:
    return power_of_2(channels // groups)


def _tile(channels: int, groups: int) -> tuple[int, int, int]:
    """(SPAN, ROWS, warps)."""
    span = max(_span(channels, groups), 16 if groups == 1 else 1)
    block = span * groups
    rows = max(2048 // block, 1)
    return span, rows, min(max(block * rows // 512, 1), 8)


def _rows(t: Tensor) -> tuple[Tensor, int, int]:
    """(B, L, D) with adjacent channels, stride of the batch and of positions."""
    if t.stride(2) != 1:
        t = t.contiguous()
    return t, t.stride(0), t.stride(1)


def gated_forward(x: Tensor, gate: Tensor, weight: Tensor, eps: float, groups: int, gate_first: bool) -> Tensor:
    """y (B, L, D), as `gated_norm_triton` returns it; without gradients."""
    length, channels = x.shape[1:]
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    x, x_batch, x_row = _rows(x)
    gate, gate_batch, gate_row = _rows(gate)
    count = y.numel() // channels
    span, tile, warps = _tile(channels, groups)
    with on(x.device):
        launch(
            gated_fwd_kernel, cdiv(count, tile),
            x, gate, weight, y, count, eps, length, x_batch, gate_batch,
            D=channels, GROUPS=groups, SPAN=span, ROWS=tile, X_ROW=x_row, GATE_ROW=gate_row, GATE_FIRST=gate_first,
            num_warps=warps,
        )  # fmt: skip
    return y


def gated_backward(
    x: Tensor,
    gate: Tensor,
    weight: Tensor,
    g: Tensor,
    eps: float,
    groups: int,
    gate_first: bool,
    dgate: Tensor | None = None,
    y: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x (contiguous), gate and weight (fp32).

    Args:
        x, gate: (B, L, D), any row stride.
        weight, eps, groups, gate_first: as of forward.
        g: (B, L, D) in the dtype of x.
        dgate: where to write that of the gate, any row stride; allocated by default.
        y: where to write the output again.
    """
    length, channels = x.shape[1:]
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    dgate = torch.empty(gate.shape, dtype=gate.dtype, device=x.device) if dgate is None else dgate
    x, x_batch, x_row = _rows(x)
    gate, gate_batch, gate_row = _rows(gate)
    count = x.numel() // channels
    span, tile, warps = _tile(channels, groups)
    programs = min(cdiv(count, tile), _BACKWARD_PROGRAMS)
    dweight = torch.empty(programs, channels, dtype=torch.float32, device=x.device)
    with on(x.device):
        launch(
            gated_bwd_kernel, programs,
            x, gate, weight, g.contiguous(), dx, dgate, dweight, y if y is not None else dx,
            count, eps, length, x_batch, gate_batch, dgate.stride(0),
            D=channels, GROUPS=groups, SPAN=span, ROWS=tile, X_ROW=x_row, GATE_ROW=gate_row, DGATE_ROW=dgate.stride(1),
            GATE_FIRST=gate_first, WRITE_Y=y is not None, num_warps=warps,
        )  # fmt: skip
    return dx, dgate, dweight.sum(0)


class _GatedNormFn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor, weight: Tensor, *options: Any) -> Tensor:
        ctx.save_for_backward(x, gate, weight)
        ctx.options = options
        return gated_forward(x, gate, weight, *options)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, gate, weight = ctx.saved_tensors
        dx, dgate, dweight = gated_backward(x, gate, weight, grads[0].to(x.dtype), *ctx.options)
        found = (dx, dgate, dweight.to(weight.dtype))
        return *refuse_second_order("gated_rms_norm", found), None, None, None


def gated_norm_triton(x: Tensor, gate: Tensor, weight: Tensor, eps: float, groups: int, gate_first: bool) -> Tensor:
    """y (..., D) in the dtype of x, as `gated_norm_torch`, of calls for which `unsupported_reason` has none."""
    if x.ndim != 3:
        rows = [t.reshape(1, -1, t.shape[-1]) for t in (x, gate)]
        return gated_norm_triton(rows[0], rows[1], weight, eps, groups, gate_first).view(x.shape)
    weight = weight.contiguous()
    if will_differentiate(x, gate, weight):
        return _GatedNormFn.apply(x, gate, weight, eps, groups, gate_first)
    return gated_forward(x, gate, weight, eps, groups, gate_first)
