"""Short depthwise causal convolution in Triton, forward and backward, channels last.

    pre_t = bias + sum_k weight[:, k] x_(t - W + 1 + k)        out_t = silu(pre_t)

Shapes, tail and reset as in `reference.py`; sums in fp32. Mamba (arXiv 2312.00752) section 3.4, figure 3.

One program owns BD channels and ROWS consecutive steps of one batch row and walks down them with the last W - 1 inputs
in registers, so every input is read once. The backward walks the same way, recomputing pre: the gradient of step t goes
into W running sums, one for each input that it touches, and the oldest is finished and leaves. It goes on W - 1 steps
past its own rows, whose inputs still receive from there. Weight and bias gradients leave as one partial sum per program
and are added in a fixed order: deterministic, no atomics.
"""

# mypy: disable-error-code="no-untyped-def, assignment, var-annotated"
# Triton code: tuples grow in unrolled loops, and `if` on a constexpr must stand alone.
# ruff: noqa: RUF005

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from mamba_bio_audio.kernels.differentiable_once import refuse_second_order, will_differentiate
from mamba_bio_audio.kernels.launch import cdiv, launch, on, power_of_2

MAX_WIDTH = 8
_ACTIVATIONS = (torch.bfloat16, torch.float16, torch.float32)
# Steps of a program of forward, and how many it loads at once; few where a single step is decoded, which is most of what a
# program does then (1.12x to 1.29x of a whole decoding step on an H200).
_ROWS = 32
_FEW_ROWS = 4
_AT_ONCE = 8
# Up to so many programs of 128 channels, forward has twice as many of 64 (benchmarks/results/conv_forms_h200.txt).
_FEW_PROGRAMS = 4096
# Of a program of backward, which goes W - 1 steps past its rows: the more the better, as long as so many programs are
# left (benchmarks/results/conv_backward_rows_h100.txt).
_BACKWARD_ROWS = (256, 128, 64)
_BACKWARD_PROGRAMS = 2048
_UNROLL = 4

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x)) as the square of a reciprocal square root: no division sequence, 0 where exp overflows."""
    q = tl.rsqrt(1.0 + tl.exp2(-x * LOG2E))
    return q * q


@triton.jit
def load_input(x_p, tail_p, t, mask, D, X_ROW, W, HAS_TAIL):  # fmt: skip
    """Input of step t [BD] in fp32; steps before 0 lie in the tail, or are 0."""
    x = tl.load(x_p + t * X_ROW, mask=mask & (t >= 0), other=0.0).to(tl.float32)
    if HAS_TAIL:
        x += tl.load(tail_p + (t + W - 1) * D, mask=mask & (t < 0), other=0.0).to(tl.float32)
    return x


@triton.jit
def load_keep(reset_p, t, L):
    """0 where the sequence starts anew at step t, else 1."""
    return tl.where(tl.load(reset_p + t, mask=(t >= 0) & (t < L), other=0) != 0, 0.0, 1.0)


@triton.jit(do_not_specialize=["L", "CHUNKS"])
def conv_fwd_kernel(
    x_p, w_p, bias_p, tail_p, reset_p, out_p, L, CHUNKS, x_batch,
    D: tl.constexpr, W: tl.constexpr, W_TAP: tl.constexpr, W_CHANNEL: tl.constexpr, BD: tl.constexpr, ROWS: tl.constexpr,
    UNROLL: tl.constexpr, X_ROW: tl.constexpr,
    SILU: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_TAIL: tl.constexpr, HAS_RESET: tl.constexpr,
):  # fmt: skip
    """Writes out (B, L, D)."""
    BLOCKS: tl.constexpr = (D + BD - 1) // BD
    pid = tl.program_id(0)
    d = (pid % BLOCKS) * BD + tl.arange(0, BD)
    mask = d < D
    begin = ((pid // BLOCKS) % CHUNKS).to(tl.int64) * ROWS
    batch = (pid // BLOCKS // CHUNKS).to(tl.int64)
    x_p += batch * x_batch + d
    tail_p += batch * ((W - 1) * D) + d
    out_p += batch * L * D + d
    reset_p += batch * L
    weights = ()
    past = ()
    keeps = ()
    for k in tl.static_range(W):
        weights = weights + (tl.load(w_p + k * W_TAP + d * W_CHANNEL, mask=mask, other=0.0).to(tl.float32),)
    for k in tl.static_range(W - 1):
        t = begin - (W - 1) + k
        past = past + (load_input(x_p, tail_p, t, mask, D, X_ROW, W, HAS_TAIL),)
        keep = 1.0
        if HAS_RESET:
            keep = load_keep(reset_p, t, L)
        keeps = keeps + (keep,)
    bias = tl.zeros([BD], tl.float32)
    if HAS_BIAS:
        bias = tl.load(bias_p + d, mask=mask, other=0.0).to(tl.float32)
    for i in range(ROWS // UNROLL):
        # All loads before the first store: the compiler moves no load across one.
        xs = ()
        for j in tl.static_range(UNROLL):
            t = begin + i * UNROLL + j
            xs = xs + (tl.load(x_p + t * X_ROW, mask=mask & (t < L), other=0.0),)
        for j in tl.static_range(UNROLL):
            t = begin + i * UNROLL + j
            live = mask & (t < L)
            x = xs[j].to(tl.float32)
            pre = bias + weights[W - 1] * x
            keep = 1.0
            if HAS_RESET:
                keep = load_keep(reset_p, t, L)
            through = keep  # 1 while no reset lies between the input and step t
            for lag in tl.static_range(1, W):
                if HAS_RESET:
                    pre += weights[W - 1 - lag] * (past[W - 1 - lag] * through)
                    through = through * keeps[W - 1 - lag]
                else:
                    pre += weights[W - 1 - lag] * past[W - 1 - lag]
            if SILU:
                pre = pre * sigmoid(pre)
            tl.store(out_p + t * D, pre.to(out_p.dtype.element_ty), mask=live)
            past = past[1:] + (x,)
            keeps = keeps[1:] + (keep,)


@triton.jit(do_not_specialize=["L", "CHUNKS"])
def conv_bwd_kernel(
    x_p, w_p, bias_p, tail_p, reset_p, g_p, dx_p, sums_p, dtail_p, L, CHUNKS, x_batch, g_batch, dx_batch,
    D: tl.constexpr, W: tl.constexpr, W_TAP: tl.constexpr, W_CHANNEL: tl.constexpr, BD: tl.constexpr, ROWS: tl.constexpr,
    UNROLL: tl.constexpr, X_ROW: tl.constexpr,
    G_ROW: tl.constexpr, DX_ROW: tl.constexpr,
    SILU: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_TAIL: tl.constexpr, HAS_RESET: tl.constexpr,
):  # fmt: skip
    """Writes dx (B, L, D), dtail (B, W - 1, D), and sums per program (B * CHUNKS, W + 1, D): dweight, then dbias."""
    BLOCKS: tl.constexpr = (D + BD - 1) // BD
    pid = tl.program_id(0)
    d = (pid % BLOCKS) * BD + tl.arange(0, BD)
    mask = d < D
    part = (pid // BLOCKS).to(tl.int64)
    begin = ((pid // BLOCKS) % CHUNKS).to(tl.int64) * ROWS
    batch = (pid // BLOCKS // CHUNKS).to(tl.int64)
    x_p += batch * x_batch + d
    g_p += batch * g_batch + d
    tail_p += batch * ((W - 1) * D) + d
    dtail_p += batch * ((W - 1) * D) + d
    dx_p += batch * dx_batch + d
    reset_p += batch * L
    weights = ()
    dws = ()
    sums = ()
    past = ()
    keeps = ()
    for k in tl.static_range(W):
        weights = weights + (tl.load(w_p + k * W_TAP + d * W_CHANNEL, mask=mask, other=0.0).to(tl.float32),)
        dws = dws + (tl.zeros([BD], tl.float32),)
    for k in tl.static_range(W - 1):
        t = begin - (W - 1) + k
        past = past + (load_input(x_p, tail_p, t, mask, D, X_ROW, W, HAS_TAIL),)
        sums = sums + (tl.zeros([BD], tl.float32),)
        keep = 1.0
        if HAS_RESET:
            keep = load_keep(reset_p, t, L)
        keeps = keeps + (keep,)
    bias = tl.zeros([BD], tl.float32)
    if HAS_BIAS:
        bias = tl.load(bias_p + d, mask=mask, other=0.0).to(tl.float32)
    dbias = tl.zeros([BD], tl.float32)
    end = tl.minimum(begin + ROWS, L)
    for i in range((ROWS + W - 1 + UNROLL - 1) // UNROLL):
        xs = ()
        gs = ()
        for j in tl.static_range(UNROLL):
            t = begin + i * UNROLL + j
            xs = xs + (tl.load(x_p + t * X_ROW, mask=mask & (t < L), other=0.0),)
            gs = gs + (tl.load(g_p + t * G_ROW, mask=mask & (t < L), other=0.0),)
        for j in tl.static_range(UNROLL):
            t = begin + i * UNROLL + j
            x = xs[j].to(tl.float32)
            g = gs[j].to(tl.float32)
            keep = 1.0
            if HAS_RESET:
                keep = load_keep(reset_p, t, L)
            throughs = (keep,)
            for lag in tl.static_range(2, W):
                throughs = throughs + (throughs[lag - 2] * keeps[W - lag],)
            if SILU:
                pre = bias + weights[W - 1] * x
                for lag in tl.static_range(1, W):
                    if HAS_RESET:
                        pre += weights[W - 1 - lag] * (past[W - 1 - lag] * throughs[lag - 1])
                    else:
                        pre += weights[W - 1 - lag] * past[W - 1 - lag]
                s = sigmoid(pre)
                g = g * s * (1.0 + pre * (1.0 - s))
            own = tl.where(t < end, g, 0.0)  # the steps past this program's rows count in the next one's sums
            dbias += own
            dw_next = ()
            for lag in tl.static_range(W - 1, 0, -1):
                value = past[W - 1 - lag]
                if HAS_RESET:
                    value = value * throughs[lag - 1]
                dw_next = dw_next + (dws[W - 1 - lag] + own * value,)
            dws = dw_next + (dws[W - 1] + own * x,)
            # sums[k] belongs to the input of step t - (W - 1) + k.
            new_sums = ()
            for lag in tl.static_range(W - 1, 0, -1):
                value = weights[W - 1 - lag] * g
                if HAS_RESET:
                    value = value * throughs[lag - 1]
                new_sums = new_sums + (sums[W - 1 - lag] + value,)
            done = t - (W - 1)
            if HAS_TAIL:
                tl.store(
                    dtail_p + t * D, new_sums[0].to(dtail_p.dtype.element_ty), mask=mask & (done < 0) & (begin == 0)
                )
            tl.store(
                dx_p + done * DX_ROW, new_sums[0].to(dx_p.dtype.element_ty), mask=mask & (done >= begin) & (done < end)
            )
            sums = new_sums[1:] + (weights[W - 1] * g,)
            past = past[1:] + (x,)
            keeps = keeps[1:] + (keep,)
    for k in tl.static_range(W):
        tl.store(sums_p + (part * (W + 1) + k) * D + d, dws[k], mask=mask)
    tl.store(sums_p + (part * (W + 1) + W) * D + d, dbias, mask=mask)


def unsupported_reason(x: Tensor, weight: Tensor) -> str | None:
    """Why these kernels cannot run this call, or None where they can."""
    if not 2 <= weight.shape[1] <= MAX_WIDTH:
        return f"width {weight.shape[1]}"
    if x.dtype not in _ACTIVATIONS or weight.dtype == torch.float64:
        return f"{x.dtype} inputs with {weight.dtype} weights"
    return None


def _rows(t: Tensor) -> tuple[Tensor, int, int]:
    if t.stride(2) != 1 and t.shape[2] > 1:
        t = t.contiguous()
    return t, t.stride(1), t.stride(0)


def _block(channels: int) -> int:
    return min(max(power_of_2(channels), 32), 128)


def forward_rows(length: int) -> int:
    """Steps that a program of forward walks down."""
    return _FEW_ROWS if length <= _FEW_ROWS else _ROWS


def conv_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, tail: Tensor | None, reset: Tensor | None, silu: bool
) -> Tensor:
    """out (B, L, D); weight (D, W) with any strides, reset uint8; bias, reset and tail contiguous."""
    batch, length, channels = x.shape
    out = torch.empty(batch, length, channels, dtype=x.dtype, device=x.device)
    x, row, stride = _rows(x)
    block, rows = _block(channels), forward_rows(length)
    chunks = cdiv(length, rows)
    if block == 128 and batch * chunks * cdiv(channels, block) <= _FEW_PROGRAMS:
        block = 64
    with on(x.device):
        launch(
            conv_fwd_kernel, batch * chunks * cdiv(channels, block),
            x, weight, bias if bias is not None else weight, tail if tail is not None else weight,
            reset if reset is not None else weight, out, length, chunks, stride,
            D=channels, W=weight.shape[1], W_TAP=weight.stride(1), W_CHANNEL=weight.stride(0), BD=block, ROWS=rows,
            UNROLL=min(_AT_ONCE, rows), X_ROW=row,
            SILU=silu, HAS_BIAS=bias is not None, HAS_TAIL=tail is not None, HAS_RESET=reset is not None,
            num_warps=1,
        )  # fmt: skip
    return out


class Gradients(NamedTuple):
    """Of one convolution; weight (D, W) and bias (D) in fp32."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    tail: Tensor | None


