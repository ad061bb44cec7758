"""Triton forward of the selective scan: one sequential time loop, the state in registers.

    dt_t = softplus(dt_t + dt_bias)                        per (b, t, d)
    a_t  = exp(dt_t A)                                     per (b, t, d, n), complex where A is
    b_t  = dt_t u_t B_t                                    or, held exactly, (exp(dt_t A) - 1) / A * u_t B_t
    h_t  = a_t h_(t-1) + b_t                               fp32; h_(t-1) = 0 where reset_t
    y_t  = sum_n C_t h_t + D u_t                           complex: 2 Re(sum_n C_t h_t) + D u_t
    out  = y_t silu(z_t)

Mamba (arXiv 2312.00752) section 3.3.2 and equation 4; S4D (arXiv 2206.11893) for the time-invariant complex case. Letters:
B batch, L length, D channels, N states, NP = N padded to a power of two, K chunks of T steps. u, dt, z, out (B, L, D)
channels-last in the activation dtype; everything else in fp32, with the layouts of `parts`. Cases (`inputs.Case`) are
compiled apart: time-invariant B and C stay in registers as tiles, and with a time-invariant dt (D) so does a.

One program owns BD channels of one batch row and one chunk. Its state tile [NP, BD] lies with the channels across the
lanes and all NP states of a channel in one lane, so the loop needs no shuffle and no barrier. Triton gives that layout
when the loads of A and h0 do not vectorise along D; the runtime argument `zero`, which carries no divisibility, sees to it.

With few channels the sequence is split (K > 1): `chunks` finds the state before every chunk, `scan_fwd_kernel` runs all
chunks from there. With a few more, real scans have two lanes a channel (`lanes`).

Per complex state and step three transcendental instructions (exponential, sine, cosine) take 24 clocks of a scheduler,
all others together about 16: the loop is bound by them, and polynomials for sine and cosine cost as much.
"""

# Triton code, not Python: tuples grow in unrolled loops, and `if` on a constexpr must stand alone.
# mypy: ignore-errors
# ruff: noqa: RUF005, SIM102

import triton
import triton.language as tl

from mamba_bio_audio.kernels.scan.parts import (
    LOG2E,
    as_int,
    fixed_step,
    load_step,
    load_tiles,
    prefetch_rows,
    prefetch_span,
    sigmoid,
    state_step,
    store_tiles,
    this_step,
    touch_rows,
    touch_span,
    use_touched,
)


@triton.jit
def forward_step(hr, hi, Ar, Ai, fixed, bias, skip, inputs, CASE: tl.constexpr):
    """(h_t as a pair of tiles, out_t [BD] fp32) from h_(t-1)."""
    u, dt, z, B, C, keep = inputs
    u = u.to(tl.float32)
    size, a, P = this_step(dt, bias, Ar, Ai, fixed, CASE)
    hr, hi = state_step(hr, hi, u, size, a, P, B, keep, CASE)
    y = tl.sum(hr * C[0], axis=0)
    if CASE.complex:
        y = 2.0 * (y - tl.sum(hi * C[1], axis=0))
    y += skip * u
    if CASE.gate:
        z = z.to(tl.float32)
        y = y * z * sigmoid(z)
    return hr, hi, y


@triton.jit
def touch_inputs(
    rows, first, steps, count, first_d, GROUP: tl.constexpr, BD: tl.constexpr, D: tl.constexpr, NP: tl.constexpr,
    N: tl.constexpr, U_ROW: tl.constexpr, DT_ROW: tl.constexpr, Z_ROW: tl.constexpr, CASE: tl.constexpr,
):  # fmt: skip
    """Brings a group of steps into L1; the values are for `use_touched`, much later."""
    touched = (touch_rows(rows[0], first, steps, GROUP, U_ROW, first_d, BD, D),)
    if not CASE.dt_lti:
        touched = touched + (touch_rows(rows[1], first, steps, GROUP, DT_ROW, first_d, BD, D),)
    if CASE.gate:
        touched = touched + (touch_rows(rows[2], first, steps, GROUP, Z_ROW, first_d, BD, D),)
    begin = first.to(tl.int64) * (CASE.parts * N)
    end = count * (CASE.parts * N)
    if not CASE.B_lti:
        touched = touched + (touch_span(rows[3], begin, end, GROUP * CASE.parts * NP),)
    if not CASE.C_lti:
        touched = touched + (touch_span(rows[4], begin, end, GROUP * CASE.parts * NP),)
    return touched


@triton.jit
def prefetch_inputs(
    rows, first, steps, count, first_d, GROUP: tl.constexpr, BD: tl.constexpr, D: tl.constexpr, NP: tl.constexpr,
    N: tl.constexpr, U_ROW: tl.constexpr, DT_ROW: tl.constexpr, Z_ROW: tl.constexpr, CASE: tl.constexpr,
):  # fmt: skip
    """Asks L2 for a group of steps."""
    prefetch_rows(rows[0], first, steps, GROUP, U_ROW, first_d, BD, D)
    if not CASE.dt_lti:
        prefetch_rows(rows[1], first, steps, GROUP, DT_ROW, first_d, BD, D)
    if CASE.gate:
        prefetch_rows(rows[2], first, steps, GROUP, Z_ROW, first_d, BD, D)
    begin = first.to(tl.int64) * (CASE.parts * N)
    end = count * (CASE.parts * N)
    if not CASE.B_lti:
        prefetch_span(rows[3], begin, end, GROUP * CASE.parts * NP)
    if not CASE.C_lti:
        prefetch_span(rows[4], begin, end, GROUP * CASE.parts * NP)


