"""Triton forward of every scan that `triton_fwd` does not run: complex A, time-invariant dt, B or C, exact hold.

    a_t = exp(dt_t A)                                      per (b, t, d, n), complex where A is
    b_t = dt_t u_t B_t                                     or, EXACT, (exp(dt_t A) - 1) / A * u_t B_t
    h_t = a_t h_(t-1) + b_t                                fp32; h_(t-1) = 0 where reset_t
    y_t = sum_n C_t h_t + D u_t                            complex: 2 Re(sum_n C_t h_t) + D u_t
    out = y_t silu(z_t)

Mamba (arXiv 2312.00752) section 3.3.2 and equation 4; S4D (arXiv 2206.11893) for the time-invariant complex case.
Letters and the layout of the state tile [NP, BD] as in `triton_fwd`, complex numbers as in `general_parts`. Time-invariant
B and C stay in registers as tiles, and with a time-invariant dt (D) so does a.

Per complex state and step three transcendental instructions (exponential, sine, cosine) take 24 clocks of a scheduler,
all others together about 16: the loop is bound by them, and polynomials for sine and cosine cost as much.
"""

# Triton code, not Python: tuples grow in unrolled loops, and `if` on a constexpr must stand alone.
# mypy: ignore-errors
# ruff: noqa: RUF005, SIM102

import triton
import triton.language as tl

from mamba_bio_audio.kernels.selective_scan.general_parts import (
    advance,
    decay,
    drive,
    hold,
    load_inputs,
    load_tiles,
    step_size,
    store_tiles,
)
from mamba_bio_audio.kernels.selective_scan.triton_fwd import (
    as_int,
    prefetch_rows,
    prefetch_span,
    sigmoid,
    touch_rows,
    touch_span,
    use_touched,
)


@triton.jit
def general_step(
    hr, hi, Ar, Ai, fixed_dt, fixed_a, fixed_P, bias, skip, u, dt, z, Br, Bi, Cr, Ci, keep,
    SOFTPLUS: tl.constexpr, HAS_Z: tl.constexpr, HAS_RESET: tl.constexpr, PRECISE: tl.constexpr, EXACT: tl.constexpr,
    COMPLEX: tl.constexpr, DT_LTI: tl.constexpr,
):  # fmt: skip
    """(h_t as a pair of tiles, out_t [BD] fp32) from h_(t-1)."""
    ACCURATE: tl.constexpr = dt.dtype == tl.float32
    u = u.to(tl.float32)
    ar = fixed_a[0]
    ai = fixed_a[1]
    size = fixed_dt
    if not DT_LTI:
        size = step_size(dt, bias, SOFTPLUS, ACCURATE)
        ar, ai = decay(size[None, :], Ar, Ai, ACCURATE, PRECISE, COMPLEX)
    x, Br, Bi = drive(u[None, :], size[None, :], Ar, Ai, ar, ai, fixed_P, Br, Bi, EXACT, DT_LTI, PRECISE, COMPLEX)
    if HAS_RESET:
        hr = hr * keep
        if COMPLEX:
            hi = hi * keep
    hr, hi = advance(hr, hi, ar, ai, x, Br, Bi, PRECISE, COMPLEX)
    y = tl.sum(hr * Cr, axis=0)
    if COMPLEX:
        y = 2.0 * (y - tl.sum(hi * Ci, axis=0))
    y += skip * u
    if HAS_Z:
        z = z.to(tl.float32)
        y = y * z * sigmoid(z)
    return hr, hi, y


