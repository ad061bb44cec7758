"""Triton kernels that split the scans of `general_fwd` over chunks of the sequence, in both directions.

`general_chunk_kernel` finds what every chunk adds to a state that passes through it and its sum of dt, `pair_carry_kernel`
links complex chunks as `triton_fwd.carry_kernel` links real ones. Letters and layouts as in `general_fwd`.
"""

# Triton code, not Python: tuples grow in unrolled loops, and `if` on a constexpr must stand alone.
# mypy: ignore-errors
# ruff: noqa: RUF005

import triton
import triton.language as tl

from mamba_bio_audio.kernels.selective_scan.general_parts import (
    advance,
    conj_product,
    decay,
    drive,
    hold,
    load_keep,
    load_parts,
    load_tiles,
    product,
    step_size,
    store_tiles,
    turn,
)
from mamba_bio_audio.kernels.selective_scan.triton_fwd import LOG2E, load_row, sigmoid


@triton.jit
def load_half(
    x_p, dt_p, z_p, V_p, reset_p, n, mask_d, mask_n, V,
    N: tl.constexpr, EVEN_D: tl.constexpr, EVEN_N: tl.constexpr, HAS_Z: tl.constexpr, HAS_RESET: tl.constexpr,
    COMPLEX: tl.constexpr, DT_LTI: tl.constexpr, V_LTI: tl.constexpr,
):  # fmt: skip
    x = load_row(x_p, mask_d, EVEN_D)
    dt = x
    if not DT_LTI:
        dt = load_row(dt_p, mask_d, EVEN_D)
    z = x
    if HAS_Z:
        z = load_row(z_p, mask_d, EVEN_D)
    if not V_LTI:
        V = load_parts(V_p, n, mask_n, N, EVEN_N, COMPLEX)
    return x, dt, z, V[0], V[1], load_keep(reset_p, HAS_RESET)


