"""Root-mean-square normalisation in vectorised PyTorch, on any device: the CPU path. Equation as in `reference.py`."""

from typing import Any

import torch
from torch import Tensor

from mamba_bio_audio.kernels.differentiable_once import refuse_second_order
from mamba_bio_audio.kernels.norm.reference import compute_dtype


def norm_torch(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None) -> tuple[Tensor, Tensor]:
    """As `norm_reference`, with a backward of few passes that keeps only the stream and one number per row."""
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, residual)):
        return _NormFn.apply(x, weight, eps, residual)
    with torch.no_grad():
        y, stream, _ = _forward(x, weight, eps, residual)
    return y, stream


def _forward(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    dtype = compute_dtype(x, residual)
    stream = x.to(dtype) if residual is None else torch.add(x.to(dtype), residual.to(dtype))
    norm = torch.linalg.vector_norm(stream, dim=-1, keepdim=True)
    scale = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    y = (stream * scale).mul_(weight.to(dtype))
    return y.to(x.dtype), stream, scale


class _NormFn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        y, stream, scale = _forward(x, weight, eps, residual)
        ctx.save_for_backward(stream, weight, scale)
        ctx.dtypes = (x.dtype, None if residual is None else residual.dtype)
        return y, stream.view_as(stream) if stream is x else stream

    @staticmethod
    def backward(ctx: Any, g_y: Tensor | None, g_stream: Tensor | None) -> Any:
        stream, weight, scale = ctx.saved_tensors
        x_dtype, residual_dtype = ctx.dtypes
        g_weight = g = None
        with torch.no_grad():
            if g_y is not None:
                g_y = g_y.to(stream.dtype)
                unit = stream * scale
                product = g_y * unit
                g_weight = product.reshape(-1, product.shape[-1]).sum(0).to(weight.dtype)
                weight = weight.to(stream.dtype)
                mean = product.mul_(weight).mean(-1, keepdim=True)
                g = (g_y * weight).sub_(unit.mul_(mean)).mul_(scale)
            if g_stream is not None:
                g_stream = g_stream.to(stream.dtype)
                g = g_stream.clone() if g is None else g.add_(g_stream)
            g_x = None if g is None else g.to(x_dtype)
            g_residual = None if g is None or residual_dtype is None else g.to(residual_dtype)
        g_x, g_weight, g_residual = refuse_second_order("rms_norm", (g_x, g_weight, g_residual))
        return g_x, g_weight, None, g_residual
