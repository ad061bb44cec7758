"""Steps of the backward of scans: what is loaded, kept and made again (see `backward`)."""

# Triton code, not Python: tuples grow in unrolled loops, and `if` on a constexpr must stand alone.
# mypy: ignore-errors

import triton
import triton.language as tl

from mamba_bio_audio.kernels.scan.parts import (
    advance,
    factors_of,
    load_keep,
    load_parts,
    product,
    restart,
)
from mamba_bio_audio.kernels.scan.warp_memory import (
    keep_tile,
    kept_tile,
    put_plane,
    take_row,
    take_step,
)


@triton.jit
def load_wide(p, offsets, live):
    """A tile in fp32, 0 where not live. Offsets stay 32 bits wide: they span one segment of rows less than 2^25 apart."""
    return tl.load(p + offsets, mask=live, other=0.0).to(tl.float32)


@triton.jit
def sweep_factors(dt, Ar, Ai, fixed, ACCURATE: tl.constexpr, CASE: tl.constexpr):
    """(a, P, Q) of one step as three pairs; without exact hold P and Q repeat a. dt [BD]."""
    if CASE.dt_lti:
        return fixed
    else:
        return factors_of(dt, Ar, Ai, ACCURATE, CASE)


@triton.jit
def recomputed_step(hr, hi, factors, x, B, keep, CASE: tl.constexpr):
    """(h_(t-1) after a reset, h_t) from h_(t-1), each a pair of tiles; x [BD] is dt u, or u held exactly."""
    a, P, _ = factors
    hr, hi = restart(hr, hi, keep, CASE)
    Br = B[0]
    Bi = B[1]
    if CASE.exact:
        Br, Bi = product(P[0], P[1], Br, Bi, CASE.complex)
    return (hr, hi), advance(hr, hi, a[0], a[1], x, Br, Bi, CASE)


@triton.jit
def keep_tiles(at, hr, hi, TILE: tl.constexpr, COMPLEX: tl.constexpr):
    keep_tile(hr, at)
    if COMPLEX:
        keep_tile(hi, at + 4 * TILE)


@triton.jit
def kept_tiles(at, TILE: tl.constexpr, COMPLEX: tl.constexpr):
    hr = kept_tile(at)
    hi = hr
    if COMPLEX:
        hi = kept_tile(at + 4 * TILE)
    return hr, hi


@triton.jit
def put_maps(p, at, t, size, BC_ROW: tl.constexpr, N: tl.constexpr, zero, PARTS: tl.constexpr):
    """Copies rows t of B or C to shared memory, 0 from `size` on; 4 states side by side."""
    states = tl.arange(0, N)[None, None, :]
    for part in tl.static_range(PARTS):
        x = tl.load(p + t * BC_ROW + (part * N) + states + zero * 4, mask=(t < size) & (states >= 0), other=0.0)
        put_plane(x, at + part * (4 * N))


@triton.jit
def take_maps(at, COMPLEX: tl.constexpr):
    re = take_row(at)
    im = re
    if COMPLEX:
        im = take_row(at + 64)
    return re, im


@triton.jit
def load_sweep_step(
    row_p, map_at, B_p, C_p, reset_p, row, t, mask_n, B, C,
    PLANE: tl.constexpr, MAPS_BYTES: tl.constexpr, C_PLACE: tl.constexpr, BD: tl.constexpr, N: tl.constexpr,
    EVEN_N: tl.constexpr, CASE: tl.constexpr, WARP_SUMS: tl.constexpr,
):  # fmt: skip
    """All inputs of one step; past the end t is the last step: dt, x and gy are 0 there, so any finite B and C will do."""
    if WARP_SUMS:
        dt, x, gy = take_step(row_p + row * (16 * BD))
        if not CASE.B_lti:
            B = take_maps(map_at + row * MAPS_BYTES, CASE.complex)
        if not CASE.C_lti:
            C = take_maps(map_at + row * MAPS_BYTES + C_PLACE, CASE.complex)
    else:
        at = row_p + row * BD
        dt = tl.load(at)[:, None]
        x = tl.load(at + PLANE)[:, None]
        gy = tl.load(at + 2 * PLANE)[:, None]
        if not CASE.B_lti:
            B = load_parts(B_p + t * (CASE.parts * N), mask_n, N, EVEN_N, CASE.complex, 0)
        if not CASE.C_lti:
            C = load_parts(C_p + t * (CASE.parts * N), mask_n, N, EVEN_N, CASE.complex, 0)
    keep = load_keep(reset_p + t, CASE)
    if CASE.reset:
        keep = tl.where(row == t, keep, 1.0)
    return dt, x, gy, B, C, keep
