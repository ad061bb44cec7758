"""Root-mean-square normalisation of groups of channels with a gate, in plain PyTorch: oracle, and the CPU path.

    gate first:  u = x silu(gate), y = u s weight        s = 1 / sqrt(mean(u^2) + eps)
    gate last:   u = x, y = u s weight silu(gate)

with one mean and one s for each group of channels. Mamba-2 (arXiv 2405.21060) section 7 gates first; retention (arXiv
2307.08621) normalises each head and gates last. With n = u s and q = dL/dn, dL/du = s (q - n mean(q n)).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_bio_audio.kernels.differentiable_once import refuse_second_order, will_differentiate
from mamba_bio_audio.kernels.norm.reference import compute_dtype


def gated_norm_reference(x: Tensor, gate: Tensor, weight: Tensor, eps: float, groups: int, gate_first: bool) -> Tensor:
    """y (..., D) in the dtype of x (..., D), from a gate (..., D) and a weight (D); differentiable to any order."""
    dtype = compute_dtype(x, gate)
    opened = F.silu(gate.to(dtype))
    u = x.to(dtype) * opened if gate_first else x.to(dtype)
    parts = u.unflatten(-1, (groups, -1))
    y = (parts * torch.rsqrt(parts.square().mean(-1, keepdim=True) + eps)).flatten(-2) * weight.to(dtype)
    return (y if gate_first else y * opened).to(x.dtype)


def gated_norm_torch(x: Tensor, gate: Tensor, weight: Tensor, eps: float, groups: int, gate_first: bool) -> Tensor:
    """As `gated_norm_reference`, with a backward that keeps only the inputs."""
    if will_differentiate(x, gate, weight):
        return _GatedNormFn.apply(x, gate, weight, eps, groups, gate_first)
    return gated_norm_reference(x, gate, weight, eps, groups, gate_first)


class _GatedNormFn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor, weight: Tensor, *options: Any) -> Tensor:
        ctx.save_for_backward(x, gate, weight)
        ctx.options = options
        return gated_norm_reference(x, gate, weight, *options)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, gate, weight = ctx.saved_tensors
        with torch.no_grad():
            found = _backward(x, gate, weight, grads[0], *ctx.options)
        return *refuse_second_order("gated_rms_norm", found), None, None, None


def _backward(
    x: Tensor, gate: Tensor, weight: Tensor, g: Tensor, eps: float, groups: int, gate_first: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, gate and weight."""
    dtype = compute_dtype(x, gate)
    given = x.to(dtype)
    wide, g, w = gate.to(dtype), g.to(dtype), weight.to(dtype)
    sigmoid = torch.sigmoid(wide)
    opened = wide * sigmoid
    slope = sigmoid * (1 + wide * (1 - sigmoid))
    u = (given * opened if gate_first else given).unflatten(-1, (groups, -1))
    scale = torch.rsqrt(u.square().mean(-1, keepdim=True) + eps)
    n = u * scale
    to_norm = g if gate_first else g * opened
    d_weight = (to_norm * n.flatten(-2)).reshape(-1, w.shape[0]).sum(0)
    q = (to_norm * w).unflatten(-1, (groups, -1))
    du = (scale * (q - n * (q * n).mean(-1, keepdim=True))).flatten(-2)
    if gate_first:
        dx, d_gate = du * opened, du * given * slope
    else:
        dx, d_gate = du, g * w * n.flatten(-2) * slope
    return dx.to(x.dtype), d_gate.to(gate.dtype), d_weight.to(weight.dtype)
