"""Triton forward of the real selective scan: one sequential time loop, the state in registers.

    dt_t = softplus(dt_t + dt_bias)                       per (b, t, d)
    a_t  = exp2(dt_t * A2),  A2 = A * log2(e)             per (b, t, d, n)
    h_t  = a_t * h_(t-1) + (dt_t * u_t) * B_t             fp32; h_(t-1) = 0 where reset_t
    y_t  = sum_n C_t[n] * h_t[n] + D * u_t
    out  = y_t * silu(z_t)

Mamba (arXiv 2312.00752) section 3.3.2. Letters: B batch, L length, D channels, N states, NP = N padded to a power
of two, K chunks of T steps. u, dt, z, out (B, L, D) channels-last in the activation dtype; B, C (B, L, N) fp32;
A and every state (..., N, D) fp32 with D contiguous.

One program owns BD channels of one batch row and one chunk. Its state tile [NP, BD] lies with the channels across the
lanes and all NP states of a channel in one lane, so the loop needs no shuffle and no barrier. Triton gives that layout
when the loads of A and h0 do not vectorise along D; the runtime argument `zero`, which carries no divisibility, sees to
it (multiplied by VEC, which permits VEC-wide loads and so VEC channels per lane).

With few channels the sequence is split (K > 1): `chunk_state_kernel` finds every chunk's end state from h = 0 and its
sum of dt, `carry_kernel` links them, `scan_fwd_kernel` runs all chunks from their true start states.
"""

# Triton code, not Python: tuples grow in unrolled loops, and `if` on a constexpr must stand alone.
# mypy: ignore-errors
# ruff: noqa: RUF005, SIM102

import os

import triton
import triton.language as tl
from triton.language.extra import libdevice

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


if os.environ.get("TRITON_INTERPRET", "0") == "1":  # the interpreter has no libdevice

    @triton.jit
    def fast_log2(x):
        return tl.log2(x)

    @triton.jit
    def prefetch(p):
        pass

else:

    @triton.jit
    def fast_log2(x):
        """One hardware instruction, absolute error 2^-22 near 1; tl.log2 is a polynomial of some twenty."""
        return libdevice.fast_log2f(x)

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
def advance_state(h, x2, b, PRECISE: tl.constexpr):
    """exp2(x2) * h + b; PRECISE adds the small change instead of rounding a factor close to 1."""
    a = tl.exp2(x2)
    if PRECISE:
        return h + (expm1_from_exponent(x2, a) * h + b)
    else:
        return a * h + b


@triton.jit
def load_row(p, mask, EVEN_D: tl.constexpr):
    if EVEN_D:
        return tl.load(p)
    else:
        return tl.load(p, mask=mask, other=0.0)


@triton.jit
def load_vec(p, mask, EVEN_N: tl.constexpr):
    if EVEN_N:
        return tl.load(p)
    else:
        return tl.load(p, mask=mask, other=0.0)


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


@triton.jit
def load_step(
    u_p, dt_p, z_p, B_p, C_p, reset_p, mask_d, mask_n,
    EVEN_D: tl.constexpr, EVEN_N: tl.constexpr, HAS_Z: tl.constexpr, HAS_RESET: tl.constexpr,
):  # fmt: skip
    """One time step's inputs; absent ones are repeated pointers' values that the compiler drops."""
    u = load_row(u_p, mask_d, EVEN_D)
    dt = load_row(dt_p, mask_d, EVEN_D)
    z = dt
    if HAS_Z:
        z = load_row(z_p, mask_d, EVEN_D)
    B = load_vec(B_p, mask_n, EVEN_N)
    C = load_vec(C_p, mask_n, EVEN_N)
    keep = 1.0
    if HAS_RESET:
        keep = tl.where(tl.load(reset_p) != 0, 0.0, 1.0)
    return u, dt, z, B, C, keep


