"""Uniform numbers by seed, row and position, as `inference.uniforms` makes them, on the device that uses them.

Philox-4x64 with ten rounds (Salmon et al. 2011): a key of two words and a counter give four words of 64 bits.
"""

# mypy: disable-error-code="no-untyped-def, assignment, var-annotated, attr-defined"
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mamba_bio_audio.kernels.launch import cdiv, on

_COUNTERS = 128  # of a program


@triton.jit
def philox(counter, seed, row):
    """Four words of each counter, whose upper words are zero, under key (seed, row); all uint64."""
    zero = counter - counter
    a, b, c, d = counter, zero, zero, zero
    first, second = zero + seed, row
    for _ in tl.static_range(10):
        high_a = tl.umulhi(a, zero + 0xD2E7470EE14C6C93)
        high_c = tl.umulhi(c, zero + 0xCA5A826395121157)
        low_a = a * 0xD2E7470EE14C6C93
        low_c = c * 0xCA5A826395121157
        a, b, c, d = high_c ^ b ^ first, low_c, high_a ^ d ^ second, low_a
        first += 0x9E3779B97F4A7C15
        second += 0xBB67AE8584CAA73B
    return a, b, c, d


@triton.jit
def put_uniform(out_p, words, position, row, count, rows, valid):
    """The upper 53 bits of words as numbers in [0, 1)."""
    # The shifted words fit a signed integer, from which conversion is one instruction.
    value = (words >> 11).to(tl.int64).to(tl.float64) * 1.1102230246251565e-16
    tl.store(out_p + position * rows + row, value, mask=valid & (position >= 0) & (position < count))


@triton.jit(do_not_specialize=["seed", "first_row", "first_counter", "skip", "count", "rows", "counters"])
def uniforms_kernel(
    out_p, seed: tl.uint64, first_row: tl.uint64, first_counter: tl.uint64, skip, count, rows, counters, BLOCK: tl.constexpr
):  # fmt: skip
    """Writes (count, rows): counter `first_counter` + q and row `first_row` + r give positions 4 q - skip and on of row r."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    q = at // rows
    r = at % rows
    counter = q.to(tl.uint64) + first_counter
    a, b, c, d = philox(counter, seed, r.to(tl.uint64) + first_row)
    position = 4 * q - skip
    valid = q < counters
    put_uniform(out_p, a, position, r, count, rows, valid)
    put_uniform(out_p, b, position + 1, r, count, rows, valid)
    put_uniform(out_p, c, position + 2, r, count, rows, valid)
    put_uniform(out_p, d, position + 3, r, count, rows, valid)


def device_uniforms(seed: int, first_row: int, rows: int, start: int, count: int, device: torch.device) -> Tensor:
    """(count, rows) fp64 for rows from `first_row` and positions from `start` on; bit for bit those of `uniforms`."""
    out = torch.empty(count, rows, dtype=torch.float64, device=device)
    # The generator counts before its first words.
    skip, counter = start % 4, (start // 4 + 1) % 2**64
    counters = cdiv(skip + count, 4)
    if out.numel():
        grid = (cdiv(counters * rows, _COUNTERS),)
        with on(device):
            uniforms_kernel[grid](
                out, seed, first_row, counter, skip, count, rows, counters, BLOCK=_COUNTERS, num_warps=4
            )
    return out
