"""Pieces of the scan kernels: numbers that are pairs, decay and exact hold, loads of one step, prefetches.

A complex number is a pair of fp32 tiles; real scans carry the first of the pair and the compiler drops the second. In
memory the parts are planes, one in a real scan: A (PARTS, N, D), states (..., PARTS, N, D), selective B and C (B, L, PARTS,
N), time-invariant ones (PARTS, N, D). Letters as in `forward`; CASE is an `inputs.Case`.
"""

# Triton code, not Python: `if` on a constexpr must stand alone.
# mypy: ignore-errors

import os

import triton
import triton.language as tl
from triton.language.extra import libdevice

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
ROUNDER = tl.constexpr(12582912.0)  # 1.5 * 2^23: adding it rounds a small fp32 number to an integer


if os.environ.get("TRITON_INTERPRET", "0") == "1":  # the interpreter has no libdevice

    @triton.jit
    def fast_log2(x):
        return tl.log2(x)

    @triton.jit
    def fast_sin(x):
        return tl.sin(x)

    @triton.jit
    def fast_cos(x):
        return tl.cos(x)

    @triton.jit
    def prefetch(p):
        pass

else:

    @triton.jit
    def fast_log2(x):
        """One hardware instruction, absolute error 2^-22 near 1; tl.log2 is a polynomial of some twenty."""
        return libdevice.fast_log2f(x)

    @triton.jit
    def fast_sin(x):
        return libdevice.fast_sinf(x)

    @triton.jit
    def fast_cos(x):
        return libdevice.fast_cosf(x)

    @triton.jit
    def prefetch(p):
        """Asks L2 for the lines at p, which must be addresses that exist; nothing waits for it."""
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.b32 $0, 0;", "=r,l", [p], dtype=tl.int32, is_pure=False, pack=1
        )


@triton.jit
def softplus(x, ACCURATE: tl.constexpr):
    """log(1 + exp(x)), the series where 1 + exp(x) would round exp(x) away.

    Relative error below 3e-6 where ACCURATE, else 5e-5 (for bf16 and fp16 inputs, themselves off by 2^-9 |x|).
    """
    e = tl.exp2(x * LOG2E)
    if ACCURATE:
        series = e * (1.0 + e * (-0.5 + e * (0.33333333 + e * (-0.25 + e * (0.2 - e * 0.16666667)))))
        small = e < 0.125
    else:
        series = e - 0.5 * e * e
        small = e < 0.0078125
    r = tl.where(small, series, fast_log2(1.0 + e) * LN2)
    return tl.where(x > 20.0, x, r)


