"""Pieces of the general scan kernels: numbers that are pairs, decay and exact hold, loads of one step.

A complex number is a pair of fp32 tiles; real scans carry the first of the pair and the compiler drops the second. In
memory the parts are planes: A (PARTS, N, D), states (..., PARTS, N, D), selective B and C (B, L, PARTS, N), time-invariant
ones (PARTS, N, D). Letters as in `triton_fwd`.
"""

# Triton code, not Python: `if` on a constexpr must stand alone.
# mypy: ignore-errors

import os

import triton
import triton.language as tl
from triton.language.extra import libdevice

from mamba_bio_audio.kernels.selective_scan.triton_fwd import (
    LOG2E,
    expm1_from_exponent,
    load_row,
    load_vec,
    softplus,
)

ROUNDER = tl.constexpr(12582912.0)  # 1.5 * 2^23: adding it rounds a small fp32 number to an integer


if os.environ.get("TRITON_INTERPRET", "0") == "1":  # the interpreter has no libdevice

    @triton.jit
    def fast_sin(x):
        return tl.sin(x)

    @triton.jit
    def fast_cos(x):
        return tl.cos(x)

else:

    @triton.jit
    def fast_sin(x):
        return libdevice.fast_sinf(x)

    @triton.jit
    def fast_cos(x):
        return libdevice.fast_cosf(x)


@triton.jit
def product(ar, ai, br, bi, COMPLEX: tl.constexpr):
    """a * b as a pair."""
    if COMPLEX:
        return ar * br - ai * bi, ar * bi + ai * br
    else:
        return ar * br, bi


@triton.jit
def conj_product(ar, ai, br, bi, COMPLEX: tl.constexpr):
    """conj(a) * b as a pair: how a gradient b passes back through a multiplication by a."""
    if COMPLEX:
        return ar * br + ai * bi, ar * bi - ai * br
    else:
        return ar * br, bi


@triton.jit
def real_product(ar, ai, br, bi, COMPLEX: tl.constexpr):
    """Re(conj(a) * b)."""
    if COMPLEX:
        return ar * br + ai * bi
    else:
        return ar * br


@triton.jit
def turn(x):
    """(cos(x) - 1, sin(x)), absolute error below 3e-7 up to |x| = 3000 and growing slowly beyond; x in radians.

    Half turns are taken off in three parts of pi (Cody and Waite), the first two products being exact; on the quarter turn
    that is left the sine is an odd polynomial of degree 9 and the cosine an even one of degree 10 (Chebyshev fits).
    """
    shifted = x * 0.31830989 + ROUNDER
    k = shifted - ROUNDER
    r = ((x - k * 3.140625) - k * 0.0009670257568359375) - k * 6.2771141529e-7
    flip = shifted.to(tl.int32, bitcast=True) << 31  # the sign bit where an odd number of half turns came off
    s = r * r
    sin = r * (0.999999996 + s * (-0.166666579 + s * (0.00833305017 + s * (-0.000198090174 + s * 2.60510763e-06))))
    cos_1 = s * (-0.5 + s * (0.0416666594 + s * (-0.00138886516 + s * (2.47745797e-05 - s * 2.62975174e-07))))
    sin = (sin.to(tl.int32, bitcast=True) ^ flip).to(tl.float32, bitcast=True)
    return tl.where(flip == 0, cos_1, -2.0 - cos_1), sin


@triton.jit
def decay(dt, Ar, Ai, ACCURATE: tl.constexpr, PRECISE: tl.constexpr, COMPLEX: tl.constexpr):
    """exp(dt A), or exp(dt A) - 1 when PRECISE, as a pair of tiles; dt and A broadcast to a tile.

    The hardware's sine and cosine err by up to 2^-20.5 within a turn, too much for fp32 inputs (ACCURATE).
    """
    x2 = (dt * LOG2E) * Ar
    size = tl.exp2(x2)
    if COMPLEX:
        angle = dt * Ai
        if ACCURATE or PRECISE:
            cos_1, sin = turn(angle)
            if PRECISE:
                return expm1_from_exponent(x2, size) + size * cos_1, size * sin
            else:
                return size + size * cos_1, size * sin
        else:
            return size * fast_cos(angle), size * fast_sin(angle)
    elif PRECISE:
        return expm1_from_exponent(x2, size), size
    else:
        return size, size


@triton.jit
def hold(dt, Ar, Ai, ar, ai, PRECISE: tl.constexpr, COMPLEX: tl.constexpr):
    """P = (exp(dt A) - 1) / A and Q = dP/dA of the exact hold as pairs; a is what `decay` returned.

    With x = dt A: P = dt f(x), Q = dt^2 f'(x), f(x) = (exp(x) - 1) / x and f'(x) = (exp(x) - f(x)) / x, as series where
    these cancel.
    """
    xr = dt * Ar
    xi = dt * Ai
    growth = ar
    whole = ar + 1.0
    if not PRECISE:
        growth = ar - 1.0
        whole = ar
    length = xr * xr
    if COMPLEX:
        length += xi * xi
    small = length < 0.25
    over = 1.0 / tl.where(small, 1.0, length)
    fr, fi = conj_product(xr, xi, growth, ai, COMPLEX)
    fr, fi = fr * over, fi * over
    gr, gi = conj_product(xr, xi, whole - fr, ai - fi, COMPLEX)
    gr, gi = gr * over, gi * over
    vr = tl.zeros_like(xr) + 1.0
    vi = tl.zeros_like(xr)
    sr = tl.zeros_like(xr) + 0.1
    si = tl.zeros_like(xr)
    for i in tl.static_range(8):
        # f = sum x^k / (k + 1)!,  f' = sum x^k / (k! (k + 2)), k = 8 - i downwards
        vr, vi = product(xr, xi, vr, vi, COMPLEX)
        vr, vi = 1.0 + vr * (1.0 / (9 - i)), vi * (1.0 / (9 - i))
        sr, si = product(xr, xi, sr, si, COMPLEX)
        sr, si = 1.0 / (9 - i) + sr * (1.0 / (8 - i)), si * (1.0 / (8 - i))
    P = dt * tl.where(small, vr, fr), dt * tl.where(small, vi, fi)
    Q = dt * dt * tl.where(small, sr, gr), dt * dt * tl.where(small, si, gi)
    return P[0], P[1], Q[0], Q[1]