@triton.jit
def touch_inputs(
    u_rows, dt_rows, z_rows, B_rows, C_rows, first, steps, first_d,
    GROUP: tl.constexpr, U_ROW: tl.constexpr, DT_ROW: tl.constexpr, Z_ROW: tl.constexpr, BC_ROW: tl.constexpr,
    SPAN: tl.constexpr, BD: tl.constexpr, D: tl.constexpr,
    HAS_Z: tl.constexpr, DT_LTI: tl.constexpr, B_LTI: tl.constexpr, C_LTI: tl.constexpr,
):  # fmt: skip
    """Brings a group of steps into L1; the values are for `use_touched`, much later."""
    u = touch_rows(u_rows, first, steps, GROUP, U_ROW, first_d, BD, D)
    touched = (u,)
    if not DT_LTI:
        touched = touched + (touch_rows(dt_rows, first, steps, GROUP, DT_ROW, first_d, BD, D),)
    if HAS_Z:
        touched = touched + (touch_rows(z_rows, first, steps, GROUP, Z_ROW, first_d, BD, D),)
    begin = first.to(tl.int64) * BC_ROW
    end = steps.to(tl.int64) * BC_ROW
    if not B_LTI:
        touched = touched + (touch_span(B_rows, begin, end, SPAN),)
    if not C_LTI:
        touched = touched + (touch_span(C_rows, begin, end, SPAN),)
    return touched


@triton.jit
def prefetch_inputs(
    u_rows, dt_rows, z_rows, B_rows, C_rows, first, steps, first_d,
    GROUP: tl.constexpr, U_ROW: tl.constexpr, DT_ROW: tl.constexpr, Z_ROW: tl.constexpr, BC_ROW: tl.constexpr,
    SPAN: tl.constexpr, BD: tl.constexpr, D: tl.constexpr,
    HAS_Z: tl.constexpr, DT_LTI: tl.constexpr, B_LTI: tl.constexpr, C_LTI: tl.constexpr,
):  # fmt: skip
    """Asks L2 for a group of steps."""
    prefetch_rows(u_rows, first, steps, GROUP, U_ROW, first_d, BD, D)
    if not DT_LTI:
        prefetch_rows(dt_rows, first, steps, GROUP, DT_ROW, first_d, BD, D)
    if HAS_Z:
        prefetch_rows(z_rows, first, steps, GROUP, Z_ROW, first_d, BD, D)
    begin = first.to(tl.int64) * BC_ROW
    end = steps.to(tl.int64) * BC_ROW
    if not B_LTI:
        prefetch_span(B_rows, begin, end, SPAN)
    if not C_LTI:
        prefetch_span(C_rows, begin, end, SPAN)