@triton.jit
def softplus_and_slope(x, ACCURATE: tl.constexpr):
    """softplus(x) and its derivative, sigmoid(x)."""
    e = tl.exp2(x * LOG2E)
    if ACCURATE:
        series = e * (1.0 + e * (-0.5 + e * (0.33333333 + e * (-0.25 + e * (0.2 - e * 0.16666667)))))
        small = e < 0.125
    else:
        series = e - 0.5 * e * e
        small = e < 0.0078125
    over = 1.0 + e
    r = tl.where(small, series, fast_log2(over) * LN2)
    q = tl.rsqrt(over)
    large = x > 20.0
    return tl.where(large, x, r), tl.where(large, 1.0, e * q * q)


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x)) as the square of a reciprocal square root: no division sequence, 0 where exp overflows."""
    q = tl.rsqrt(1.0 + tl.exp2(-x * LOG2E))
    return q * q


@triton.jit
def expm1_from_exponent(x2, a):
    """exp2(x2) - 1 accurate relative to x2 near 0, where a = exp2(x2) is already rounded."""
    x = x2 * LN2
    p = 1.0 + x * (0.5 + x * (0.16666667 + x * (0.041666668 + x * (0.0083333333 + x * 0.0013888889))))
    return tl.where(x > -0.35, x * p, a - 1.0)


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
def decay(dt, Ar, Ai, ACCURATE: tl.constexpr, CASE: tl.constexpr):
    """exp(dt A), or exp(dt A) - 1 when precise, as a pair of tiles; dt and A broadcast to a tile.

    A plain scan has A log2(e) for A. The hardware's sine and cosine err by up to 2^-20.5 within a turn, too much for fp32
    inputs (ACCURATE).
    """
    if CASE.plain:
        x2 = dt * Ar
    else:
        x2 = (dt * LOG2E) * Ar
    size = tl.exp2(x2)
    if CASE.complex:
        angle = dt * Ai
        if ACCURATE or CASE.precise:
            cos_1, sin = turn(angle)
            if CASE.precise:
                return expm1_from_exponent(x2, size) + size * cos_1, size * sin
            else:
                return size + size * cos_1, size * sin
        else:
            return size * fast_cos(angle), size * fast_sin(angle)
    elif CASE.precise:
        return expm1_from_exponent(x2, size), size
    else:
        return size, size


@triton.jit
def hold(dt, Ar, Ai, ar, ai, CASE: tl.constexpr):
    """P = (exp(dt A) - 1) / A and Q = dP/dA of the exact hold as pairs; a is what `decay` returned.

    With x = dt A: P = dt f(x), Q = dt^2 f'(x), f(x) = (exp(x) - 1) / x and f'(x) = (exp(x) - f(x)) / x, as series where
    these cancel.
    """
    xr = dt * Ar
    xi = dt * Ai
    growth = ar
    whole = ar + 1.0
    if not CASE.precise:
        growth = ar - 1.0
        whole = ar
    length = xr * xr
    if CASE.complex:
        length += xi * xi
    small = length < 0.25
    over = 1.0 / tl.where(small, 1.0, length)
    fr, fi = conj_product(xr, xi, growth, ai, CASE.complex)
    fr, fi = fr * over, fi * over
    gr, gi = conj_product(xr, xi, whole - fr, ai - fi, CASE.complex)
    gr, gi = gr * over, gi * over
    vr = tl.zeros_like(xr) + 1.0
    vi = tl.zeros_like(xr)
    sr = tl.zeros_like(xr) + 0.1
    si = tl.zeros_like(xr)
    for i in tl.static_range(8):
        # f = sum x^k / (k + 1)!,  f' = sum x^k / (k! (k + 2)), k = 8 - i downwards
        vr, vi = product(xr, xi, vr, vi, CASE.complex)
        vr, vi = 1.0 + vr * (1.0 / (9 - i)), vi * (1.0 / (9 - i))
        sr, si = product(xr, xi, sr, si, CASE.complex)
        sr, si = 1.0 / (9 - i) + sr * (1.0 / (8 - i)), si * (1.0 / (8 - i))
    P = dt * tl.where(small, vr, fr), dt * tl.where(small, vi, fi)
    Q = dt * dt * tl.where(small, sr, gr), dt * dt * tl.where(small, si, gi)
    return P[0], P[1], Q[0], Q[1]


@triton.jit
def advance(hr, hi, ar, ai, x, Br, Bi, CASE: tl.constexpr):
    """a h + x B as a pair of tiles; x and B broadcast to a tile. Precise: a is a - 1, and h + (...)."""
    if CASE.complex:
        nr = x * Br + ar * hr - ai * hi
        ni = x * Bi + ar * hi + ai * hr
    elif CASE.plain:
        nr = ar * hr + x * Br
        ni = hi
    else:
        nr = x * Br + ar * hr
        ni = hi
    if CASE.precise:
        nr = hr + nr
        if CASE.complex:
            ni = hi + ni
    return nr, ni


@triton.jit
def back(ar, ai, gr, gi, CASE: tl.constexpr):
    """conj(a) g as a pair of tiles, how an adjoint passes a step; precise: a is a - 1."""
    rr, ri = conj_product(ar, ai, gr, gi, CASE.complex)
    if CASE.precise:
        rr += gr
        if CASE.complex:
            ri += gi
    return rr, ri


@triton.jit
def restart(hr, hi, keep, CASE: tl.constexpr):
    """The pair, zeroed where keep is 0."""
    if CASE.reset:
        hr = hr * keep
        if CASE.complex:
            hi = hi * keep
    return hr, hi


@triton.jit
def load_row(p, mask, EVEN: tl.constexpr):
    if EVEN:
        return tl.load(p)
    else:
        return tl.load(p, mask=mask, other=0.0)


@triton.jit
def load_parts(p, mask_n, N: tl.constexpr, EVEN_N: tl.constexpr, COMPLEX: tl.constexpr, AXIS: tl.constexpr = 1):
    """One step's B or C, p at its states, as a pair [NP, 1], or [1, NP] with AXIS = 0."""
    re = tl.expand_dims(load_row(p, mask_n, EVEN_N), AXIS)
    im = re
    if COMPLEX:
        im = tl.expand_dims(load_row(p + N, mask_n, EVEN_N), AXIS)
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
def load_keep(reset_p, CASE: tl.constexpr):
    """0 where the state restarts, else 1."""
    if CASE.reset:
        return tl.where(tl.load(reset_p) != 0, 0.0, 1.0)
    else:
        return 1.0


