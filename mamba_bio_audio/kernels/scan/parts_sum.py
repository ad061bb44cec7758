"""Adds up, in order, what programs of the backward left; at the rate of memory, which `torch.sum` is not."""

# mypy: ignore-errors

import torch
import triton
import triton.language as tl
from torch import Tensor

from mamba_bio_audio.kernels.launch import cdiv, launch

_BLOCK = 1024  # elements of a program


@triton.jit(do_not_specialize=["size", "rows", "part_rows", "programs"])
def parts_sum_kernel(
    parts_p, out_p, size, rows, part_rows, programs, out_batch, out_row, WIDTH: tl.constexpr, BLOCK: tl.constexpr
):
    """Of parts (B, size, part_rows, WIDTH) the first rows, added up, to out (B, rows, WIDTH)."""
    pid = tl.program_id(0)
    batch = (pid // programs).to(tl.int64)
    i = pid % programs * BLOCK + tl.arange(0, BLOCK)
    mask = i < rows * WIDTH
    part = part_rows.to(tl.int64) * WIDTH
    parts_p += batch * size * part
    total = tl.zeros([BLOCK], tl.float32)
    for k in range(size):
        total += tl.load(parts_p + k * part + i, mask=mask, other=0.0).to(tl.float32)
    to = out_p + batch * out_batch + (i // WIDTH).to(tl.int64) * out_row + i % WIDTH
    tl.store(to, total.to(out_p.dtype.element_ty), mask=mask)


def parts_sum(parts: Tensor, out: Tensor) -> None:
    """Adds parts (B, size, rows, width), contiguous, over the second dimension.

    Args:
        out: (B, rows or fewer, width), any strides but of the last dimension.
    """
    batch, size, rows, width = parts.shape
    programs = cdiv(out.shape[1] * width, _BLOCK)
    launch(
        parts_sum_kernel, batch * programs,
        parts, out, size, out.shape[1], rows, programs, out.stride(0), out.stride(1),
        WIDTH=width, BLOCK=_BLOCK, num_warps=4,
    )  # fmt: skip


@triton.jit(do_not_specialize=["rows"])
def rows_sum_kernel(x_p, out_p, rows, WIDTH: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """The sum of x (rows, WIDTH) over its rows."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)[None, :]
    total = tl.zeros([ROWS, BLOCK], tl.float32)
    for first in range(0, rows, ROWS):
        row = first + tl.arange(0, ROWS)[:, None]
        total += tl.load(x_p + row.to(tl.int64) * WIDTH + i, mask=(row < rows) & (i < WIDTH), other=0.0)
    to = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_p + to, tl.sum(total, axis=0), mask=to < WIDTH)


def rows_sum(x: Tensor) -> Tensor:
    """x (rows, width), contiguous and fp32, added up over its rows."""
    rows, width = x.shape
    out = torch.empty(width, dtype=torch.float32, device=x.device)
    block = 32
    launch(rows_sum_kernel, cdiv(width, block), x, out, rows, WIDTH=width, ROWS=64, BLOCK=block, num_warps=4)
    return out