@triton.jit
def fwd_step(
    h, A2, bias, skip, u, dt, z, B, C, keep,
    SOFTPLUS: tl.constexpr, HAS_Z: tl.constexpr, HAS_RESET: tl.constexpr, PRECISE: tl.constexpr,
):  # fmt: skip
    """(h_t [NP, BD], out_t [BD] fp32) from h_(t-1)."""
    ACCURATE: tl.constexpr = dt.dtype == tl.float32
    u = u.to(tl.float32)
    dt = dt.to(tl.float32) + bias
    if SOFTPLUS:
        dt = softplus(dt, ACCURATE)
    if HAS_RESET:
        h = h * keep
    h = advance_state(h, dt[None, :] * A2, (dt * u)[None, :] * B[:, None], PRECISE)
    y = tl.sum(h * C[:, None], axis=0) + skip * u
    if HAS_Z:
        z = z.to(tl.float32)
        y = y * z * sigmoid(z)
    return h, y


@triton.jit(do_not_specialize=["L", "T", "K", "zero"])
def scan_fwd_kernel(
    u_p, dt_p, A_p, B_p, C_p, skip_p, z_p, bias_p, h0_p, reset_p, out_p, hT_p, states_p, sink_p, zeros_p,
    L, T, K, u_batch, dt_batch, z_batch, zero,
    D: tl.constexpr, N: tl.constexpr, NP: tl.constexpr, BD: tl.constexpr, UNROLL: tl.constexpr, SEG: tl.constexpr,
    U_ROW: tl.constexpr, DT_ROW: tl.constexpr, Z_ROW: tl.constexpr, VEC: tl.constexpr,
    HAS_SKIP: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, SOFTPLUS: tl.constexpr,
    HAS_H0: tl.constexpr, HAS_RESET: tl.constexpr, WRITE_LAST: tl.constexpr, WRITE_STATES: tl.constexpr,
    PRECISE: tl.constexpr, GROUP: tl.constexpr, FAR: tl.constexpr,
):  # fmt: skip
    """Scans one chunk from h0 (B * K, N, D); writes out, the last state (B, N, D) and, every SEG steps, the state
    before the step into states (B, ceil(L / SEG), N, D). T is a multiple of SEG where states are written."""
    EVEN_D: tl.constexpr = D % BD == 0
    EVEN_N: tl.constexpr = N == NP
    BLOCKS: tl.constexpr = (D + BD - 1) // BD
    pid = tl.program_id(0)
    chunk = (pid // BLOCKS) % K
    batch = (pid // BLOCKS // K).to(tl.int64)
    d = (pid % BLOCKS) * BD + tl.arange(0, BD)
    n = tl.arange(0, NP)
    mask_d = d < D
    mask_n = n < N
    tile = n[:, None] * D + d[None, :] + zero * VEC  # [NP, BD]
    mask = mask_n[:, None] & mask_d[None, :]

    begin = chunk.to(tl.int64) * T
    count = tl.minimum(begin + T, L) - begin
    A2 = tl.load(A_p + tile, mask=mask, other=0.0) * LOG2E
    bias = tl.zeros([BD], tl.float32)
    if HAS_BIAS:
        bias = tl.load(bias_p + d, mask=mask_d, other=0.0)
    skip = tl.zeros([BD], tl.float32)
    if HAS_SKIP:
        skip = tl.load(skip_p + d, mask=mask_d, other=0.0)
    if HAS_H0:
        h = tl.load(h0_p + (batch * K + chunk) * (N * D) + tile, mask=mask, other=0.0)
    else:
        h = tl.zeros([NP, BD], tl.float32)

    first_d = (pid % BLOCKS) * BD
    u_rows = u_p + batch * u_batch + begin * U_ROW
    dt_rows = dt_p + batch * dt_batch + begin * DT_ROW
    z_rows = z_p + batch * z_batch + begin * Z_ROW
    B_rows = B_p + (batch * L + begin) * N
    C_rows = C_p + (batch * L + begin) * N
    u_p += batch * u_batch + begin * U_ROW + d
    dt_p += batch * dt_batch + begin * DT_ROW + d
    z_p += batch * z_batch + begin * Z_ROW + d
    out_p += (batch * L + begin) * D + d
    # A loaded 0: without it the compiler sees that all lanes read one address, keeps it in uniform registers and copies
    # it out again for every load.
    opaque = tl.max(tl.load(zeros_p + tl.arange(0, BD))) * 16
    B_p += (batch * L + begin) * N + opaque
    C_p += (batch * L + begin) * N + opaque
    reset_p += batch * L + begin
    states_p += (batch * tl.cdiv(L, SEG) + begin // SEG) * (N * D)

    # One warp per scheduler must not wait for memory: a GROUP of steps is prefetched to L2 FAR steps early, then
    # touched while the group before it is computed, so that the loads below, each into the slot whose step is done,
    # find their data in L1. (Loads seem to return in order: a touch that goes to DRAM holds up the loads behind it.)
    PER_SEG: tl.constexpr = SEG // UNROLL
    PER_GROUP: tl.constexpr = GROUP // UNROLL
    steps = count.to(tl.int32)
    full = (count // UNROLL).to(tl.int32)
    slots = ()
    for j in tl.static_range(UNROLL):
        row = tl.where(full > 0, j, 0)  # a chunk shorter than UNROLL has no step j
        slots = slots + (
            load_step(
                u_p + row * U_ROW, dt_p + row * DT_ROW, z_p + row * Z_ROW, B_p + row * N + n, C_p + row * N + n,
                reset_p + row, mask_d, mask_n, EVEN_D, EVEN_N, HAS_Z, HAS_RESET,
            ),
        )  # fmt: skip
    touched_u = touch_rows(u_rows, 0, steps, GROUP, U_ROW, first_d, BD, D)
    touched_dt = touch_rows(dt_rows, 0, steps, GROUP, DT_ROW, first_d, BD, D)
    touched_z = touched_dt
    if HAS_Z:
        touched_z = touch_rows(z_rows, 0, steps, GROUP, Z_ROW, first_d, BD, D)
    touched_B = touch_span(B_rows, count * 0, count * N, GROUP * NP)
    touched_C = touch_span(C_rows, count * 0, count * N, GROUP * NP)
    for_u = as_int(touched_u)
    for_dt = as_int(touched_dt)
    for_z = as_int(touched_z)
    for_n = as_int(touched_B)
    for i in range(full):
        if WRITE_STATES:
            if i % PER_SEG == 0:
                tl.store(states_p + tile, h, mask=mask)
                states_p += N * D
        if i % PER_GROUP == 0:
            soon = (i + PER_GROUP) * UNROLL
            if FAR > 0:
                later = soon + FAR
                prefetch_rows(u_rows, later, steps, GROUP, U_ROW, first_d, BD, D)
                prefetch_rows(dt_rows, later, steps, GROUP, DT_ROW, first_d, BD, D)
                if HAS_Z:
                    prefetch_rows(z_rows, later, steps, GROUP, Z_ROW, first_d, BD, D)
                prefetch_span(B_rows, later.to(tl.int64) * N, count * N, GROUP * NP)
                prefetch_span(C_rows, later.to(tl.int64) * N, count * N, GROUP * NP)
            for_u += as_int(touched_u)
            for_dt += as_int(touched_dt)
            for_n += as_int(touched_B) + as_int(touched_C)
            touched_u = touch_rows(u_rows, soon, steps, GROUP, U_ROW, first_d, BD, D)
            touched_dt = touch_rows(dt_rows, soon, steps, GROUP, DT_ROW, first_d, BD, D)
            if HAS_Z:
                for_z += as_int(touched_z)
                touched_z = touch_rows(z_rows, soon, steps, GROUP, Z_ROW, first_d, BD, D)
            touched_B = touch_span(B_rows, soon.to(tl.int64) * N, count * N, GROUP * NP)
            touched_C = touch_span(C_rows, soon.to(tl.int64) * N, count * N, GROUP * NP)
        # The block after the last one does not exist: read the last one again.
        ahead = tl.where(i + 1 < full, UNROLL, 0)
        u_n = u_p + ahead * U_ROW
        dt_n = dt_p + ahead * DT_ROW
        z_n = z_p + ahead * Z_ROW
        B_n = B_p + ahead * N
        C_n = C_p + ahead * N
        reset_n = reset_p + ahead
        fresh = ()
        for j in tl.static_range(UNROLL):
            u, dt, z, B, C, keep = slots[j]
            h, y = fwd_step(h, A2, bias, skip, u, dt, z, B, C, keep, SOFTPLUS, HAS_Z, HAS_RESET, PRECISE)
            fresh = fresh + (
                load_step(
                    u_n + j * U_ROW, dt_n + j * DT_ROW, z_n + j * Z_ROW, B_n + j * N + n, C_n + j * N + n, reset_n + j,
                    mask_d, mask_n, EVEN_D, EVEN_N, HAS_Z, HAS_RESET,
                ),
            )  # fmt: skip
            if EVEN_D:
                tl.store(out_p + j * D, y.to(out_p.dtype.element_ty))
            else:
                tl.store(out_p + j * D, y.to(out_p.dtype.element_ty), mask=mask_d)
        slots = fresh
        out_p += UNROLL * D
        u_p = u_n
        dt_p = dt_n
        z_p = z_n
        B_p = B_n
        C_p = C_n
        reset_p = reset_n
    use_touched(sink_p, for_u)
    use_touched(sink_p, for_dt)
    use_touched(sink_p, for_z)
    use_touched(sink_p, for_n)
    # The pointers stand on the last full block, if there was one; the remaining steps lie after it.
    done = tl.where(full > 0, UNROLL, 0)
    rest = (count - full.to(tl.int64) * UNROLL).to(tl.int32)
    if WRITE_STATES:
        if (rest > 0) & (full % PER_SEG == 0):
            tl.store(states_p + tile, h, mask=mask)
    for i in range(rest):
        row = done + i
        u, dt, z, B, C, keep = load_step(
            u_p + row * U_ROW, dt_p + row * DT_ROW, z_p + row * Z_ROW, B_p + row * N + n, C_p + row * N + n,
            reset_p + row, mask_d, mask_n, EVEN_D, EVEN_N, HAS_Z, HAS_RESET,
        )  # fmt: skip
        h, y = fwd_step(h, A2, bias, skip, u, dt, z, B, C, keep, SOFTPLUS, HAS_Z, HAS_RESET, PRECISE)
        tl.store(out_p + i * D, y.to(out_p.dtype.element_ty), mask=mask_d)
    if WRITE_LAST:
        if chunk == K - 1:
            tl.store(hT_p + batch * (N * D) + tile, h, mask=mask)


@triton.jit(do_not_specialize=["L", "T", "K", "zero"])
def chunk_state_kernel(
    x_p, dt_p, A_p, V_p, z_p, bias_p, reset_p, end_p, sum_dt_p,
    L, T, K, x_batch, dt_batch, z_batch, zero,
    D: tl.constexpr, N: tl.constexpr, NP: tl.constexpr, BD: tl.constexpr, UNROLL: tl.constexpr,
    X_ROW: tl.constexpr, DT_ROW: tl.constexpr, Z_ROW: tl.constexpr, VEC: tl.constexpr,
    HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, SOFTPLUS: tl.constexpr, HAS_RESET: tl.constexpr,
    PRECISE: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """What a chunk adds to the state that passes through it, and how much it decays that state.

    Forward (x = u, V = B): h = a_t h + dt_t u_t B_t over t upwards, chunks 0 .. K - 2.
    REVERSE (x = dL/dout, V = C): r = a_t (r + C_t gy_t), gy = x * silu(z), over t downwards, chunks 1 .. K - 1.
    Writes end (B, K, N, D) and sum_dt (B, K, D), which is infinite where a reset cuts the chunk.
    """
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
    tile = n[:, None] * D + d[None, :] + zero * VEC  # [NP, BD]
    mask = mask_n[:, None] & mask_d[None, :]

    begin = chunk.to(tl.int64) * T
    count = (tl.minimum(begin + T, L) - begin).to(tl.int32)
    A2 = tl.load(A_p + tile, mask=mask, other=0.0) * LOG2E
    bias = tl.zeros([BD], tl.float32)
    if HAS_BIAS:
        bias = tl.load(bias_p + d, mask=mask_d, other=0.0)
    h = tl.zeros([NP, BD], tl.float32)
    total = tl.zeros([BD], tl.float32)
    x_p += batch * x_batch + begin * X_ROW + d
    dt_p += batch * dt_batch + begin * DT_ROW + d
    z_p += batch * z_batch + begin * Z_ROW + d
    V_p += (batch * L + begin) * N + n
    reset_p += batch * L + begin
    # Whole blocks first, then (UNROLL = 1) the steps that are left, in the direction of travel.
    full = count // UNROLL
    slots = ()
    for j in tl.static_range(UNROLL):
        row = tl.where(full > 0, j, 0)
        if REVERSE:
            row = count - 1 - row
        t = row.to(tl.int64)
        slots = slots + (
            load_half_step(
                x_p + t * X_ROW, dt_p + t * DT_ROW, z_p + t * Z_ROW, V_p + t * N, reset_p + t,
                mask_d, mask_n, EVEN_D, EVEN_N, HAS_Z, HAS_RESET,
            ),
        )  # fmt: skip
    for i in range(full):
        ahead = tl.where(i + 1 < full, i + 1, i) * UNROLL
        fresh = ()
        for j in tl.static_range(UNROLL):
            x, dt, z, V, keep = slots[j]
            h, total = half_step(h, total, A2, bias, x, dt, z, V, keep, SOFTPLUS, HAS_Z, HAS_RESET, PRECISE, REVERSE)
            row = ahead + j
            if REVERSE:
                row = count - 1 - row
            t = row.to(tl.int64)
            fresh = fresh + (
                load_half_step(
                    x_p + t * X_ROW, dt_p + t * DT_ROW, z_p + t * Z_ROW, V_p + t * N, reset_p + t,
                    mask_d, mask_n, EVEN_D, EVEN_N, HAS_Z, HAS_RESET,
                ),
            )  # fmt: skip
        slots = fresh
    for i in range(full * UNROLL, count):
        row = i
        if REVERSE:
            row = count - 1 - row
        t = begin * 0 + row  # 64 bits wide
        x, dt, z, V, keep = load_half_step(
            x_p + t * X_ROW, dt_p + t * DT_ROW, z_p + t * Z_ROW, V_p + t * N, reset_p + t,
            mask_d, mask_n, EVEN_D, EVEN_N, HAS_Z, HAS_RESET,
        )  # fmt: skip
        h, total = half_step(h, total, A2, bias, x, dt, z, V, keep, SOFTPLUS, HAS_Z, HAS_RESET, PRECISE, REVERSE)
    tl.store(end_p + (batch * K + chunk) * (N * D) + tile, h, mask=mask)
    tl.store(sum_dt_p + (batch * K + chunk) * D + d, total, mask=mask_d)


@triton.jit
def load_half_step(
    x_p, dt_p, z_p, V_p, reset_p, mask_d, mask_n,
    EVEN_D: tl.constexpr, EVEN_N: tl.constexpr, HAS_Z: tl.constexpr, HAS_RESET: tl.constexpr,
):  # fmt: skip
    x = load_row(x_p, mask_d, EVEN_D)
    dt = load_row(dt_p, mask_d, EVEN_D)
    z = dt
    if HAS_Z:
        z = load_row(z_p, mask_d, EVEN_D)
    V = load_vec(V_p, mask_n, EVEN_N)
    keep = 1.0
    if HAS_RESET:
        keep = tl.where(tl.load(reset_p) != 0, 0.0, 1.0)
    return x, dt, z, V, keep


@triton.jit
def half_step(
    h, total, A2, bias, x, dt, z, V, keep,
    SOFTPLUS: tl.constexpr, HAS_Z: tl.constexpr, HAS_RESET: tl.constexpr, PRECISE: tl.constexpr,
    REVERSE: tl.constexpr,
):  # fmt: skip
    """One step of `chunk_state_kernel`: the state tile [NP, BD] and the sum of dt [BD] so far."""
    ACCURATE: tl.constexpr = dt.dtype == tl.float32
    x = x.to(tl.float32)
    dt = dt.to(tl.float32) + bias
    if SOFTPLUS:
        dt = softplus(dt, ACCURATE)
    x2 = dt[None, :] * A2
    if REVERSE:
        if HAS_Z:
            z = z.to(tl.float32)
            x = x * z * sigmoid(z)
        h = advance_state(h + x[None, :] * V[:, None], x2, 0.0, PRECISE)
        if HAS_RESET:
            h = h * keep
    else:
        if HAS_RESET:
            h = h * keep
        h = advance_state(h, x2, (dt * x)[None, :] * V[:, None], PRECISE)
    total += dt
    if HAS_RESET:
        total = tl.where(keep == 0.0, float("inf"), total)
    return h, total


@triton.jit(do_not_specialize=["K"])
def carry_kernel(
    end_p, sum_dt_p, A_p, first_p, start_p, K,
    D: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr, UNROLL: tl.constexpr,
    HAS_FIRST: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """start[c + 1] = exp2(A2 * sum_dt[c]) * start[c] + end[c], from start[0] = first; REVERSE runs c downwards.

    first (B, N, D), end and start (B, K, N, D). One program owns BLOCK of the N * D entries of one batch row.
    """
    BLOCKS: tl.constexpr = (N * D + BLOCK - 1) // BLOCK
    pid = tl.program_id(0)
    batch = (pid // BLOCKS).to(tl.int64)
    e = (pid % BLOCKS) * BLOCK + tl.arange(0, BLOCK)
    mask = e < N * D
    A2 = tl.load(A_p + e, mask=mask, other=0.0) * LOG2E
    s = tl.zeros([BLOCK], tl.float32)
    if HAS_FIRST:
        s = tl.load(first_p + batch * (N * D) + e, mask=mask, other=0.0)
    end_p += batch * K * (N * D) + e
    start_p += batch * K * (N * D) + e
    sum_dt_p += batch * K * D + e % D
    for i in range(0, K, UNROLL):
        decays = ()
        ends = ()
        for j in tl.static_range(UNROLL):
            c = batch * 0 + (K - 1 - i - j if REVERSE else i + j)  # 64 bits wide
            live = mask & (i + j < K - 1)  # the last chunk on the way hands nothing on, and was not computed
            decays = decays + (tl.load(sum_dt_p + c * D, mask=live, other=0.0),)
            ends = ends + (tl.load(end_p + c * (N * D), mask=live, other=0.0),)
        for j in tl.static_range(UNROLL):
            c = batch * 0 + (K - 1 - i - j if REVERSE else i + j)  # 64 bits wide
            tl.store(start_p + c * (N * D), s, mask=mask & (i + j < K))
            decay = tl.where(decays[j] == float("inf"), 0.0, tl.exp2(A2 * decays[j]))
            s = decay * s + ends[j]
