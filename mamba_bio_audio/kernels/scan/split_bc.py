"""A, B and C of a scan in the form in which its kernels read them, by one launch and one pass over memory."""

# mypy: disable-error-code="no-untyped-def"

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from mamba_bio_audio.kernels.launch import cdiv, launch, on, power_of_2

_ELEMENTS = 2048  # of a program's tile


@triton.jit
def split_bc_kernel(
    p, B_p, C_p, rows, ROW: tl.constexpr, N: tl.constexpr, NP: tl.constexpr, ROWS: tl.constexpr
):  # fmt: skip
    """Rows of 2 N values, ROW apart, into two arrays of rows of N."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    n = tl.arange(0, NP)[None, :]
    mask = (row < rows) & (n < N)
    tl.store(B_p + row * N + n, tl.load(p + row * ROW + n, mask=mask).to(tl.float32), mask=mask)
    tl.store(C_p + row * N + n, tl.load(p + row * ROW + N + n, mask=mask).to(tl.float32), mask=mask)


@triton.jit(do_not_specialize=["rows"])
def planes_kernel(
    A_p, B_p, C_p, A_o, B_o, C_o, rows, A_ROW: tl.constexpr, A_COLUMN: tl.constexpr, A_PART: tl.constexpr,
    B_ROW: tl.constexpr, B_COLUMN: tl.constexpr, B_PART: tl.constexpr, C_ROW: tl.constexpr, C_COLUMN: tl.constexpr,
    C_PART: tl.constexpr, D: tl.constexpr, N: tl.constexpr, NP: tl.constexpr, PARTS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """B and C, rows of N values of PARTS numbers, in fp32, part by part; A (D, N) likewise as (PARTS, N, D), by the last
    programs."""
    tiles = tl.cdiv(rows, ROWS)
    column = tl.arange(0, PARTS * NP)[None, :]
    part = column // NP
    n = column % NP
    tile = tl.program_id(0).to(tl.int64)
    if tile < tiles:
        row = tile * ROWS + tl.arange(0, ROWS)[:, None]
        mask = (row < rows) & (n < N)
        to = row * (PARTS * N) + part * N + n
        B = tl.load(B_p + row * B_ROW + n * B_COLUMN + part * B_PART, mask=mask)
        tl.store(B_o + to, B.to(tl.float32), mask=mask)
        C = tl.load(C_p + row * C_ROW + n * C_COLUMN + part * C_PART, mask=mask)
        tl.store(C_o + to, C.to(tl.float32), mask=mask)
    else:
        d = (tile - tiles) * ROWS + tl.arange(0, ROWS)[:, None]
        mask = (d < D) & (n < N)
        A = tl.load(A_p + d * A_ROW + n * A_COLUMN + part * A_PART, mask=mask)
        tl.store(A_o + part * (N * D) + n * D + d, A.to(tl.float32), mask=mask)


@triton.jit(do_not_specialize=["inner", "batch_stride", "inner_stride"])
def turn_kernel(
    p, out_p, inner, batch_stride, inner_stride, D: tl.constexpr, N: tl.constexpr, NP: tl.constexpr, BD: tl.constexpr
):
    """Matrices (N, D) as (D, N); of a batch, `inner` of them that are inner_stride apart."""
    BLOCKS: tl.constexpr = (D + BD - 1) // BD
    which = (tl.program_id(0) // BLOCKS).to(tl.int64)
    n = tl.arange(0, NP)[:, None]
    d = (tl.program_id(0) % BLOCKS) * BD + tl.arange(0, BD)[None, :]
    mask = (n < N) & (d < D)
    x = tl.load(p + which // inner * batch_stride + which % inner * inner_stride + n * D + d, mask=mask)
    tl.store(out_p + which * (N * D) + d * N + n, x, mask=mask)


def _equal_rows(t: Tensor) -> tuple[Tensor, int]:
    """t (B, L, ...), copied unless its rows are equally far apart, as in a part of a projection; and how far."""
    batch, length, *_ = t.shape
    # The stride of a dimension of size 1 says nothing, also of a contiguous tensor.
    if length == 1:
        return t, t.stride(0)
    if batch > 1 and t.stride(0) != length * t.stride(1):
        t = t.contiguous()
    return t, t.stride(1)


def map_planes(A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A (D, N[, 2]) as (PARTS, N, D), B and C (B, L, N[, 2]) as (B, L, PARTS, N), in fp32 and contiguous."""
    (batch, length, states, *_), channels, device = B.shape, A.shape[0], B.device
    parts, rows = A.ndim - 1, batch * length
    (B, B_row), (C, C_row) = (_equal_rows(t) for t in (B, C))
    planes = torch.empty(parts, states, channels, dtype=torch.float32, device=device)
    B_out, C_out = (torch.empty(batch, length, parts, states, dtype=torch.float32, device=device) for _ in "BC")
    padded = power_of_2(states)
    tile = max(_ELEMENTS // (padded * parts), 1)
    apart = [t.stride(-1) if parts == 2 else 0 for t in (A, B, C)]
    with on(device):
        launch(
            planes_kernel, cdiv(rows, tile) + cdiv(channels, tile),
            A, B, C, planes, B_out, C_out, rows,
            A_ROW=A.stride(0), A_COLUMN=A.stride(1), A_PART=apart[0], B_ROW=B_row, B_COLUMN=B.stride(2), B_PART=apart[1],
            C_ROW=C_row, C_COLUMN=C.stride(2), C_PART=apart[2], D=channels, N=states, NP=padded, PARTS=parts, ROWS=tile,
            num_warps=4,
        )  # fmt: skip
    return planes, B_out, C_out


def turned(t: Tensor) -> Tensor:
    """(..., N, D) as (..., D, N), contiguous; t (B, K, 1, N, D) may have its K any number of matrices apart."""
    *outer, states, channels = t.shape
    inner, apart = 1, (states * channels, 0)
    if not t.is_contiguous():
        assert (t.ndim, outer[2], t.stride(3), t.stride(4)) == (5, 1, channels, 1)
        inner, apart = outer[1], (t.stride(0), t.stride(1))
    out = torch.empty(*outer, channels, states, dtype=t.dtype, device=t.device)
    block = 128
    launch(
        turn_kernel, math.prod(outer) * cdiv(channels, block),
        t, out, inner, *apart, D=channels, N=states, NP=power_of_2(states), BD=block, num_warps=4,
    )  # fmt: skip
    return out


def split_bc(projected: Tensor, states: int) -> tuple[Tensor, Tensor]:
    """The last 2 N columns of (B, L, P), contiguous, as two (B, L, N) in fp32."""
    batch, length, columns = projected.shape
    B, C = torch.empty(2, batch, length, states, dtype=torch.float32, device=projected.device)
    padded = power_of_2(states)
    rows = max(_ELEMENTS // padded, 1)
    if batch * length:
        with on(projected.device):
            launch(
                split_bc_kernel, cdiv(batch * length, rows),
                projected[..., columns - 2 * states :], B, C, batch * length,
                ROW=columns, N=states, NP=padded, ROWS=rows, num_warps=4,
            )  # fmt: skip
    return B, C