def conv_backward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tail: Tensor | None,
    reset: Tensor | None,
    silu: bool,
    g: Tensor,
    dx: Tensor | None = None,
) -> Gradients:
    """All gradients from g (B, L, D); `dx` is where to write that of x, any row stride, allocated by default.

    The other arguments are those of `conv_forward`.
    """
    batch, length, channels = x.shape
    width = weight.shape[1]
    if dx is None:
        dx = torch.empty(batch, length, channels, dtype=x.dtype, device=x.device)
    x, x_row, x_stride = _rows(x)
    g, g_row, g_stride = _rows(g)
    block = _block(channels)
    rows = next(
        (r for r in _BACKWARD_ROWS if batch * cdiv(length, r) * cdiv(channels, block) >= _BACKWARD_PROGRAMS),
        _BACKWARD_ROWS[-1],
    )
    chunks = cdiv(length, rows)
    sums = torch.empty(batch * chunks, width + 1, channels, dtype=torch.float32, device=x.device)
    dtail = None if tail is None else torch.empty_like(tail)
    with on(x.device):
        launch(
            conv_bwd_kernel, batch * chunks * cdiv(channels, block),
            x, weight, bias if bias is not None else weight, tail if tail is not None else weight,
            reset if reset is not None else weight, g, dx, sums,
            dtail if dtail is not None else weight, length, chunks, x_stride, g_stride, dx.stride(0),
            D=channels, W=width, W_TAP=weight.stride(1), W_CHANNEL=weight.stride(0), BD=block, ROWS=rows,
            UNROLL=_UNROLL, X_ROW=x_row, G_ROW=g_row, DX_ROW=dx.stride(1),
            SILU=silu, HAS_BIAS=bias is not None, HAS_TAIL=tail is not None, HAS_RESET=reset is not None,
            num_warps=1,
        )  # fmt: skip
    total = sums.sum(0)
    return Gradients(dx, total[:width].t(), None if bias is None else total[width], dtail)


