"""Adds the rows that blocks of channels left of a map's gradient, in order; at the rate of memory, which `torch.sum` is not."""

# mypy: ignore-errors

import triton
import triton.language as tl
from torch import Tensor

from mamba_bio_audio.kernels.launch import cdiv, launch

_BLOCK = 1024  # elements of a program


@triton.jit(do_not_specialize=["size", "count", "programs"])
def parts_sum_kernel(
    parts_p, out_p, size, count, programs, part, out_batch, out_row,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Of parts (B, size, part) the first `count` elements, as rows of WIDTH, to out (B, count / WIDTH, WIDTH)."""
    pid = tl.program_id(0)
    batch = (pid // programs).to(tl.int64)
    i = pid % programs * BLOCK + tl.arange(0, BLOCK)
    parts_p += batch * size * part
    total = tl.zeros([BLOCK], tl.float32)
    for _ in range(size):
        total += tl.load(parts_p + i, mask=i < count, other=0.0).to(tl.float32)
        parts_p += part
    to = out_p + batch * out_batch + (i // WIDTH).to(tl.int64) * out_row + i % WIDTH
    tl.store(to, total.to(out_p.dtype.element_ty), mask=i < count)


def parts_sum(parts: Tensor, out: Tensor) -> None:
    """parts (B, size, rows, width) contiguous, added over the second dimension to out (B, rows or fewer, width), any strides
    but of the last dimension."""
    batch, size, rows, width = parts.shape
    count = out.shape[1] * width
    programs = cdiv(count, _BLOCK)
    launch(
        parts_sum_kernel, batch * programs,
        parts, out, size, count, programs, rows * width, out.stride(0), out.stride(1),
        WIDTH=width, BLOCK=_BLOCK, num_warps=4,
    )  # fmt: skip