@triton.jit
def moved(
    pointers, rows, N: tl.constexpr, U_ROW: tl.constexpr, DT_ROW: tl.constexpr, Z_ROW: tl.constexpr, CASE: tl.constexpr
):
    """The pointers of `load_step`, that many rows on."""
    u_p, dt_p, z_p, B_p, C_p, reset_p = pointers
    BC_ROW: tl.constexpr = CASE.parts * N
    return (
        u_p + rows * U_ROW, dt_p + rows * DT_ROW, z_p + rows * Z_ROW, B_p + rows * BC_ROW, C_p + rows * BC_ROW,
        reset_p + rows,
    )  # fmt: skip


@triton.jit(do_not_specialize=["L", "T", "K", "zero"])
def scan_fwd_kernel(
    u_p, dt_p, A_p, B_p, C_p, skip_p, z_p, bias_p, h0_p, reset_p, out_p, hT_p, states_p, sink_p, zeros_p,
    L, T, K, u_batch, dt_batch, z_batch, zero,
    D: tl.constexpr, N: tl.constexpr, NP: tl.constexpr, BD: tl.constexpr, UNROLL: tl.constexpr, SEG: tl.constexpr,
    U_ROW: tl.constexpr, DT_ROW: tl.constexpr, Z_ROW: tl.constexpr, CASE: tl.constexpr,
    HAS_H0: tl.constexpr, WRITE_STATES: tl.constexpr, GROUP: tl.constexpr, FAR: tl.constexpr,
):  # fmt: skip
    """Scans one chunk from h0 (B * K, PARTS, N, D); writes out, the last state (B, PARTS, N, D) and, every SEG steps, the
    state before the step into states (B, ceil(L / SEG), PARTS, N, D). T is a multiple of SEG where states are written."""
    PLANE: tl.constexpr = N * D
    STATE: tl.constexpr = CASE.parts * N * D
    BC_ROW: tl.constexpr = CASE.parts * N
    # In one chunk and with no states to write, ptxas sinks the loads of the complex loop to the end of the trip, behind
    # the touches of L2, and the next trip waits for both: there a block loads at its own beginning.
    AHEAD: tl.constexpr = CASE.ahead and (WRITE_STATES or FAR == 0 or not CASE.complex)
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
    count = tl.minimum(begin + T, L) - begin
    steps = count.to(tl.int32)
    Ar, Ai = load_tiles(A_p, tile, mask, PLANE, CASE.complex)
    if CASE.plain:
        Ar = Ar * LOG2E
    bias = tl.zeros([BD], tl.float32)
    if CASE.bias:
        bias = tl.load(bias_p + d, mask=mask_d, other=0.0)
    skip = tl.zeros([BD], tl.float32)
    if CASE.skip:
        skip = tl.load(skip_p + d, mask=mask_d, other=0.0)
    hr = tl.zeros([NP, BD], tl.float32)
    hi = tl.zeros([NP, BD], tl.float32)
    if HAS_H0:
        hr, hi = load_tiles(h0_p + (batch * K + chunk) * STATE, tile, mask, PLANE, CASE.complex)
    fixed = fixed_step(dt_p, d, mask_d, bias, Ar, Ai, CASE)
    B = (hr, hi)
    if CASE.B_lti:
        B = load_tiles(B_p, tile, mask, PLANE, CASE.complex)
    C = (hr, hi)
    if CASE.C_lti:
        C = load_tiles(C_p, tile, mask, PLANE, CASE.complex)

    rows = (
        u_p + batch * u_batch + begin * U_ROW, dt_p + batch * dt_batch + begin * DT_ROW,
        z_p + batch * z_batch + begin * Z_ROW, B_p + (batch * L + begin) * BC_ROW, C_p + (batch * L + begin) * BC_ROW,
    )  # fmt: skip
    # A loaded 0: without it the compiler sees that all lanes read one address, keeps it in uniform registers and copies
    # it out again for every load.
    opaque = tl.max(tl.load(zeros_p + tl.arange(0, BD))) * 16
    at = (
        rows[0] + d,
        rows[1] + d,
        rows[2] + d,
        rows[3] + opaque,
        rows[4] + opaque,
        reset_p + batch * L + begin,
    )
    out_p += (batch * L + begin) * D + d
    states_p += (batch * tl.cdiv(L, SEG) + begin // SEG) * STATE

    # One warp per scheduler must not wait for memory: a GROUP of steps is prefetched to L2 FAR steps early, then
    # touched while the group before it is computed, so that the loads below find their data in L1; AHEAD, each of them
    # goes into the slot whose step is done. (Loads seem to return in order: a touch that goes to DRAM holds up the
    # loads behind it.)
    PER_SEG: tl.constexpr = SEG // UNROLL
    PER_GROUP: tl.constexpr = GROUP // UNROLL
    # Which of the two was found by measuring: with the other one, ptxas (of Triton 3.6) makes the plain loop 5 % slower,
    # and gives the complex one 180 registers, which makes it 28 % slower.
    full = (count // UNROLL).to(tl.int32) if AHEAD else steps // UNROLL
    slots = ()
    if AHEAD:
        for j in tl.static_range(UNROLL):
            row = tl.where(full > 0, j, 0)  # a chunk shorter than UNROLL has no step j
            slots = slots + (
                load_step(at, row, n, mask_d, mask_n, B, C, N, EVEN_D, EVEN_N, U_ROW, DT_ROW, Z_ROW, CASE),
            )  # fmt: skip
    touched = touch_inputs(rows, steps * 0, steps, count, first_d, GROUP, BD, D, NP, N, U_ROW, DT_ROW, Z_ROW, CASE)
    # One sum for B and C together: each takes a register.
    BOTH: tl.constexpr = CASE.plain
    sums = ()
    for k in tl.static_range(len(touched) - BOTH):
        sums = sums + (as_int(touched[k]),)
    for i in range(full):
        if WRITE_STATES:
            if i % PER_SEG == 0:
                store_tiles(states_p, tile, mask, hr, hi, PLANE, CASE.complex)
                states_p += STATE
        if i % PER_GROUP == 0:
            soon = (i + PER_GROUP) * UNROLL
            if FAR > 0:
                prefetch_inputs(
                    rows, soon + FAR, steps, count, first_d, GROUP, BD, D, NP, N, U_ROW, DT_ROW, Z_ROW, CASE
                )
            added = ()
            for k in tl.static_range(len(sums)):
                more = as_int(touched[k])
                if BOTH and k == len(sums) - 1:
                    more += as_int(touched[k + 1])
                added = added + (sums[k] + more,)
            sums = added
            touched = touch_inputs(rows, soon, steps, count, first_d, GROUP, BD, D, NP, N, U_ROW, DT_ROW, Z_ROW, CASE)
        if AHEAD:  # the block after the last one does not exist: the last one is read again
            following = moved(at, tl.where(i + 1 < full, UNROLL, 0), N, U_ROW, DT_ROW, Z_ROW, CASE)
        fresh = ()
        ys = ()
        for j in tl.static_range(UNROLL):
            if AHEAD:
                inputs = slots[j]
            else:
                inputs = load_step(at, j, n, mask_d, mask_n, B, C, N, EVEN_D, EVEN_N, U_ROW, DT_ROW, Z_ROW, CASE)
            hr, hi, y = forward_step(hr, hi, Ar, Ai, fixed, bias, skip, inputs, CASE)
            if AHEAD:
                fresh = fresh + (
                    load_step(following, j, n, mask_d, mask_n, B, C, N, EVEN_D, EVEN_N, U_ROW, DT_ROW, Z_ROW, CASE),
                )  # fmt: skip
                if EVEN_D:
                    tl.store(out_p + j * D, y.to(out_p.dtype.element_ty))
                else:
                    tl.store(out_p + j * D, y.to(out_p.dtype.element_ty), mask=mask_d)
            ys = ys + (y,)
        if AHEAD:
            slots = fresh
            at = following
        else:
            at = moved(at, UNROLL, N, U_ROW, DT_ROW, Z_ROW, CASE)
            # No store before the block's last load: the compiler moves no load across a store.
            for j in tl.static_range(UNROLL):
                if EVEN_D:
                    tl.store(out_p + j * D, ys[j].to(out_p.dtype.element_ty))
                else:
                    tl.store(out_p + j * D, ys[j].to(out_p.dtype.element_ty), mask=mask_d)
        out_p += UNROLL * D
    for k in tl.static_range(len(sums)):
        use_touched(sink_p, sums[k])
    # AHEAD, the pointers stand on the last full block, if there was one; the remaining steps lie after it.
    done = tl.where(full > 0, UNROLL, 0) if AHEAD else 0
    rest = (count - full.to(tl.int64) * UNROLL).to(tl.int32)
    if WRITE_STATES:
        if (rest > 0) & (full % PER_SEG == 0):
            store_tiles(states_p, tile, mask, hr, hi, PLANE, CASE.complex)
    for i in range(rest):
        inputs = load_step(at, done + i, n, mask_d, mask_n, B, C, N, EVEN_D, EVEN_N, U_ROW, DT_ROW, Z_ROW, CASE)
        hr, hi, y = forward_step(hr, hi, Ar, Ai, fixed, bias, skip, inputs, CASE)
        tl.store(out_p + i * D, y.to(out_p.dtype.element_ty), mask=mask_d)
    if chunk == K - 1:
        store_tiles(hT_p + batch * STATE, tile, mask, hr, hi, PLANE, CASE.complex)
