"""The causal convolution in vectorised PyTorch, on any device: the CPU path.

Equation and shapes as in `reference.py`. Blocks of time keep a CPU's cache; the backward recomputes what comes before the
activation.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_bio_audio.kernels.conv.tail import segments
from mamba_bio_audio.kernels.differentiable_once import refuse_second_order

_BLOCK_NUMBERS = 1 << 17  # numbers of (B, T, D) worked on at a time
_BLOCK_NUMBERS_GPU = 1 << 28


def conv_torch(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = "silu",
    tail: Tensor | None = None,
    reset: Tensor | None = None,
) -> Tensor:
    """Shifted multiply-adds over blocks of time; the backward recomputes the value before the activation."""
    silu = activation == "silu"
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias, tail)):
        return _ConvFn.apply(x, weight, bias, tail, reset, silu)
    with torch.no_grad():
        return _forward(_Conv(x, weight, bias, tail, reset), silu)


class _Conv:
    def __init__(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, tail: Tensor | None, reset: Tensor | None
    ) -> None:
        self.dtype = torch.float64 if torch.float64 in (x.dtype, weight.dtype) else torch.float32
        self.x, self.tail = x, tail
        self.width = weight.shape[1]
        self.taps = weight.to(self.dtype).t().contiguous()  # (W, D)
        self.bias = None if bias is None else bias.to(self.dtype)
        self.seen = None if reset is None else F.pad(segments(reset), (self.width - 1, 0))  # (B, W-1+L)
        batch, length, channels = x.shape
        # Blocks keep a CPU's cache; elsewhere they only cost launches.
        numbers = _BLOCK_NUMBERS if x.device.type == "cpu" else _BLOCK_NUMBERS_GPU
        self.block = max(self.width, numbers // max(batch * channels, 1), 1)
        self.starts = range(0, length, self.block)

    def inputs(self, start: int, stop: int) -> Tensor:
        """Inputs start-(W-1) .. stop in the compute dtype, (B, W-1+T, D)."""
        halo = self.width - 1
        if start > 0:  # blocks are at least W long
            return self.x[:, start - halo : stop].to(self.dtype)
        batch, _, channels = self.x.shape
        out = torch.empty(batch, halo + stop - start, channels, dtype=self.dtype, device=self.x.device)
        out[:, :halo] = 0 if self.tail is None else self.tail
        out[:, halo:] = self.x[:, :stop]
        return out

    def allowed(self, start: int, stop: int, lag: int) -> Tensor | None:
        """Whether position t may read t - lag, (B, T, 1); None if always."""
        if self.seen is None or lag == 0:
            return None
        at = self.width - 1 + start
        size = stop - start
        return (self.seen[:, at : at + size] == self.seen[:, at - lag : at - lag + size]).unsqueeze(2)

    def tap(self, inputs: Tensor, start: int, stop: int, k: int) -> Tensor:
        value = inputs[:, k : k + stop - start]
        allowed = self.allowed(start, stop, self.width - 1 - k)
        return value if allowed is None else torch.where(allowed, value, torch.zeros_like(value))

    def before_activation(self, inputs: Tensor, start: int, stop: int) -> Tensor:
        first = self.tap(inputs, start, stop, 0)
        out = first * self.taps[0] if self.bias is None else torch.addcmul(self.bias, first, self.taps[0])
        for k in range(1, self.width):
            out.addcmul_(self.tap(inputs, start, stop, k), self.taps[k])
        return out


def _forward(conv: _Conv, silu: bool) -> Tensor:
    x = conv.x
    length = x.shape[1]
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    for start in conv.starts:
        stop = min(start + conv.block, length)
        value = conv.before_activation(conv.inputs(start, stop), start, stop)
        out[:, start:stop] = F.silu(value, inplace=True) if silu else value
    return out


class _ConvFn(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        tail: Tensor | None,
        reset: Tensor | None,
        silu: bool,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, bias, tail, reset)
        ctx.silu = silu
        return _forward(_Conv(x, weight, bias, tail, reset), silu)

    @staticmethod
    def backward(ctx: Any, g_out: Tensor) -> Any:
        x, weight, bias, tail, reset = ctx.saved_tensors
        with torch.no_grad():
            grads = _backward(_Conv(x, weight, bias, tail, reset), ctx.silu, g_out, weight, bias)
        return *refuse_second_order("causal_conv1d", grads), None, None


def _backward(conv: _Conv, silu: bool, g_out: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor | None, ...]:
    x, width = conv.x, conv.width
    batch, length, channels = x.shape
    halo = width - 1
    # Gradient of the inputs before the span and inside it; blocks add into their halo.
    g_inputs = torch.zeros(batch, halo + length, channels, dtype=conv.dtype, device=x.device)
    g_taps = torch.zeros_like(conv.taps)
    g_bias = torch.zeros(channels, dtype=conv.dtype, device=x.device)
    for start in conv.starts:
        stop = min(start + conv.block, length)
        inputs = conv.inputs(start, stop)
        g = g_out[:, start:stop].to(conv.dtype)
        if silu:
            g = torch.ops.aten.silu_backward(g, conv.before_activation(inputs, start, stop))
        g_bias += g.sum((0, 1))
        for k in range(width):
            g_taps[k] += (conv.tap(inputs, start, stop, k) * g).sum((0, 1))
            allowed = conv.allowed(start, stop, halo - k)
            part = g if allowed is None else torch.where(allowed, g, torch.zeros_like(g))
            g_inputs[:, start + k : stop + k].addcmul_(part, conv.taps[k])
    return (
        g_inputs[:, halo:].to(x.dtype),
        g_taps.t().to(weight.dtype),
        None if bias is None else g_bias.to(bias.dtype),
        None if conv.tail is None else g_inputs[:, :halo].to(conv.tail.dtype),
    )
