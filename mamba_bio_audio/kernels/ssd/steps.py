"""Step sizes of Mamba-2 and the sums of log decays that follow from them, in Triton, forward and backward.

    dt = clamp(softplus(raw + bias), low, high)        l = sums within chunks of dt A

Letters as in `cpu.py`.
"""

# mypy: disable-error-code="no-untyped-def, assignment"
import torch
import triton
import triton.language as tl
from torch import Tensor

from mamba_bio_audio.kernels.conv.gpu import sigmoid
from mamba_bio_audio.kernels.launch import launch, on, power_of_2
from mamba_bio_audio.kernels.ssd.launch import Plan
from mamba_bio_audio.kernels.ssd.parts import LOG2E

_LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def softplus(x):
    """log(1 + exp(x)), as exact for large negative x, where it is exp(x), as elsewhere; linear above 20."""
    e = tl.exp2(-tl.abs(x) * LOG2E)
    # log(1 + e) = e - e^2 / 2 + e^3 / 3 where 1 + e would lose e.
    small = e * (1.0 - e * (0.5 - e * (1.0 / 3.0)))
    return tl.maximum(x, 0.0) + tl.where(e < 0.01, small, tl.log2(1.0 + e) * _LN2)


@triton.jit(do_not_specialize=["L", "CHUNKS"])
def steps_fwd_kernel(
    raw_p, bias_p, A_p, dt_p, l_p, L, CHUNKS, raw_batch, low, high,
    H: tl.constexpr, BH: tl.constexpr, Q: tl.constexpr, RAW_ROW: tl.constexpr, CLAMP: tl.constexpr,
):  # fmt: skip
    """Writes dt (B, H, L) and l (B, H, CHUNKS Q), in bits, of raw (B, L, H)."""
    pid = tl.program_id(0)
    chunk = pid % CHUNKS
    batch = (pid // CHUNKS).to(tl.int64)
    h = tl.arange(0, BH)
    t = chunk.to(tl.int64) * Q + tl.arange(0, Q)
    mask = (t < L)[:, None] & (h < H)[None, :]
    raw = tl.load(raw_p + batch * raw_batch + t[:, None] * RAW_ROW + h[None, :], mask=mask, other=0.0).to(tl.float32)
    bias = tl.load(bias_p + h, mask=h < H, other=0.0)
    dt = softplus(raw + bias[None, :])
    if CLAMP:
        dt = tl.minimum(tl.maximum(dt, low), high)
    dt = tl.where(mask, dt, 0.0)
    A = tl.load(A_p + h, mask=h < H, other=0.0)
    l = tl.cumsum(dt * (A * LOG2E)[None, :], axis=0)
    tl.store(dt_p + (batch * H + h)[None, :] * L + t[:, None], dt, mask=mask)
    tl.store(l_p + (batch * H + h)[None, :] * CHUNKS * Q + t[:, None], l, mask=(t >= 0)[:, None] & (h < H)[None, :])


@triton.jit(do_not_specialize=["L", "CHUNKS"])
def steps_bwd_kernel(
    raw_p, bias_p, A_p, dt_p, dl_p, dsource_p, reset_p, draw_p, sums_p, L, CHUNKS, raw_batch, draw_batch, low, high,
    H: tl.constexpr, BH: tl.constexpr, Q: tl.constexpr, RAW_ROW: tl.constexpr, DRAW_ROW: tl.constexpr,
    COLUMNS: tl.constexpr, CLAMP: tl.constexpr, HAS_RESET: tl.constexpr,
):  # fmt: skip
    """Writes draw (B, L, COLUMNS), zeros beyond H, and sums (B CHUNKS, 2, H): of dbias, and of dA.

    dl (B, H, CHUNKS Q) and dsource (B, H, L) are the gradients of l and of dt as a source.
    """
    pid = tl.program_id(0)
    chunk = pid % CHUNKS
    batch = (pid // CHUNKS).to(tl.int64)
    h = tl.arange(0, BH)
    t = chunk.to(tl.int64) * Q + tl.arange(0, Q)
    live = t < L
    mask = live[:, None] & (h < H)[None, :]
    raw = tl.load(raw_p + batch * raw_batch + t[:, None] * RAW_ROW + h[None, :], mask=mask, other=0.0).to(tl.float32)
    bias = tl.load(bias_p + h, mask=h < H, other=0.0)
    A = tl.load(A_p + h, mask=h < H, other=0.0)
    of_head = (batch * H + h)[None, :]
    dt = tl.load(dt_p + of_head * L + t[:, None], mask=mask, other=0.0)
    dl = tl.load(dl_p + of_head * CHUNKS * Q + t[:, None], mask=(h < H)[None, :], other=0.0)
    da = tl.cumsum(dl, axis=0, reverse=True)
    if HAS_RESET:
        da = tl.where((tl.load(reset_p + batch * L + t, mask=live, other=0) != 0)[:, None], 0.0, da)
    da = tl.where(mask, da, 0.0)
    ddt = tl.load(dsource_p + of_head * L + t[:, None], mask=mask, other=0.0) + da * A[None, :]
    slope = sigmoid(raw + bias[None, :])
    if CLAMP:
        free = softplus(raw + bias[None, :])
        slope = tl.where((free >= low) & (free <= high), slope, 0.0)
    draw = tl.where(mask, ddt * slope, 0.0)
    to = draw_p + batch * draw_batch + t[:, None] * DRAW_ROW + h[None, :]
    tl.store(to, draw.to(draw_p.dtype.element_ty), mask=live[:, None] & (h < COLUMNS)[None, :])
    sums_p += pid.to(tl.int64) * (2 * H) + h
    tl.store(sums_p, tl.sum(draw, axis=0), mask=h < H)
    tl.store(sums_p + H, tl.sum(da * dt, axis=0), mask=h < H)


def steps_forward(
    raw: Tensor, bias: Tensor, A: Tensor, limit: tuple[float, float] | None, plan: Plan
) -> tuple[Tensor, Tensor]:
    """dt (B, H, L) and l (B, H, chunks Q), fp32, of raw (B, L, H) with adjacent heads, bias and A (H) in fp32."""
    batch, length, heads = raw.shape
    dt = torch.empty(batch, heads, length, dtype=torch.float32, device=raw.device)
    sums = torch.empty(batch, heads, plan.chunks * plan.Q, dtype=torch.float32, device=raw.device)
    low, high = limit or (0.0, 0.0)
    with on(raw.device):
        launch(
            steps_fwd_kernel, batch * plan.chunks,
            raw, bias, A, dt, sums, length, plan.chunks, raw.stride(0), low, high,
            H=heads, BH=power_of_2(heads), Q=plan.Q, RAW_ROW=raw.stride(1), CLAMP=limit is not None, num_warps=4,
        )  # fmt: skip
    return dt, sums


def steps_backward(
    raw: Tensor,
    bias: Tensor,
    A: Tensor,
    limit: tuple[float, float] | None,
    dt: Tensor,
    dl: Tensor,
    dsource: Tensor,
    reset: Tensor | None,
    draw: Tensor,
    plan: Plan,
) -> tuple[Tensor, Tensor]:
    """Writes the gradient of raw to draw (B, L, columns), zeros beyond H; gives those of bias and A (H).

    Args:
        raw, bias, A, limit, plan: as of forward.
        dt: of forward.
        dl: gradient of l (B, H, chunks Q).
        dsource: gradient of dt but for l (B, H, L).
        reset: uint8 (B, L) or None.
        draw: with adjacent columns.
    """
    batch, length, heads = raw.shape
    sums = torch.empty(batch * plan.chunks, 2, heads, dtype=torch.float32, device=raw.device)
    low, high = limit or (0.0, 0.0)
    columns = draw.shape[2]
    with on(raw.device):
        launch(
            steps_bwd_kernel, batch * plan.chunks,
            raw, bias, A, dt, dl, dsource, reset if reset is not None else dl, draw, sums,
            length, plan.chunks, raw.stride(0), draw.stride(0), low, high,
            H=heads, BH=power_of_2(max(heads, columns)), Q=plan.Q, RAW_ROW=raw.stride(1), DRAW_ROW=draw.stride(1),
            COLUMNS=columns, CLAMP=limit is not None, HAS_RESET=reset is not None, num_warps=4,
        )  # fmt: skip
    total = sums.sum(0)
    return total[0], total[1]
