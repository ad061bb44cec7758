"""The four matrices of a mixer in the dtype of its activations, by one launch: single casts take longer to launch than to run.

Letters as in `recompute.py`: M model channels, E inner channels, N states, R delta rank, P the same with padding.
"""

# mypy: disable-error-code="no-untyped-def"

import torch
import triton
import triton.language as tl
from torch import Tensor

from mamba_bio_audio.kernels.launch import cdiv, launch, on

_BLOCK = 2048  # elements of a program


@triton.jit
def matrices_kernel(
    in_p, out_p, x_p, dt_p, in_o, out_o, x_o, dt_o,
    E: tl.constexpr, M: tl.constexpr, R: tl.constexpr, P: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Writes in_o (2 E, M), out_o (M, E), x_o (P + 2 N = ROWS, E) and dt_o (E, P), zeros where there is padding."""
    IN: tl.constexpr = (2 * E * M + BLOCK - 1) // BLOCK
    OUT: tl.constexpr = (E * M + BLOCK - 1) // BLOCK
    X: tl.constexpr = (ROWS * E + BLOCK - 1) // BLOCK
    part = tl.program_id(0)
    if part < IN:
        at = part * BLOCK + tl.arange(0, BLOCK)
        mask = at < 2 * E * M
        tl.store(in_o + at, tl.load(in_p + at, mask=mask).to(in_o.dtype.element_ty), mask=mask)
    elif part < IN + OUT:
        at = (part - IN) * BLOCK + tl.arange(0, BLOCK)
        mask = at < E * M
        tl.store(out_o + at, tl.load(out_p + at, mask=mask).to(out_o.dtype.element_ty), mask=mask)
    elif part < IN + OUT + X:
        at = (part - IN - OUT) * BLOCK + tl.arange(0, BLOCK)
        row = at // E
        there = (at < ROWS * E) & ((row < R) | (row >= P))
        source = tl.where(row < R, at, at - (P - R) * E)
        value = tl.load(x_p + source, mask=there, other=0.0)
        tl.store(x_o + at, value.to(x_o.dtype.element_ty), mask=at < ROWS * E)
    else:
        at = (part - IN - OUT - X) * BLOCK + tl.arange(0, BLOCK)
        rank = at % P
        there = (at < E * P) & (rank < R)
        value = tl.load(dt_p + (at // P) * R + rank, mask=there, other=0.0)
        tl.store(dt_o + at, value.to(dt_o.dtype.element_ty), mask=at < E * P)


def matrices(
    in_proj: Tensor, x_proj: Tensor, dt_proj: Tensor, out_proj: Tensor, padding: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The matrices in `dtype` and contiguous, in this order.

    Args:
        in_proj, x_proj, dt_proj, out_proj: (2 E, M), (R + 2 N, E), (E, R), (M, E), of one dtype.
        padding: rows of zeros in x_proj behind the first R, and as many columns in dt_proj.
        dtype: of the result.
    """
    given = [t.contiguous() for t in (in_proj, out_proj, x_proj, dt_proj)]
    (width, inner), rank = out_proj.shape, dt_proj.shape[1]
    rows = x_proj.shape[0] + padding
    shapes = in_proj.shape, out_proj.shape, (rows, inner), (inner, rank + padding)
    made = [torch.empty(shape, dtype=dtype, device=in_proj.device) for shape in shapes]
    with on(in_proj.device):
        launch(
            matrices_kernel, sum(cdiv(t.numel(), _BLOCK) for t in made), *given, *made,
            E=inner, M=width, R=rank, P=rank + padding, ROWS=rows, BLOCK=_BLOCK, num_warps=4,
        )  # fmt: skip
    in_made, out_made, x_made, dt_made = made
    return in_made, x_made, dt_made, out_made
