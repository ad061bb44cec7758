"""Triton kernels that split a scan over chunks of the sequence, in both directions.

What every chunk adds to a state that passes through it, and its sum of dt, is found by `chunk_end_kernel` in long chunks of
plain cases, else by `chunk_state_kernel`; `carry_kernel` links the chunks. Letters and layouts as in `forward`.

`chunk_state_kernel` runs the recurrence from h = 0. `chunk_end_kernel` sums from the end of the chunk where decays are 1,

    forward: sum_t exp(A (dt_(t+1) + ... + dt_last)) dt_t u_t B_t      reverse: sum_t exp(A (dt_first + ... + dt_t)) C_t gy_t

and leaves out what is less than 2^-26 of what it was: once that is so for the upper half of the states in all channels of
a program, it goes on with the lower half, and with the last of them it ends. So its time depends on the decays.
"""

# Triton code, not Python: tuples grow in unrolled loops, and `if` on a constexpr must stand alone.
# mypy: ignore-errors
# ruff: noqa: RUF005

import triton
import triton.language as tl

from mamba_bio_audio.kernels.scan.parts import (
    LOG2E,
    back,
    fixed_step,
    load_keep,
    load_row,
    load_step,
    load_tiles,
    product,
    restart,
    sigmoid,
    state_step,
    step_size,
    store_tiles,
    this_step,
    turn,
)

NEGLIGIBLE = tl.constexpr(-26.0)  # as a power of two


@triton.jit
def half_step(hr, hi, total, Ar, Ai, fixed, bias, inputs, CASE: tl.constexpr, REVERSE: tl.constexpr):
    """One step of `chunk_state_kernel`: the state or adjoint as a pair of tiles, and the sum of dt [BD] so far."""
    x, dt, z, V, _, keep = inputs
    x = x.to(tl.float32)
    size, a, P = this_step(dt, bias, Ar, Ai, fixed, CASE)
    if REVERSE:
        if CASE.gate:
            z = z.to(tl.float32)
            x = x * z * sigmoid(z)
        if CASE.complex:
            x = 2.0 * x
            hi = hi - x[None, :] * V[1]
        hr = hr + x[None, :] * V[0]
        hr, hi = back(a[0], a[1], hr, hi, CASE)
        if CASE.plain:
            hr = hr + 0.0  # a product that is rounded before the next step adds to it
        hr, hi = restart(hr, hi, keep, CASE)
    else:
        hr, hi = state_step(hr, hi, x, size, a, P, V, keep, CASE)
    total += size
    if CASE.reset:
        total = tl.where(keep == 0.0, float("inf"), total)
    return hr, hi, total


@triton.jit
def row_of(i, count, REVERSE: tl.constexpr):
    """The i-th of `count` rows on the way, 64 bits wide."""
    row = i
    if REVERSE:
        row = count - 1 - i
    return row.to(tl.int64)