@triton.jit
def half_step(
    hr, hi, total, Ar, Ai, fixed_dt, fixed_a, fixed_P, bias, x, dt, z, Vr, Vi, keep,
    SOFTPLUS: tl.constexpr, HAS_Z: tl.constexpr, HAS_RESET: tl.constexpr, PRECISE: tl.constexpr, EXACT: tl.constexpr,
    COMPLEX: tl.constexpr, DT_LTI: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """One step of `general_chunk_kernel`: the state or adjoint as a pair of tiles, and the sum of dt [BD] so far."""
    ACCURATE: tl.constexpr = dt.dtype == tl.float32
    x = x.to(tl.float32)
    ar = fixed_a[0]
    ai = fixed_a[1]
    size = fixed_dt
    if not DT_LTI:
        size = step_size(dt, bias, SOFTPLUS, ACCURATE)
        ar, ai = decay(size[None, :], Ar, Ai, ACCURATE, PRECISE, COMPLEX)
    if REVERSE:
        if HAS_Z:
            z = z.to(tl.float32)
            x = x * z * sigmoid(z)
        if COMPLEX:
            x = 2.0 * x
            gr = hr + x[None, :] * Vr
            gi = hi - x[None, :] * Vi
        else:
            gr = hr + x[None, :] * Vr
            gi = hi
        hr, hi = conj_product(ar, ai, gr, gi, COMPLEX)
        if PRECISE:
            hr += gr
            if COMPLEX:
                hi += gi
    else:
        x, Vr, Vi = drive(x[None, :], size[None, :], Ar, Ai, ar, ai, fixed_P, Vr, Vi, EXACT, DT_LTI, PRECISE, COMPLEX)
        if HAS_RESET:
            hr = hr * keep
            if COMPLEX:
                hi = hi * keep
        hr, hi = advance(hr, hi, ar, ai, x, Vr, Vi, PRECISE, COMPLEX)
    total += size
    if HAS_RESET:
        total = tl.where(keep == 0.0, float("inf"), total)
        if REVERSE:
            hr = hr * keep
            if COMPLEX:
                hi = hi * keep
    return hr, hi, total


@triton.jit(do_not_specialize=["L", "T", "K", "zero"])
def general_chunk_kernel(
    x_p, dt_p, A_p, V_p, z_p, bias_p, reset_p, end_p, sum_dt_p,
    L, T, K, x_batch, dt_batch, z_batch, zero,
    D: tl.constexpr, N: tl.constexpr, NP: tl.constexpr, BD: tl.constexpr, UNROLL: tl.constexpr,
    X_ROW: tl.constexpr, DT_ROW: tl.constexpr, Z_ROW: tl.constexpr,
    COMPLEX: tl.constexpr, DT_LTI: tl.constexpr, V_LTI: tl.constexpr, EXACT: tl.constexpr,
    HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, SOFTPLUS: tl.constexpr, HAS_RESET: tl.constexpr,
    PRECISE: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """What a chunk adds to the state that passes through it, and how much it decays that state.

    Forward (x = u, V = B): h = a_t h + b_t over t upwards, chunks 0 .. K - 2.
    REVERSE (x = dL/dout, V = C): r = conj(a_t) (r + conj(C_t) gy_t), gy = x silu(z), twice that where complex, over t
    downwards, chunks 1 .. K - 1.
    Writes end (B, K, PARTS, N, D) and sum_dt (B, K, D), which is infinite where a reset cuts the chunk.
    """
    PARTS: tl.constexpr = 2 if COMPLEX else 1
    PLANE: tl.constexpr = N * D
    STATE: tl.constexpr = PARTS * N * D
    V_ROW: tl.constexpr = PARTS * N
    EVEN_D: tl.constexpr = D % BD == 0
    EVEN_N: tl.constexpr = N == NP
    BLOCKS: tl.constexpr = (D + BD - 1) // BD
    pid = tl.program_id(0)
    chunk = (pid // BLOCKS) % (K - 1)
    batch = (pid // BLOCKS // (K - 1)).to(tl.int64)
    if REVERSE:
        chunk += 1
    d = (pid % BLOCKS) * BD + tl.arange(0, BD)
    n = tl.arange(0, NP)
    mask_d = d < D
    mask_n = n < N
    tile = n[:, None] * D + d[None, :] + zero  # [NP, BD]
    mask = mask_n[:, None] & mask_d[None, :]

    begin = chunk.to(tl.int64) * T
    count = (tl.minimum(begin + T, L) - begin).to(tl.int32)
    Ar, Ai = load_tiles(A_p, tile, mask, PLANE, COMPLEX)
    bias = tl.zeros([BD], tl.float32)
    if HAS_BIAS:
        bias = tl.load(bias_p + d, mask=mask_d, other=0.0)
    hr = tl.zeros([NP, BD], tl.float32)
    hi = tl.zeros([NP, BD], tl.float32)
    total = tl.zeros([BD], tl.float32)
    fixed_dt = bias
    fixed_a = (hr, hi)
    fixed_P = (hr, hi)
    if DT_LTI:
        fixed_dt = step_size(tl.load(dt_p + d, mask=mask_d, other=0.0), bias, SOFTPLUS, True)
        fixed_a = decay(fixed_dt[None, :], Ar, Ai, True, PRECISE, COMPLEX)
        if EXACT:
            Pr, Pi, _, _ = hold(fixed_dt[None, :], Ar, Ai, fixed_a[0], fixed_a[1], PRECISE, COMPLEX)
            fixed_P = (Pr, Pi)
    fixed_V = (hr, hi)
    if V_LTI:
        fixed_V = load_tiles(V_p, tile, mask, PLANE, COMPLEX)
    x_p += batch * x_batch + begin * X_ROW + d
    dt_p += batch * dt_batch + begin * DT_ROW + d
    z_p += batch * z_batch + begin * Z_ROW + d
    V_p += (batch * L + begin) * V_ROW
    reset_p += batch * L + begin
    full = count // UNROLL
    for i in range(full):
        inputs = ()
        for j in tl.static_range(UNROLL):
            row = i * UNROLL + j
            if REVERSE:
                row = count - 1 - row
            t = row.to(tl.int64)
            inputs = inputs + (
                load_half(
                    x_p + t * X_ROW, dt_p + t * DT_ROW, z_p + t * Z_ROW, V_p + t * V_ROW, reset_p + t,
                    n, mask_d, mask_n, fixed_V, N, EVEN_D, EVEN_N, HAS_Z, HAS_RESET, COMPLEX, DT_LTI, V_LTI,
                ),
            )  # fmt: skip
        for j in tl.static_range(UNROLL):
            x, dt, z, Vr, Vi, keep = inputs[j]
            hr, hi, total = half_step(
                hr, hi, total, Ar, Ai, fixed_dt, fixed_a, fixed_P, bias, x, dt, z, Vr, Vi, keep,
                SOFTPLUS, HAS_Z, HAS_RESET, PRECISE, EXACT, COMPLEX, DT_LTI, REVERSE,
            )  # fmt: skip
    for i in range(full * UNROLL, count):
        row = i
        if REVERSE:
            row = count - 1 - row
        t = begin * 0 + row  # 64 bits wide
        x, dt, z, Vr, Vi, keep = load_half(
            x_p + t * X_ROW, dt_p + t * DT_ROW, z_p + t * Z_ROW, V_p + t * V_ROW, reset_p + t,
            n, mask_d, mask_n, fixed_V, N, EVEN_D, EVEN_N, HAS_Z, HAS_RESET, COMPLEX, DT_LTI, V_LTI,
        )  # fmt: skip
        hr, hi, total = half_step(
            hr, hi, total, Ar, Ai, fixed_dt, fixed_a, fixed_P, bias, x, dt, z, Vr, Vi, keep,
            SOFTPLUS, HAS_Z, HAS_RESET, PRECISE, EXACT, COMPLEX, DT_LTI, REVERSE,
        )  # fmt: skip
    store_tiles(end_p + (batch * K + chunk) * STATE, tile, mask, hr, hi, PLANE, COMPLEX)
    tl.store(sum_dt_p + (batch * K + chunk) * D + d, total, mask=mask_d)


@triton.jit(do_not_specialize=["K"])
def pair_carry_kernel(
    end_p, sum_dt_p, A_p, first_p, start_p, K,
    D: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr, UNROLL: tl.constexpr,
    HAS_FIRST: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """start[c + 1] = exp(A sum_dt[c]) start[c] + end[c] for complex numbers, from start[0] = first.

    REVERSE runs c downwards with conj(A). A (2, N, D), first (B, 2, N, D), end and start (B, K, 2, N, D). One program owns
    BLOCK of the N * D entries of one batch row.
    """
    PLANE: tl.constexpr = N * D
    BLOCKS: tl.constexpr = (PLANE + BLOCK - 1) // BLOCK
    pid = tl.program_id(0)
    batch = (pid // BLOCKS).to(tl.int64)
    e = (pid % BLOCKS) * BLOCK + tl.arange(0, BLOCK)
    mask = e < PLANE
    Ar, Ai = load_tiles(A_p, e, mask, PLANE, True)
    if REVERSE:
        Ai = -Ai
    sr = tl.zeros([BLOCK], tl.float32)
    si = tl.zeros([BLOCK], tl.float32)
    if HAS_FIRST:
        sr, si = load_tiles(first_p + batch * (2 * PLANE), e, mask, PLANE, True)
    end_p += batch * K * (2 * PLANE)
    start_p += batch * K * (2 * PLANE)
    sum_dt_p += batch * K * D + e % D
    for i in range(0, K, UNROLL):
        sums = ()
        ends = ()
        for j in tl.static_range(UNROLL):
            c = batch * 0 + (K - 1 - i - j if REVERSE else i + j)  # 64 bits wide
            live = mask & (i + j < K - 1)  # the last chunk on the way hands nothing on, and was not computed
            sums = sums + (tl.load(sum_dt_p + c * D, mask=live, other=0.0),)
            ends = ends + (load_tiles(end_p + c * (2 * PLANE), e, live, PLANE, True),)
        for j in tl.static_range(UNROLL):
            c = batch * 0 + (K - 1 - i - j if REVERSE else i + j)  # 64 bits wide
            store_tiles(start_p + c * (2 * PLANE), e, mask & (i + j < K), sr, si, PLANE, True)
            cut = sums[j] == float("inf")
            passed = tl.where(cut, 0.0, sums[j])
            size = tl.where(cut, 0.0, tl.exp2(passed * LOG2E * Ar))
            cos_1, sin = turn(passed * Ai)
            sr, si = product(size + size * cos_1, size * sin, sr, si, True)
            sr += ends[j][0]
            si += ends[j][1]
