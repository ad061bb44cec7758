"""B and C of a projection, each apart and in fp32: the form in which the scan reads them, by one pass over memory."""

# mypy: disable-error-code="no-untyped-def"

import torch
import triton
import triton.language as tl
from torch import Tensor

from mamba_bio_audio.kernels.launch import cdiv, on

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


def split_bc(projected: Tensor, states: int) -> tuple[Tensor, Tensor]:
    """The last 2 N columns of (B, L, P), contiguous, as two (B, L, N) in fp32."""
    batch, length, columns = projected.shape
    B, C = torch.empty(2, batch, length, states, dtype=torch.float32, device=projected.device)
    padded = triton.next_power_of_2(states)
    rows = max(_ELEMENTS // padded, 1)
    if batch * length:
        with on(projected.device):
            split_bc_kernel[(cdiv(batch * length, rows),)](
                projected[..., columns - 2 * states :], B, C, batch * length,
                ROW=columns, N=states, NP=padded, ROWS=rows, num_warps=4,
            )  # fmt: skip
    return B, C
