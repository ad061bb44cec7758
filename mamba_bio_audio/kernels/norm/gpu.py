"""Root-mean-square normalisation in Triton, optionally after adding to the residual stream.

    r = x + residual        s = 1 / sqrt(mean(r^2) + eps)        y = r * s * weight

x (M, D) rows, weight (D); the residual stream is fp32. With q = dL/dy * weight and n = r * s:

    dL/dr = s * (q - n * mean(q * n)) + dL/dr_out        dL/dweight = sum over rows of dL/dy * n

Zhang and Sennrich, arXiv 1910.07467. Every program of the backward walks over its share of the rows and leaves one
partial sum for the weight; they are added in a fixed order.
"""

# mypy: disable-error-code="no-untyped-def, assignment, var-annotated"
# Triton code: `if` on a constexpr must stand alone.
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mamba_bio_audio.kernels.differentiable_once import refuse_second_order, will_differentiate
from mamba_bio_audio.kernels.launch import cdiv, launch, on, power_of_2

MAX_CHANNELS = 16384
_ACTIVATIONS = (torch.bfloat16, torch.float16, torch.float32)
_BACKWARD_PROGRAMS = 1056


@triton.jit(do_not_specialize=["M", "eps"])
def norm_fwd_kernel(
    x_p, residual_p, weight_p, y_p, stream_p, scale_p, M, eps,
    D: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, WRITE_STREAM: tl.constexpr,
):  # fmt: skip
    """Writes y (M, D), the stream (M, D) fp32 and the scale s (M)."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, BLOCK)
    mask = (row < M)[:, None] & (d < D)[None, :]  # [ROWS, BLOCK]
    at = row[:, None] * D + d[None, :]
    r = tl.load(x_p + at, mask=mask, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        r += tl.load(residual_p + at, mask=mask, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(r * r, axis=1) / D + eps)
    weight = tl.load(weight_p + d, mask=d < D, other=0.0).to(tl.float32)
    y = r * scale[:, None] * weight[None, :]
    tl.store(y_p + at, y.to(y_p.dtype.element_ty), mask=mask)
    if WRITE_STREAM:
        tl.store(stream_p + at, r, mask=mask)
    tl.store(scale_p + row, scale, mask=row < M)


@triton.jit(do_not_specialize=["M"])
def norm_bwd_kernel(
    stream_p, weight_p, scale_p, g_p, g_stream_p, dx_p, dstream_p, dweight_p, M,
    D: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, HAS_G_STREAM: tl.constexpr,
    WRITE_STREAM: tl.constexpr,
):  # fmt: skip
    """Writes dx (M, D) and, for a residual, its fp32 gradient; dweight (programs, D) holds partial sums."""
    d = tl.arange(0, BLOCK)
    weight = tl.load(weight_p + d, mask=d < D, other=0.0).to(tl.float32)
    # Of every row of a tile by itself: a sum over rows in the loop would go through shared memory each time.
    total = tl.zeros([ROWS, BLOCK], tl.float32)
    first = tl.program_id(0)
    for tile in range(first, tl.cdiv(M, ROWS), tl.num_programs(0)):
        row = first.to(tl.int64) * 0 + tile * ROWS + tl.arange(0, ROWS)
        mask = (row < M)[:, None] & (d < D)[None, :]
        at = row[:, None] * D + d[None, :]
        scale = tl.load(scale_p + row, mask=row < M, other=0.0)
        n = tl.load(stream_p + at, mask=mask, other=0.0).to(tl.float32) * scale[:, None]
        g = tl.load(g_p + at, mask=mask, other=0.0).to(tl.float32)
        q = g * weight[None, :]
        dr = scale[:, None] * (q - n * (tl.sum(q * n, axis=1) / D)[:, None])
        if HAS_G_STREAM:
            dr += tl.load(g_stream_p + at, mask=mask, other=0.0)
        tl.store(dx_p + at, dr.to(dx_p.dtype.element_ty), mask=mask)
        if WRITE_STREAM:
            tl.store(dstream_p + at, dr, mask=mask)
        total += g * n
    tl.store(dweight_p + first.to(tl.int64) * D + d, tl.sum(total, axis=0), mask=d < D)


def unsupported_reason(x: Tensor, weight: Tensor, residual: Tensor | None) -> str | None:
    """Why these kernels cannot run this call, or None where they can."""
    if x.shape[-1] > MAX_CHANNELS:
        return f"more than {MAX_CHANNELS} channels"
    if x.dtype not in _ACTIVATIONS or weight.dtype == torch.float64:
        return f"{x.dtype} inputs with {weight.dtype} weights"
    if residual is not None and residual.dtype == torch.float64:
        return "a float64 residual"
    return None


def _tile(channels: int) -> tuple[int, int, int]:
    """(BLOCK, ROWS, warps)."""
    block = max(power_of_2(channels), 16)
    rows = max(2048 // block, 1)
    return block, rows, min(max(block * rows // 512, 1), 8)


def _backward_tile(channels: int) -> tuple[int, int, int]:
    """The same for backward: of two rows of 513 to 1,024 channels, too many numbers for the registers of a lane
    (0.0774 instead of 0.0677 ms at (8, 2048, 768); docs/log.md)."""
    block, rows, warps = _tile(channels)
    return block, 1 if block == 1024 else rows, warps


def _forward(
    rows: Tensor, weight: Tensor, eps: float, added: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """(y in `dtype`, stream fp32, scale of each row fp32); all arguments contiguous."""
    channels = rows.shape[-1]
    y = torch.empty(rows.shape, dtype=dtype, device=rows.device)
    own_stream = added is None and rows.dtype == torch.float32
    stream = rows if own_stream else torch.empty(rows.shape, dtype=torch.float32, device=rows.device)
    count = rows.numel() // channels
    scale = torch.empty(count, dtype=torch.float32, device=rows.device)
    block, tile, warps = _tile(channels)
    with on(rows.device):
        launch(
            norm_fwd_kernel, cdiv(count, tile),
            rows, added if added is not None else rows, weight, y, stream, scale, count, eps,
            D=channels, BLOCK=block, ROWS=tile, HAS_RESIDUAL=added is not None, WRITE_STREAM=not own_stream,
            num_warps=warps,
        )  # fmt: skip
    return y, stream, scale


def norm_of_stream(stream: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """y in `dtype` as the forward made it that left this stream (..., D)."""
    return _forward(stream.contiguous(), weight.contiguous(), eps, None, dtype)[0]


class _NormFn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        w = weight.contiguous()
        y, stream, scale = _forward(
            x.contiguous(), w, eps, None if residual is None else residual.contiguous(), x.dtype
        )
        ctx.save_for_backward(stream, w, scale)
        ctx.dtypes = (x.dtype, None if residual is None else residual.dtype)
        return y, stream.view_as(stream) if stream is x else stream

    @staticmethod
    def backward(ctx: Any, g_y: Tensor | None, g_stream: Tensor | None) -> Any:
        stream, w, scale = ctx.saved_tensors
        x_dtype, residual_dtype = ctx.dtypes
        channels = stream.shape[-1]
        count = scale.numel()
        g = torch.zeros(stream.shape, dtype=x_dtype, device=w.device) if g_y is None else g_y.contiguous()
        g_stream = None if g_stream is None else g_stream.float().contiguous()
        dx = torch.empty(stream.shape, dtype=x_dtype, device=w.device)
        own = residual_dtype is not None and x_dtype != torch.float32
        dr = torch.empty_like(stream) if own else dx
        block, tile, warps = _backward_tile(channels)
        programs = min(cdiv(count, tile), _BACKWARD_PROGRAMS)
        dweight = torch.empty(programs, channels, dtype=torch.float32, device=w.device)
        with on(w.device):
            launch(
                norm_bwd_kernel, programs,
                stream, w, scale, g, g_stream if g_stream is not None else g, dx, dr, dweight, count,
                D=channels, BLOCK=block, ROWS=tile, HAS_G_STREAM=g_stream is not None, WRITE_STREAM=own,
                num_warps=warps,
            )  # fmt: skip
        found = (
            dx,
            dweight.sum(0).to(w.dtype),
            None if residual_dtype is None else dr.to(residual_dtype),
        )
        d_x, d_weight, d_residual = refuse_second_order("rms_norm", found)
        return d_x, d_weight, None, d_residual


def norm_triton(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None) -> tuple[Tensor, Tensor]:
    """(y in x.dtype, residual stream fp32), as `norm_torch`, of calls for which `unsupported_reason` has none."""
    if not will_differentiate(x, weight, residual):
        added = None if residual is None else residual.contiguous()
        return _forward(x.contiguous(), weight.contiguous(), eps, added, x.dtype)[:2]
    return _NormFn.apply(x, weight, eps, residual)