@triton.jit
def load_step(
    pointers, row, n, mask_d, mask_n, B, C,
    N: tl.constexpr, EVEN_D: tl.constexpr, EVEN_N: tl.constexpr,
    U_ROW: tl.constexpr, DT_ROW: tl.constexpr, Z_ROW: tl.constexpr, CASE: tl.constexpr,
):  # fmt: skip
    """Inputs of the step `row` rows on; time-invariant B and C are passed through, what is absent repeats another value.

    pointers: to u, dt, z at the program's channels, to B, C and reset.
    """
    u_p, dt_p, z_p, B_p, C_p, reset_p = pointers
    # All addresses, then all loads: the compiler keeps this order, and the loads of a step then leave together.
    u_p += row * U_ROW
    dt_p += row * DT_ROW
    z_p += row * Z_ROW
    B_p += row * (CASE.parts * N)
    C_p += row * (CASE.parts * N)
    u = load_row(u_p, mask_d, EVEN_D)
    dt = u
    if not CASE.dt_lti:
        dt = load_row(dt_p, mask_d, EVEN_D)
    z = u
    if CASE.gate:
        z = load_row(z_p, mask_d, EVEN_D)
    if not CASE.B_lti:
        B = load_parts(B_p + n, mask_n, N, EVEN_N, CASE.complex)
    if not CASE.C_lti:
        C = load_parts(C_p + n, mask_n, N, EVEN_N, CASE.complex)
    return u, dt, z, B, C, load_keep(reset_p + row, CASE)


@triton.jit
def step_size(dt, bias, SOFTPLUS: tl.constexpr, ACCURATE: tl.constexpr):
    dt = dt.to(tl.float32) + bias
    if SOFTPLUS:
        return softplus(dt, ACCURATE)
    else:
        return dt


@triton.jit
def factors_of(dt, Ar, Ai, ACCURATE: tl.constexpr, CASE: tl.constexpr):
    """(a, P, Q) as pairs of tiles; without exact hold P and Q repeat a. dt broadcasts to a tile."""
    a = decay(dt, Ar, Ai, ACCURATE, CASE)
    if CASE.exact:
        Pr, Pi, Qr, Qi = hold(dt, Ar, Ai, a[0], a[1], CASE)
        return a, (Pr, Pi), (Qr, Qi)
    else:
        return a, a, a


@triton.jit
def fixed_step(dt_p, d, mask_d, bias, Ar, Ai, CASE: tl.constexpr):
    """(dt [BD], a, P) of a time-invariant dt; otherwise nothing that is used."""
    if CASE.dt_lti:
        size = step_size(tl.load(dt_p + d, mask=mask_d, other=0.0), bias, CASE.softplus, True)
        a, P, _ = factors_of(size[None, :], Ar, Ai, True, CASE)
        return size, a, P
    else:
        return bias, (Ar, Ai), (Ar, Ai)