@triton.jit
def advance(hr, hi, ar, ai, x, Br, Bi, PRECISE: tl.constexpr, COMPLEX: tl.constexpr):
    """a h + x B as a pair of tiles; x and B broadcast to a tile. PRECISE: a is a - 1, and h + (...)."""
    if COMPLEX:
        nr = x * Br + ar * hr - ai * hi
        ni = x * Bi + ar * hi + ai * hr
        if PRECISE:
            return hr + nr, hi + ni
        else:
            return nr, ni
    elif PRECISE:
        return hr + (x * Br + ar * hr), hi
    else:
        return x * Br + ar * hr, hi


@triton.jit
def load_parts(p, n, mask_n, N: tl.constexpr, EVEN_N: tl.constexpr, COMPLEX: tl.constexpr, AXIS: tl.constexpr = 1):
    """One step's B or C as a pair [NP, 1], or [1, NP] with AXIS = 0."""
    re = tl.expand_dims(load_vec(p + n, mask_n, EVEN_N), AXIS)
    im = re
    if COMPLEX:
        im = tl.expand_dims(load_vec(p + N + n, mask_n, EVEN_N), AXIS)
    return re, im


@triton.jit
def load_tiles(p, tile, mask, PLANE: tl.constexpr, COMPLEX: tl.constexpr):
    """A pair of fp32 tiles from planes of PLANE elements."""
    re = tl.load(p + tile, mask=mask, other=0.0)
    im = re
    if COMPLEX:
        im = tl.load(p + PLANE + tile, mask=mask, other=0.0)
    return re, im


@triton.jit
def store_tiles(p, tile, mask, re, im, PLANE: tl.constexpr, COMPLEX: tl.constexpr):
    tl.store(p + tile, re, mask=mask)
    if COMPLEX:
        tl.store(p + PLANE + tile, im, mask=mask)


@triton.jit
def store_kept(p, hr, hi, TILE: tl.constexpr, COMPLEX: tl.constexpr):
    tl.store(p, hr)
    if COMPLEX:
        tl.store(p + TILE, hi)


@triton.jit
def load_kept(p, TILE: tl.constexpr, COMPLEX: tl.constexpr):
    hr = tl.load(p)
    hi = hr
    if COMPLEX:
        hi = tl.load(p + TILE)
    return hr, hi


@triton.jit
def load_keep(reset_p, HAS_RESET: tl.constexpr):
    """0 where the state restarts, else 1."""
    if HAS_RESET:
        return tl.where(tl.load(reset_p) != 0, 0.0, 1.0)
    else:
        return 1.0


@triton.jit
def load_inputs(
    u_p, dt_p, z_p, B_p, C_p, reset_p, n, mask_d, mask_n, B, C,
    N: tl.constexpr, EVEN_D: tl.constexpr, EVEN_N: tl.constexpr, HAS_Z: tl.constexpr, HAS_RESET: tl.constexpr,
    COMPLEX: tl.constexpr, DT_LTI: tl.constexpr, B_LTI: tl.constexpr, C_LTI: tl.constexpr,
):  # fmt: skip
    """One time step's inputs; time-invariant B and C are passed through, what is absent repeats another value."""
    u = load_row(u_p, mask_d, EVEN_D)
    dt = u
    if not DT_LTI:
        dt = load_row(dt_p, mask_d, EVEN_D)
    z = u
    if HAS_Z:
        z = load_row(z_p, mask_d, EVEN_D)
    if not B_LTI:
        B = load_parts(B_p, n, mask_n, N, EVEN_N, COMPLEX)
    if not C_LTI:
        C = load_parts(C_p, n, mask_n, N, EVEN_N, COMPLEX)
    return u, dt, z, B[0], B[1], C[0], C[1], load_keep(reset_p, HAS_RESET)


@triton.jit
def step_size(dt, bias, SOFTPLUS: tl.constexpr, ACCURATE: tl.constexpr):
    dt = dt.to(tl.float32) + bias
    if SOFTPLUS:
        return softplus(dt, ACCURATE)
    else:
        return dt


@triton.jit
def drive(
    u, dt, Ar, Ai, ar, ai, fixed_P, Br, Bi,
    EXACT: tl.constexpr, DT_LTI: tl.constexpr, PRECISE: tl.constexpr, COMPLEX: tl.constexpr,
):  # fmt: skip
    """(x, B) whose product is b_t: (dt u, B), or with EXACT (u, P B); u and dt broadcast to a tile."""
    if EXACT:
        Pr = fixed_P[0]
        Pi = fixed_P[1]
        if not DT_LTI:
            Pr, Pi, _, _ = hold(dt, Ar, Ai, ar, ai, PRECISE, COMPLEX)
        Br, Bi = product(Pr, Pi, Br, Bi, COMPLEX)
        return u, Br, Bi
    else:
        return dt * u, Br, Bi