@triton.jit(do_not_specialize=["L", "T", "K", "zero"])
def general_fwd_kernel(
    u_p, dt_p, A_p, B_p, C_p, skip_p, z_p, bias_p, h0_p, reset_p, out_p, hT_p, states_p, sink_p, zeros_p,
    L, T, K, u_batch, dt_batch, z_batch, zero,
    D: tl.constexpr, N: tl.constexpr, NP: tl.constexpr, BD: tl.constexpr, UNROLL: tl.constexpr, SEG: tl.constexpr,
    U_ROW: tl.constexpr, DT_ROW: tl.constexpr, Z_ROW: tl.constexpr,
    COMPLEX: tl.constexpr, DT_LTI: tl.constexpr, B_LTI: tl.constexpr, C_LTI: tl.constexpr, EXACT: tl.constexpr,
    HAS_SKIP: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, SOFTPLUS: tl.constexpr,
    HAS_H0: tl.constexpr, HAS_RESET: tl.constexpr, WRITE_STATES: tl.constexpr,
    PRECISE: tl.constexpr, GROUP: tl.constexpr, FAR: tl.constexpr,
):  # fmt: skip
    """Scans one chunk from h0 (B * K, PARTS, N, D); writes out, the last state (B, PARTS, N, D) and, every SEG steps, the
    state before the step into states (B, ceil(L / SEG), PARTS, N, D). T is a multiple of SEG where states are written."""
    PARTS: tl.constexpr = 2 if COMPLEX else 1
    PLANE: tl.constexpr = N * D
    STATE: tl.constexpr = PARTS * N * D
    BC_ROW: tl.constexpr = PARTS * N
    SPAN: tl.constexpr = GROUP * PARTS * NP
    EVEN_D: tl.constexpr = D % BD == 0
    EVEN_N: tl.constexpr = N == NP
    BLOCKS: tl.constexpr = (D + BD - 1) // BD
    pid = tl.program_id(0)
    chunk = (pid // BLOCKS) % K
    batch = (pid // BLOCKS // K).to(tl.int64)
    first_d = (pid % BLOCKS) * BD
    d = first_d + tl.arange(0, BD)
    n = tl.arange(0, NP)
    mask_d = d < D
    mask_n = n < N
    tile = n[:, None] * D + d[None, :] + zero  # [NP, BD]
    mask = mask_n[:, None] & mask_d[None, :]

    begin = chunk.to(tl.int64) * T
    steps = (tl.minimum(begin + T, L) - begin).to(tl.int32)
    Ar, Ai = load_tiles(A_p, tile, mask, PLANE, COMPLEX)
    bias = tl.zeros([BD], tl.float32)
    if HAS_BIAS:
        bias = tl.load(bias_p + d, mask=mask_d, other=0.0)
    skip = tl.zeros([BD], tl.float32)
    if HAS_SKIP:
        skip = tl.load(skip_p + d, mask=mask_d, other=0.0)
    if HAS_H0:
        hr, hi = load_tiles(h0_p + (batch * K + chunk) * STATE, tile, mask, PLANE, COMPLEX)
    else:
        hr = tl.zeros([NP, BD], tl.float32)
        hi = tl.zeros([NP, BD], tl.float32)
    fixed_dt = bias
    fixed_a = (hr, hi)
    fixed_P = (hr, hi)
    if DT_LTI:
        fixed_dt = step_size(tl.load(dt_p + d, mask=mask_d, other=0.0), bias, SOFTPLUS, True)
        fixed_a = decay(fixed_dt[None, :], Ar, Ai, True, PRECISE, COMPLEX)
        if EXACT:
            Pr, Pi, _, _ = hold(fixed_dt[None, :], Ar, Ai, fixed_a[0], fixed_a[1], PRECISE, COMPLEX)
            fixed_P = (Pr, Pi)
    fixed_B = (hr, hi)
    if B_LTI:
        fixed_B = load_tiles(B_p, tile, mask, PLANE, COMPLEX)
    fixed_C = (hr, hi)
    if C_LTI:
        fixed_C = load_tiles(C_p, tile, mask, PLANE, COMPLEX)

    u_rows = u_p + batch * u_batch + begin * U_ROW
    dt_rows = dt_p + batch * dt_batch + begin * DT_ROW
    z_rows = z_p + batch * z_batch + begin * Z_ROW
    B_rows = B_p + (batch * L + begin) * BC_ROW
    C_rows = C_p + (batch * L + begin) * BC_ROW
    u_p = u_rows + d
    dt_p = dt_rows + d
    z_p = z_rows + d
    out_p += (batch * L + begin) * D + d
    # A loaded 0: without it the compiler sees that all lanes read one address, keeps it in uniform registers and copies
    # it out again for every load.
    opaque = tl.max(tl.load(zeros_p + tl.arange(0, BD))) * 16
    B_p = B_rows + opaque
    C_p = C_rows + opaque
    reset_p += batch * L + begin
    states_p += (batch * tl.cdiv(L, SEG) + begin // SEG) * STATE

    # Loads find their data in L1, where a group of steps is touched while the group before it is computed, having been
    # prefetched to L2 FAR steps earlier; see `triton_fwd`.
    PER_SEG: tl.constexpr = SEG // UNROLL
    PER_GROUP: tl.constexpr = GROUP // UNROLL
    full = steps // UNROLL
    touched = touch_inputs(
        u_rows, dt_rows, z_rows, B_rows, C_rows, steps * 0, steps, first_d,
        GROUP, U_ROW, DT_ROW, Z_ROW, BC_ROW, SPAN, BD, D, HAS_Z, DT_LTI, B_LTI, C_LTI,
    )  # fmt: skip
    sums = ()
    for k in tl.static_range(len(touched)):
        sums = sums + (as_int(touched[k]),)
    for i in range(full):
        if WRITE_STATES:
            if i % PER_SEG == 0:
                store_tiles(states_p, tile, mask, hr, hi, PLANE, COMPLEX)
                states_p += STATE
        if i % PER_GROUP == 0:
            soon = (i + PER_GROUP) * UNROLL
            if FAR > 0:
                prefetch_inputs(
                    u_rows, dt_rows, z_rows, B_rows, C_rows, soon + FAR, steps, first_d,
                    GROUP, U_ROW, DT_ROW, Z_ROW, BC_ROW, SPAN, BD, D, HAS_Z, DT_LTI, B_LTI, C_LTI,
                )  # fmt: skip
            added = ()
            for k in tl.static_range(len(touched)):
                added = added + (sums[k] + as_int(touched[k]),)
            sums = added
            touched = touch_inputs(
                u_rows, dt_rows, z_rows, B_rows, C_rows, soon, steps, first_d,
                GROUP, U_ROW, DT_ROW, Z_ROW, BC_ROW, SPAN, BD, D, HAS_Z, DT_LTI, B_LTI, C_LTI,
            )  # fmt: skip
        # No store before the block's last load: the compiler moves no load across a store.
        ys = ()
        for j in tl.static_range(UNROLL):
            u, dt, z, Br, Bi, Cr, Ci, keep = load_inputs(
                u_p + j * U_ROW, dt_p + j * DT_ROW, z_p + j * Z_ROW, B_p + j * BC_ROW, C_p + j * BC_ROW,
                reset_p + j, n, mask_d, mask_n, fixed_B, fixed_C,
                N, EVEN_D, EVEN_N, HAS_Z, HAS_RESET, COMPLEX, DT_LTI, B_LTI, C_LTI,
            )  # fmt: skip
            hr, hi, y = general_step(
                hr, hi, Ar, Ai, fixed_dt, fixed_a, fixed_P, bias, skip, u, dt, z, Br, Bi, Cr, Ci, keep,
                SOFTPLUS, HAS_Z, HAS_RESET, PRECISE, EXACT, COMPLEX, DT_LTI,
            )  # fmt: skip
            ys = ys + (y,)
        for j in tl.static_range(UNROLL):
            if EVEN_D:
                tl.store(out_p + j * D, ys[j].to(out_p.dtype.element_ty))
            else:
                tl.store(out_p + j * D, ys[j].to(out_p.dtype.element_ty), mask=mask_d)
        u_p += UNROLL * U_ROW
        dt_p += UNROLL * DT_ROW
        z_p += UNROLL * Z_ROW
        B_p += UNROLL * BC_ROW
        C_p += UNROLL * BC_ROW
        reset_p += UNROLL
        out_p += UNROLL * D
    for k in tl.static_range(len(touched)):
        use_touched(sink_p, sums[k])
    rest = steps - full * UNROLL
    if WRITE_STATES:
        if (rest > 0) & (full % PER_SEG == 0):
            store_tiles(states_p, tile, mask, hr, hi, PLANE, COMPLEX)
    for i in range(rest):
        u, dt, z, Br, Bi, Cr, Ci, keep = load_inputs(
            u_p + i * U_ROW, dt_p + i * DT_ROW, z_p + i * Z_ROW, B_p + i * BC_ROW, C_p + i * BC_ROW,
            reset_p + i, n, mask_d, mask_n, fixed_B, fixed_C,
            N, EVEN_D, EVEN_N, HAS_Z, HAS_RESET, COMPLEX, DT_LTI, B_LTI, C_LTI,
        )  # fmt: skip
        hr, hi, y = general_step(
            hr, hi, Ar, Ai, fixed_dt, fixed_a, fixed_P, bias, skip, u, dt, z, Br, Bi, Cr, Ci, keep,
            SOFTPLUS, HAS_Z, HAS_RESET, PRECISE, EXACT, COMPLEX, DT_LTI,
        )  # fmt: skip
        tl.store(out_p + i * D, y.to(out_p.dtype.element_ty), mask=mask_d)
    if chunk == K - 1:
        store_tiles(hT_p + batch * STATE, tile, mask, hr, hi, PLANE, COMPLEX)
