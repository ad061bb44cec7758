"""One decoding step of a Mamba layer in five launches: three products of torch's, and two kernels for all between them.

    x', z = split(in_proj(x))                     torch
    u = silu(conv(tail, x'))                      conv_step_kernel, which writes the next tail
    r, B, C = split(x_proj(u))                    torch
    dt = softplus(dt_proj(r) + bias)              scan_step_kernel, to the end
    h = exp(dt A) h + dt u B                      fp32
    y = out_proj((sum_n C h + D u) * silu(z))     torch

Mamba (arXiv 2312.00752) sections 3.2 and 3.4. What many positions need (chunks, tiles of time, states for a backward) only
costs time here. States are read once and written once; dt is not rounded on its way, as it is between operations.

Letters: B rows, E inner channels, N states (NP: padded to a power of two), R delta rank, P the same with padding, W
convolution width. A program's state tile [NP, BD] lies as in `scan/forward.py`, by the same argument `zero`.
"""

# mypy: disable-error-code="no-untyped-def, assignment, var-annotated"
# Triton code: tuples grow in unrolled loops.
# ruff: noqa: RUF005

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from mamba_bio_audio.kernels.launch import cdiv, launch, on, power_of_2
from mamba_bio_audio.kernels.made_once import made_once
from mamba_bio_audio.kernels.scan.parts import LOG2E, sigmoid, softplus

MAX_STATES = 32
_BLOCK = 128
_CONV_ROWS = 4
# Rows of a program of the scan's step, which share A and dt_proj: where so many programs are left.
_ROWS = (4, 2)
_PROGRAMS = 1024
_RANKS = 16  # of dt_proj at once