def _ready(
    x: Tensor, weight: Tensor, bias: Tensor | None, tail: Tensor | None, reset: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """The arguments as `conv_forward` takes them; nothing is copied where they lie as usual."""
    return (
        x,
        weight,
        None if bias is None else bias.contiguous(),
        None if tail is None else tail.contiguous(),
        None if reset is None else reset.contiguous().view(torch.uint8),
    )


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
        ready = _ready(x, weight, bias, tail, reset)
        ctx.save_for_backward(*ready)
        ctx.silu = silu
        return conv_forward(*ready, silu)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        x, weight, bias, tail, reset = ctx.saved_tensors
        assert grads[0] is not None
        g = conv_backward(x, weight, bias, tail, reset, ctx.silu, grads[0])
        found = (g.x, g.weight.to(weight.dtype), None if g.bias is None else g.bias.to(bias.dtype), g.tail)
        return (*refuse_second_order("causal_conv1d", found), None, None)


def conv_triton(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = "silu",
    tail: Tensor | None = None,
    reset: Tensor | None = None,
) -> Tensor:
    """out (B, L, D) in x's dtype, as `conv_torch`, of calls for which `unsupported_reason` has none.

    x may have any row stride if its channels are adjacent.
    """
    if not will_differentiate(x, weight, bias, tail):
        return conv_forward(*_ready(x, weight, bias, tail, reset), activation == "silu")
    return _ConvFn.apply(x, weight, bias, tail, reset, activation == "silu")