@triton.jit(do_not_specialize=["L", "T", "K", "zero", "skipped"])
def chunk_state_kernel(
    x_p, dt_p, A_p, V_p, z_p, bias_p, reset_p, end_p, sum_dt_p,
    L, T, K, x_batch, dt_batch, z_batch, zero, skipped,
    D: tl.constexpr, N: tl.constexpr, NP: tl.constexpr, BD: tl.constexpr, UNROLL: tl.constexpr,
    X_ROW: tl.constexpr, DT_ROW: tl.constexpr, Z_ROW: tl.constexpr, CASE: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """What a chunk adds to the state that passes through it, and how much it decays that state.

    Forward (x = u, V = B): h = a_t h + b_t over t upwards, chunks 0 .. K - 2.
    REVERSE (x = dL/dout, V = C): r = conj(a_t) (r + conj(C_t) gy_t), gy = x silu(z), twice that where complex, over t
    downwards, chunks 1 .. K - 1. Chunk 0 lies behind `skipped` others, which nobody asks for.
    CASE has V for B. Writes end (B, K, PARTS, N, D) and sum_dt (B, K, D), which is infinite where a reset cuts the chunk.
    """
    PLANE: tl.constexpr = N * D
    STATE: tl.constexpr = CASE.parts * N * D
    AHEAD: tl.constexpr = CASE.ahead
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

    # The last one may be over before its pieces are.
    begin = tl.minimum((chunk + skipped).to(tl.int64) * T, L)
    count = (tl.minimum(begin + T, L) - begin).to(tl.int32)
    Ar, Ai = load_tiles(A_p, tile, mask, PLANE, CASE.complex)
    if CASE.plain:
        Ar = Ar * LOG2E
    bias = tl.zeros([BD], tl.float32)
    if CASE.bias:
        bias = tl.load(bias_p + d, mask=mask_d, other=0.0)
    hr = tl.zeros([NP, BD], tl.float32)
    hi = tl.zeros([NP, BD], tl.float32)
    total = tl.zeros([BD], tl.float32)
    fixed = fixed_step(dt_p, d, mask_d, bias, Ar, Ai, CASE)
    V = (hr, hi)
    if CASE.B_lti:
        V = load_tiles(V_p, tile, mask, PLANE, CASE.complex)
    V_p += (batch * L + begin) * (CASE.parts * N)
    if not CASE.B_lti:
        V_p += n  # as a tensor of addresses; added at every load, it costs four instructions a step
    at = (
        x_p + batch * x_batch + begin * X_ROW + d, dt_p + batch * dt_batch + begin * DT_ROW + d,
        z_p + batch * z_batch + begin * Z_ROW + d, V_p, V_p, reset_p + batch * L + begin,
    )  # fmt: skip
    # Whole blocks first, then the steps that are left, in the direction of travel.
    full = count // UNROLL
    slots = ()
    if AHEAD:
        for j in tl.static_range(UNROLL):
            row = row_of(tl.where(full > 0, j, 0), count, REVERSE)
            slots = slots + (
                load_step(at, row, 0, mask_d, mask_n, V, V, N, EVEN_D, EVEN_N, X_ROW, DT_ROW, Z_ROW, CASE),
            )  # fmt: skip
    for i in range(full):
        ahead = tl.where(i + 1 < full, i + 1, i) * UNROLL
        steps = ()
        for j in tl.static_range(UNROLL):
            if AHEAD:
                hr, hi, total = half_step(hr, hi, total, Ar, Ai, fixed, bias, slots[j], CASE, REVERSE)
                row = row_of(ahead + j, count, REVERSE)
            else:
                row = row_of(i * UNROLL + j, count, REVERSE)
            steps = steps + (
                load_step(at, row, 0, mask_d, mask_n, V, V, N, EVEN_D, EVEN_N, X_ROW, DT_ROW, Z_ROW, CASE),
            )  # fmt: skip
        if AHEAD:
            slots = steps
        else:
            for j in tl.static_range(UNROLL):
                hr, hi, total = half_step(hr, hi, total, Ar, Ai, fixed, bias, steps[j], CASE, REVERSE)
    for i in range(full * UNROLL, count):
        row = row_of(i, count, REVERSE)
        inputs = load_step(at, row, 0, mask_d, mask_n, V, V, N, EVEN_D, EVEN_N, X_ROW, DT_ROW, Z_ROW, CASE)
        hr, hi, total = half_step(hr, hi, total, Ar, Ai, fixed, bias, inputs, CASE, REVERSE)
    store_tiles(end_p + (batch * K + chunk) * STATE, tile, mask, hr, hi, PLANE, CASE.complex)
    tl.store(sum_dt_p + (batch * K + chunk) * D + d, total, mask=mask_d)


@triton.jit
def first_states(
    i, cum, open, pointers, A_p, end_p, d, mask_d, bias, count, zero,
    P: tl.constexpr, LAST: tl.constexpr, FIRST: tl.constexpr, D: tl.constexpr, N: tl.constexpr, UNROLL: tl.constexpr,
    X_ROW: tl.constexpr, DT_ROW: tl.constexpr, Z_ROW: tl.constexpr, EVEN_D: tl.constexpr, CASE: tl.constexpr,
    REVERSE: tl.constexpr,
):  # fmt: skip
    """Sums over the first P states, from step i on the way, until the upper half of them (LAST: all) no longer count."""
    x_p, dt_p, z_p, V_p, reset_p = pointers
    ACCURATE: tl.constexpr = dt_p.dtype.element_ty == tl.float32
    n = tl.arange(0, P)
    mask_n = n < N
    tile = n[:, None] * D + d[None, :] + zero
    mask = mask_n[:, None] & mask_d[None, :]
    A = tl.load(A_p + tile, mask=mask, other=-1e30) * LOG2E
    part = A
    if not LAST:
        part = tl.where(n[:, None] >= P // 2, A, -1e30)
    slowest = tl.max(part, axis=0)
    total = tl.zeros([P, d.shape[0]], tl.float32)
    counts = (i < count) & (tl.max(slowest * cum) >= NEGLIGIBLE) & (open > 0.0)
    while counts:
        steps = ()
        for j in tl.static_range(UNROLL):
            at = tl.minimum(i + j, count - 1)
            row = (at if REVERSE else count - 1 - at).to(tl.int64)
            x = load_row(x_p + row * X_ROW, mask_d, EVEN_D)
            dt = load_row(dt_p + row * DT_ROW, mask_d, EVEN_D)
            z = x
            if CASE.gate:
                z = load_row(z_p + row * Z_ROW, mask_d, EVEN_D)
            V = load_row(V_p + row * N + n, mask_n, N % P == 0)
            steps = steps + ((x, dt, z, V, load_keep(reset_p + row, CASE)),)
        for j in tl.static_range(UNROLL):
            x, dt, z, V, keep = steps[j]
            live = i + j < count
            x = x.to(tl.float32)
            dt = tl.where(live, step_size(dt, bias, CASE.softplus, ACCURATE), 0.0)
            if REVERSE:
                if CASE.gate:
                    z = z.to(tl.float32)
                    x = x * z * sigmoid(z)
                cum += dt
                if CASE.reset:
                    open = tl.where(live & (keep == 0.0), 0.0, open)
            else:
                x = x * dt
            if CASE.reset:
                x = x * open
            x = tl.where(live, x, 0.0)
            total += tl.exp2(A * cum[None, :]) * (x[None, :] * V[:, None])
            if not REVERSE:
                cum += dt
                if CASE.reset:
                    open = tl.where(live & (keep == 0.0), 0.0, open)
        i += UNROLL
        counts = (i < count) & (tl.max(slowest * cum) >= NEGLIGIBLE) & (open > 0.0)
    if FIRST:
        tl.store(end_p + tile, total, mask=mask)
    else:
        tl.debug_barrier()
        tl.store(end_p + tile, tl.load(end_p + tile, mask=mask, other=0.0) + total, mask=mask)
    return i, cum, open


@triton.jit(do_not_specialize=["L", "T", "K", "zero"])
def chunk_end_kernel(
    x_p, dt_p, A_p, V_p, z_p, bias_p, reset_p, end_p, sum_dt_p, zeros_p,
    L, T, K, x_batch, dt_batch, z_batch, zero,
    D: tl.constexpr, N: tl.constexpr, NP: tl.constexpr, BD: tl.constexpr, UNROLL: tl.constexpr,
    X_ROW: tl.constexpr, DT_ROW: tl.constexpr, Z_ROW: tl.constexpr, CASE: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """As `chunk_state_kernel`, for plain cases; sum_dt is infinite also where nothing of a state passes the chunk."""
    STATE: tl.constexpr = N * D
    EVEN_D: tl.constexpr = D % BD == 0
    BLOCKS: tl.constexpr = (D + BD - 1) // BD
    pid = tl.program_id(0)
    chunk = (pid // BLOCKS) % (K - 1)
    batch = (pid // BLOCKS // (K - 1)).to(tl.int64)
    if REVERSE:
        chunk += 1
    d = (pid % BLOCKS) * BD + tl.arange(0, BD)
    mask_d = d < D
    begin = chunk.to(tl.int64) * T
    count = (tl.minimum(begin + T, L) - begin).to(tl.int32)
    bias = tl.zeros([BD], tl.float32)
    if CASE.bias:
        bias = tl.load(bias_p + d, mask=mask_d, other=0.0)
    opaque = tl.max(tl.load(zeros_p + tl.arange(0, BD))) * 16  # a 0 that the compiler does not know, as in forward
    pointers = (
        x_p + batch * x_batch + begin * X_ROW + d, dt_p + batch * dt_batch + begin * DT_ROW + d,
        z_p + batch * z_batch + begin * Z_ROW + d, V_p + (batch * L + begin) * N + opaque, reset_p + batch * L + begin,
    )  # fmt: skip
    end_p += (batch * K + chunk) * STATE
    i = count * 0
    cum = tl.zeros([BD], tl.float32)
    open = 1.0
    i, cum, open = first_states(
        i, cum, open, pointers, A_p, end_p, d, mask_d, bias, count, zero,
        NP, NP <= 2, True, D, N, UNROLL, X_ROW, DT_ROW, Z_ROW, EVEN_D, CASE, REVERSE,
    )  # fmt: skip
    if NP > 2:
        i, cum, open = first_states(
            i, cum, open, pointers, A_p, end_p, d, mask_d, bias, count, zero,
            NP // 2, NP <= 4, False, D, N, UNROLL, X_ROW, DT_ROW, Z_ROW, EVEN_D, CASE, REVERSE,
        )  # fmt: skip
    if NP > 4:
        i, cum, open = first_states(
            i, cum, open, pointers, A_p, end_p, d, mask_d, bias, count, zero,
            NP // 4, NP <= 8, False, D, N, UNROLL, X_ROW, DT_ROW, Z_ROW, EVEN_D, CASE, REVERSE,
        )  # fmt: skip
    if NP > 8:
        i, cum, open = first_states(
            i, cum, open, pointers, A_p, end_p, d, mask_d, bias, count, zero,
            NP // 8, True, False, D, N, UNROLL, X_ROW, DT_ROW, Z_ROW, EVEN_D, CASE, REVERSE,
        )  # fmt: skip
    cut = (i < count) | (open == 0.0)
    tl.store(sum_dt_p + (batch * K + chunk) * D + d, tl.where(cut, float("inf"), cum), mask=mask_d)


@triton.jit(do_not_specialize=["K"])
def carry_kernel(
    end_p, sum_dt_p, A_p, first_p, start_p, K,
    D: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr, UNROLL: tl.constexpr,
    COMPLEX: tl.constexpr, HAS_FIRST: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """start[c + 1] = exp(A sum_dt[c]) start[c] + end[c], from start[0] = first; REVERSE runs c downwards with conj(A).

    A (PARTS, N, D), first (B, PARTS, N, D), end and start (B, K, PARTS, N, D). One program owns BLOCK of the N * D entries
    of one batch row.
    """
    PLANE: tl.constexpr = N * D
    STATE: tl.constexpr = 2 * PLANE if COMPLEX else PLANE
    BLOCKS: tl.constexpr = (PLANE + BLOCK - 1) // BLOCK
    pid = tl.program_id(0)
    batch = (pid // BLOCKS).to(tl.int64)
    e = (pid % BLOCKS) * BLOCK + tl.arange(0, BLOCK)
    mask = e < PLANE
    Ar, Ai = load_tiles(A_p, e, mask, PLANE, COMPLEX)
    sr = tl.zeros([BLOCK], tl.float32)
    si = tl.zeros([BLOCK], tl.float32)
    if HAS_FIRST:
        sr, si = load_tiles(first_p + batch * STATE, e, mask, PLANE, COMPLEX)
    end_p += batch * K * STATE
    start_p += batch * K * STATE
    sum_dt_p += batch * K * D + e % D
    for i in range(0, K, UNROLL):
        sums = ()
        ends = ()
        for j in tl.static_range(UNROLL):
            c = batch * 0 + (K - 1 - i - j if REVERSE else i + j)  # 64 bits wide
            live = mask & (i + j < K - 1)  # the last chunk on the way hands nothing on, and was not computed
            sums = sums + (tl.load(sum_dt_p + c * D, mask=live, other=0.0),)
            ends = ends + (load_tiles(end_p + c * STATE, e, live, PLANE, COMPLEX),)
        for j in tl.static_range(UNROLL):
            c = batch * 0 + (K - 1 - i - j if REVERSE else i + j)  # 64 bits wide
            store_tiles(start_p + c * STATE, e, mask & (i + j < K), sr, si, PLANE, COMPLEX)
            cut = sums[j] == float("inf")
            passed = tl.where(cut, 0.0, sums[j])
            if COMPLEX:
                size = tl.where(cut, 0.0, tl.exp2(passed * LOG2E * Ar))
                cos_1, sin = turn(passed * (-Ai if REVERSE else Ai))
                sr, si = product(size + size * cos_1, size * sin, sr, si, True)
                sr += ends[j][0]
                si += ends[j][1]
            else:
                sr = tl.where(cut, 0.0, tl.exp2(Ar * LOG2E * passed)) * sr + ends[j][0]
