"""Rows of a table by ids, with a gradient that is the same in every run on a GPU.

    y_n = T[i_n]            dT[v] = sum over n with i_n = v of dy_n

On a GPU PyTorch adds the terms of a row by atomics where few rows are read, in whatever order they come. Here a table of
few rows is a product with zeros and ones, of many spans of positions at once, whose sums are added in a fixed order: no
sort, and faster than either form of PyTorch's. One of many rows has PyTorch's deterministic form.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Rows of a table up to which a product with zeros and ones is faster. On an H200, 2^20 positions of 256 channels and 16
# rows: 0.64 ms, PyTorch's 1.56 or 3.08; of 64 channels and 256 rows: 2.6 ms, PyTorch's 0.37 either way.
_FEW = 64
_SPAN = 512  # positions that are summed in one product, at least
_ONES = 1 << 24  # zeros and ones at a time


class Embedding(nn.Embedding):
    """`nn.Embedding` with the gradient of `lookup`."""

    def forward(self, ids: Tensor) -> Tensor:
        """(..., D) of ids (...)."""
        return lookup(ids, self.weight)


def lookup(ids: Tensor, table: Tensor) -> Tensor:
    """Rows (..., D) by ids (...) of a table (V, D)."""
    if _repeatable(table):
        return _Lookup.apply(ids, table)  # type: ignore[no-untyped-call, no-any-return]
    return F.embedding(ids, table)


def _repeatable(table: Tensor) -> bool:
    """Whether the gradient is this file's; a CPU repeats its own."""
    return table.is_cuda


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ids: Tensor, table: Tensor) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.rows, ctx.dtype = len(table), table.dtype
        return F.embedding(ids, table)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[None, Tensor]:
        (ids,) = ctx.saved_tensors
        return None, sums_by_row(g.flatten(0, -2), ids.flatten(), ctx.rows).to(ctx.dtype)


def sums_by_row(values: Tensor, rows: Tensor, count: int) -> Tensor:
    """Sum of the values of each row, (count, D) in fp32 or fp64.

    Args:
        values: (N, D).
        rows: (N,) integers from 0 to count - 1.
        count: V.
    """
    wide = torch.promote_types(values.dtype, torch.float32)
    if count > _FEW:
        with _deterministic():
            return torch.ops.aten.embedding_dense_backward(values.to(wide), rows, count, -1, False)
    total = values.new_zeros(count, values.shape[1], dtype=wide)
    numbers = torch.arange(count, device=rows.device)
    # The sums of spans are a quarter of the values at most.
    span = max(_SPAN, 4 * count)
    low = 0
    # Autocast would round the values.
    with torch.autocast(values.device.type, enabled=False):
        while low < len(rows):
            length = min(span, len(rows) - low)
            spans = min((len(rows) - low) // length, _ONES // (count * length))
            part = slice(low, low + spans * length)
            ones = (rows[part].view(spans, length, 1) == numbers).to(wide)
            total = total + (ones.mT @ values[part].view(spans, length, -1).to(wide)).sum(0)
            low = part.stop
    return total


@contextmanager
def _deterministic() -> Iterator[None]:
    """As `torch.use_deterministic_algorithms`, which would import the compiler, for the calls within."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch._C._set_deterministic_algorithms(True, warn_only=False)
    try:
        yield
    finally:
        torch._C._set_deterministic_algorithms(before[0], warn_only=before[1])