@triton.jit
def conv_step_kernel(
    x_p, tail_p, w_p, bias_p, u_p, next_p, rows, X_ROW: tl.constexpr, E: tl.constexpr, W: tl.constexpr, BD: tl.constexpr,
    ROWS: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """Writes u (B, E) and the next tail (B, W-1, E) from x (B, X_ROW, of which E) and the tail; w (W, E), bias (E) fp32."""
    BLOCKS: tl.constexpr = (E + BD - 1) // BD
    pid = tl.program_id(0)
    d = (pid % BLOCKS) * BD + tl.arange(0, BD)
    row = (pid // BLOCKS).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    mask_d = d < E
    mask = (row < rows)[:, None] & mask_d[None, :]
    at = row[:, None] * ((W - 1) * E) + d[None, :]
    x = tl.load(x_p + row[:, None] * X_ROW + d[None, :], mask=mask, other=0.0)
    past = ()
    for k in tl.static_range(W - 1):
        past = past + (tl.load(tail_p + at + k * E, mask=mask, other=0.0),)
    pre = tl.load(w_p + (W - 1) * E + d, mask=mask_d, other=0.0)[None, :] * x.to(tl.float32)
    if HAS_BIAS:
        pre += tl.load(bias_p + d, mask=mask_d, other=0.0)[None, :]
    for lag in tl.static_range(1, W):
        weight = tl.load(w_p + (W - 1 - lag) * E + d, mask=mask_d, other=0.0)
        pre += weight[None, :] * past[W - 1 - lag].to(tl.float32)
    u = pre * sigmoid(pre)
    tl.store(u_p + row[:, None] * E + d[None, :], u.to(u_p.dtype.element_ty), mask=mask)
    for k in tl.static_range(1, W - 1):
        tl.store(next_p + at + (k - 1) * E, past[k], mask=mask)
    tl.store(next_p + at + (W - 2) * E, x, mask=mask)


@triton.jit
def load_row(h_p, u_p, z_p, row, rows, down, mask, mask_d, E: tl.constexpr, N: tl.constexpr, Z_ROW: tl.constexpr):
    """State, u and z of a row; zeros where there is none."""
    live = row < rows
    h = tl.load((h_p + row * (N * E))[None, :] + down, mask=mask & live, other=0.0)
    u = tl.load(u_p + row * E, mask=mask_d & live, other=0.0)
    return h, u, tl.load(z_p + row * Z_ROW, mask=mask_d & live, other=0.0)


@triton.jit(do_not_specialize=["group", "zero"])
def scan_step_kernel(
    u_p, z_p, projected_p, dt_proj_p, bias_p, A_p, skip_p, h_p, out_p, next_p, rows, group, zero,
    Z_ROW: tl.constexpr, E: tl.constexpr, N: tl.constexpr, NP: tl.constexpr, P: tl.constexpr, RANKS: tl.constexpr,
    BD: tl.constexpr, ACCURATE: tl.constexpr,
):  # fmt: skip
    """Writes out (B, E) and the next state (B, N, E).

    u (B, E), z (B, Z_ROW, of which E), projected (B, P + 2 N): of the activation dtype; dt_proj (P, E) likewise; bias and
    skip (E), A (N, E) and h (B, N, E) fp32.
    """
    BLOCKS: tl.constexpr = (E + BD - 1) // BD
    pid = tl.program_id(0)
    d = (pid % BLOCKS) * BD + tl.arange(0, BD)
    first = (pid // BLOCKS).to(tl.int64) * group
    n = tl.arange(0, NP)
    mask_d = d < E
    mask_n = n < N
    # Constants beside one address of a channel; `zero` keeps loads from vectorising along the channels.
    channel = d + zero
    down = (n * E)[:, None]
    mask = mask_n[:, None] & mask_d[None, :]
    A = tl.load((A_p + channel)[None, :] + down, mask=mask, other=0.0) * LOG2E
    bias = tl.load(bias_p + d, mask=mask_d, other=0.0)
    skip = tl.load(skip_p + d, mask=mask_d, other=0.0)
    # A row's numbers are loaded while the row before is computed, before its stores: no load moves across a store.
    h, u, z = load_row(h_p + channel, u_p + d, z_p + d, first, rows, down, mask, mask_d, E, N, Z_ROW)
    for row in range(first, tl.minimum(first + group, rows)):
        end = tl.minimum(first + group, rows)
        following = load_row(h_p + channel, u_p + d, z_p + d, row + 1, end, down, mask, mask_d, E, N, Z_ROW)
        from_p = projected_p + row * (P + 2 * N)
        B = tl.load(from_p + P + n, mask=mask_n, other=0.0).to(tl.float32)
        C = tl.load(from_p + P + N + n, mask=mask_n, other=0.0).to(tl.float32)
        dt = bias
        for low in tl.static_range(0, P, RANKS):
            k = low + tl.arange(0, RANKS)
            ranks = tl.load(from_p + k, mask=(k < P), other=0.0).to(tl.float32)
            weights = (dt_proj_p + channel)[None, :] + (k * E)[:, None]
            weight = tl.load(weights, mask=(k < P)[:, None] & mask_d[None, :], other=0.0)
            dt += tl.sum(ranks[:, None] * weight.to(tl.float32), axis=0)
        dt = softplus(dt, ACCURATE)
        u32, z32 = u.to(tl.float32), z.to(tl.float32)
        h = tl.exp2(dt[None, :] * A) * h + (dt * u32)[None, :] * B[:, None]
        y = (tl.sum(h * C[:, None], axis=0) + skip * u32) * z32 * sigmoid(z32)
        tl.store(out_p + row * E + d, y.to(out_p.dtype.element_ty), mask=mask_d)
        tl.store((next_p + channel + row * (N * E))[None, :] + down, h, mask=mask)
        h, u, z = following


def _transposed(t: Tensor) -> Tensor:
    return t.t().contiguous()


def mixer_step(
    x: Tensor,
    tail: Tensor,
    h: Tensor,
    *,
    in_proj: Tensor,
    in_bias: Tensor | None,
    conv: Tensor,
    conv_bias: Tensor | None,
    x_proj: Tensor,
    dt_proj: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    out_proj: Tensor,
    out_bias: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """One step of a real, selective mixer; without gradients.

    Args:
        x: (B, 1, M); of the dtype of the matrices, as the tail.
        tail: (B, W-1, E), contiguous.
        h: (B, N, E) fp32, contiguous.
        in_proj, in_bias, x_proj, dt_proj, out_proj, out_bias: (2 E, M), (2 E), (P + 2 N, E), (E, P), (M, E), (M).
        conv, conv_bias, dt_bias, A, D: (E, W), (E), (E), (1, N, E), (E), contiguous fp32.

    Returns:
        y (B, 1, M), the next tail and the next h, of the shapes of these.
    """
    rows = len(x)
    inner, rank, states, width = out_proj.shape[1], dt_proj.shape[1], A.shape[1], conv.shape[1]
    xz = F.linear(x[:, 0], in_proj, in_bias)
    u = torch.empty(rows, inner, dtype=xz.dtype, device=x.device)
    out, next_tail, next_h = torch.empty_like(u), torch.empty_like(tail), torch.empty_like(h)
    blocks, taps = cdiv(inner, _BLOCK), made_once(_transposed, conv)
    with on(x.device):
        launch(
            conv_step_kernel, cdiv(rows, _CONV_ROWS) * blocks,
            xz, tail, taps, conv_bias if conv_bias is not None else taps, u, next_tail, rows,
            X_ROW=xz.stride(0), E=inner, W=width, BD=_BLOCK, ROWS=_CONV_ROWS, HAS_BIAS=conv_bias is not None, num_warps=4,
        )  # fmt: skip
    projected = F.linear(u, x_proj)
    padded = max(power_of_2(states), 2)
    group = next((some for some in _ROWS if cdiv(rows, some) * blocks >= _PROGRAMS), 1)
    with on(x.device):
        launch(
            scan_step_kernel, cdiv(rows, group) * blocks,
            u, xz[:, inner:], projected, made_once(_transposed, dt_proj), dt_bias, A, D, h, out, next_h, rows, group, 0,
            Z_ROW=xz.stride(0), E=inner, N=states, NP=padded, P=rank, RANKS=_RANKS, BD=_BLOCK,
            ACCURATE=xz.dtype == torch.float32, num_warps=4,
        )  # fmt: skip
    return F.linear(out, out_proj, out_bias)[:, None], next_tail, next_h