@triton.jit
def this_step(dt, bias, Ar, Ai, fixed, CASE: tl.constexpr):
    """(dt [BD], a, P) of a step."""
    ACCURATE: tl.constexpr = dt.dtype == tl.float32
    if CASE.dt_lti:
        return fixed
    else:
        size = step_size(dt, bias, CASE.softplus, ACCURATE)
        a, P, _ = factors_of(size[None, :], Ar, Ai, ACCURATE, CASE)
        return size, a, P


@triton.jit
def state_step(hr, hi, u, size, a, P, B, keep, CASE: tl.constexpr):
    """h_t as a pair of tiles from h_(t-1); u and dt [BD]."""
    Br = B[0]
    Bi = B[1]
    if CASE.exact:
        x = u[None, :]
        Br, Bi = product(P[0], P[1], Br, Bi, CASE.complex)
    else:
        x = (size * u)[None, :]
    hr, hi = restart(hr, hi, keep, CASE)
    return advance(hr, hi, a[0], a[1], x, Br, Bi, CASE)


@triton.jit
def prefetch_rows(p, first, count, GROUP: tl.constexpr, ROW: tl.constexpr, first_d, BD: tl.constexpr, D: tl.constexpr):
    """Asks L2 for rows first .. first + GROUP - 1, channels first_d .. first_d + BD - 1."""
    PER_LINE: tl.constexpr = 1024 // p.dtype.element_ty.primitive_bitwidth
    LINES: tl.constexpr = (BD + PER_LINE - 1) // PER_LINE
    i = tl.arange(0, GROUP * LINES)
    row = tl.minimum(first + i // LINES, count - 1).to(tl.int64)
    prefetch(p + row * ROW + tl.minimum(first_d + (i % LINES) * PER_LINE, D - 1))


@triton.jit
def prefetch_span(p, first, count, SIZE: tl.constexpr):
    """Asks L2 for elements first .. first + SIZE - 1 of a contiguous fp32 tensor of count elements."""
    i = tl.arange(0, (SIZE + 31) // 32) * 32
    prefetch(p + tl.minimum(first + i, count - 1))


@triton.jit
def touch_rows(p, first, count, GROUP: tl.constexpr, ROW: tl.constexpr, first_d, BD: tl.constexpr, D: tl.constexpr):
    """One element of every 32-byte sector of rows first .. first + GROUP - 1, channels first_d .. first_d + BD - 1.

    The load brings the sectors into L1; the caller adds the values up long afterwards, which is all they are for.
    """
    PER_SECTOR: tl.constexpr = 256 // p.dtype.element_ty.primitive_bitwidth
    SECTORS: tl.constexpr = (BD + PER_SECTOR - 1) // PER_SECTOR
    i = tl.arange(0, GROUP * SECTORS)
    row = tl.minimum(first + i // SECTORS, count - 1).to(tl.int64)
    column = tl.minimum(first_d + (i % SECTORS) * PER_SECTOR, D - 1)
    return tl.load(p + row * ROW + column)


@triton.jit
def touch_span(p, first, count, SIZE: tl.constexpr):
    """The same for elements first .. first + SIZE - 1 of a contiguous fp32 tensor of count elements."""
    i = tl.arange(0, SIZE // 8) * 8
    return tl.load(p + tl.minimum(first + i, count - 1))


@triton.jit
def as_int(x):
    """The bits of x as int32."""
    if x.dtype.primitive_bitwidth == 16:
        return x.to(tl.int16, bitcast=True).to(tl.int32)
    else:
        return x.to(tl.int32, bitcast=True)


@triton.jit
def use_touched(sink_p, total):
    """Makes the touching loads count as used: stores where their sum is one value in 2^32, to memory nobody reads."""
    tl.store(sink_p + tl.arange(0, total.shape[0]), total, mask=total == 0x5BD1E995)
