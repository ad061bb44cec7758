"""A, B and C of a plain scan in the form in which its kernels read them, by one launch and one pass over memory."""

# mypy: disable-error-code="no-untyped-def"

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
    A_p, B_p, C_p, A_o, B_o, C_o, rows, A_ROW: tl.constexpr, A_COLUMN: tl.constexpr, B_ROW: tl.constexpr,
    B_COLUMN: tl.constexpr, C_ROW: tl.constexpr, C_COLUMN: tl.constexpr, D: tl.constexpr, N: tl.constexpr, NP: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    """B and C, rows of N values, in fp32; A (D, N) as (N, D) in fp32, by the last programs."""
    tiles = tl.cdiv(rows, ROWS)
    n = tl.arange(0, NP)[None, :]
    tile = tl.program_id(0).to(tl.int64)
    if tile < tiles:
        row = tile * ROWS + tl.arange(0, ROWS)[:, None]
        mask = (row < rows) & (n < N)
        tl.store(B_o + row * N + n, tl.load(B_p + row * B_ROW + n * B_COLUMN, mask=mask).to(tl.float32), mask=mask)
        tl.store(C_o + row * N + n, tl.load(C_p + row * C_ROW + n * C_COLUMN, mask=mask).to(tl.float32), mask=mask)
    else:
        d = (tile - tiles) * ROWS + tl.arange(0, ROWS)[:, None]
        mask = (d < D) & (n < N)
        tl.store(A_o + n * D + d, tl.load(A_p + d * A_ROW + n * A_COLUMN, mask=mask).to(tl.float32), mask=mask)


def _equal_rows(t: Tensor) -> tuple[Tensor, int]:
    """t (B, L, N), copied unless its rows are equally far apart, as in a part of a projection; and how far."""
    batch, length, _ = t.shape
    # The stride of a dimension of size 1 says nothing, also of a contiguous tensor.
    if length == 1:
        return t, t.stride(0)
    if batch > 1 and t.stride(0) != length * t.stride(1):
        t = t.contiguous()
    return t, t.stride(1)


def plain_planes(A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A (D, N) as (1, N, D), B and C (B, L, N) as they are, in fp32 and contiguous."""
    (batch, length, states), channels = B.shape, A.shape[0]
    rows, device = batch * length, B.device
    (B, B_row), (C, C_row) = (_equal_rows(t) for t in (B, C))
    planes = torch.empty(1, states, channels, dtype=torch.float32, device=device)
    B_out, C_out = (torch.empty(batch, length, states, dtype=torch.float32, device=device) for _ in "BC")
    padded = power_of_2(states)
    tile = max(_ELEMENTS // padded, 1)
    with on(device):
        launch(
            planes_kernel, cdiv(rows, tile) + cdiv(channels, tile),
            A, B, C, planes, B_out, C_out, rows,
            A_ROW=A.stride(0), A_COLUMN=A.stride(1), B_ROW=B_row, B_COLUMN=B.stride(2), C_ROW=C_row,
            C_COLUMN=C.stride(2), D=channels, N=states, NP=padded, ROWS=tile, num_warps=4,
        )  # fmt: skip
    return planes, B_out, C_out


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
