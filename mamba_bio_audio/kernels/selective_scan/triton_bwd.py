"""Triton backward of the real selective scan: states recomputed from saved ones, one reverse sweep, no atomics.

With gy_t = dL/dy_t and r the adjoint that comes back from later steps (r = dL/dh_T at the end):

    g_t     = C_t * gy_t + r                 dL/dh_t
    r       = a_t * g_t                      dL/dh_(t-1), 0 where reset_t
    dC_t[n] = sum_d h_t * gy_t               dB_t[n] = sum_d g_t * dt_t * u_t
    w_t     = r * h_(t-1)                    h recomputed, never divided by a_t
    ddt_t   = sum_n w_t * A + u_t * sum_n g_t * B_t
    du_t    = dt_t * sum_n g_t * B_t + D * gy_t
    dA     += w_t * dt_t                     dz_t = dout_t * y_t * silu'(z_t)

Letters as in `triton_fwd`. One program is one warp that owns a tile [BD, NP]. With BD = NP = 16 and VEC = 4 a lane holds
2 channels x 4 states, and WARP_SUMS has the sums over n and d done by `warp_sums`; tiles of other sizes, and the
interpreter, use Triton's own. All vectors [BD], [NP] then have fewer elements than the warp has lanes; such loads the
compiler puts straight into the layout where they are used, larger ones go through shared memory.

Per segment of SEG steps, last segment first, in a scratch that stays in L1:
 1. tiles [ROWS, BD]: dt after softplus, dt * u and gy in fp32, every element computed by one lane;
 2. states forward from the one saved by the forward pass, kept every UNROLL steps;
 3. sweep backwards: UNROLL steps again in registers, then their adjoints; the three sums over n go to the scratch;
 4. tiles again: du, ddt, dz, and the sums over time for D and dt_bias.
dB and dC leave as one partial row per channel block, dA, dD, dbias as one per (batch, chunk); they are added in a fixed
order afterwards, so two runs agree bit for bit.
"""

# Triton code, not Python: tuples grow in unrolled loops, and `if` on a constexpr must stand alone.
# mypy: ignore-errors
# ruff: noqa: RUF005, SIM102

import triton
import triton.language as tl

from mamba_bio_audio.kernels.selective_scan.triton_fwd import (
    LN2,
    LOG2E,
    as_int,
    expm1_from_exponent,
    load_vec,
    prefetch_rows,
    sigmoid,
    softplus,
    touch_span,
    use_touched,
)
from mamba_bio_audio.kernels.selective_scan.warp_sums import channel_places, store_channel_sums, store_state_sums


@triton.jit
def change_of_state(x2, PRECISE: tl.constexpr):
    """exp2(x2), or exp2(x2) - 1 when PRECISE."""
    a = tl.exp2(x2)
    if PRECISE:
        return expm1_from_exponent(x2, a)
    else:
        return a


@triton.jit
def apply_change(a, h, PRECISE: tl.constexpr):
    if PRECISE:
        return h + a * h
    else:
        return a * h


@triton.jit
def load_wide(p, offsets, live):
    """A tile in fp32, 0 where not live. Offsets stay 32 bits wide: they span one segment of rows less than 2^25 apart."""
    return tl.load(p + offsets, mask=live, other=0.0).to(tl.float32)


@triton.jit
def load_sweep_step(
    row_p, B_p, C_p, reset_p, row, size, mask_n,
    PLANE: tl.constexpr, BD: tl.constexpr, N: tl.constexpr, EVEN_N: tl.constexpr, HAS_RESET: tl.constexpr,
):  # fmt: skip
    """All inputs of one step. Past the end dt and gy are 0 in the scratch, so any finite B and C will do."""
    dt = tl.load(row_p + row * BD)
    dtu = tl.load(row_p + row * BD + PLANE)
    gy = tl.load(row_p + row * BD + 2 * PLANE)
    t = tl.minimum(row, size - 1)
    B = load_vec(B_p + t * N, mask_n, EVEN_N)
    C = load_vec(C_p + t * N, mask_n, EVEN_N)
    keep = 1.0
    if HAS_RESET:
        keep = tl.where((tl.load(reset_p + t) != 0) & (row < size), 0.0, 1.0)
    return dt, dtu, gy, B, C, keep


@triton.jit
def store_rows(p, n, rows, N: tl.constexpr, ROW: tl.constexpr, EVEN_N: tl.constexpr, UNROLL: tl.constexpr):
    """Writes UNROLL vectors [NP] of consecutive steps, ROW apart, at once: one layout conversion instead of UNROLL."""
    if UNROLL == 4:
        both = tl.join(tl.join(rows[0], rows[1]), tl.join(rows[2], rows[3]))  # [NP, low bit, high bit of the step]
        two = tl.arange(0, 2)
        step = two[None, :, None] + 2 * two[None, None, :]
        at = p + n[:, None, None] + step * ROW
        if EVEN_N:
            tl.store(at, both)
        else:
            tl.store(at, both, mask=(n < N)[:, None, None] & (step >= 0))
    elif UNROLL == 2:
        both = tl.join(rows[0], rows[1])  # [NP, step]
        step = tl.arange(0, 2)[None, :]
        at = p + n[:, None] + step * ROW
        if EVEN_N:
            tl.store(at, both)
        else:
            tl.store(at, both, mask=(n < N)[:, None] & (step >= 0))
    else:
        for j in tl.static_range(UNROLL):
            tl.store(p + n + j * ROW, rows[j], mask=n < N)


@triton.jit(do_not_specialize=["L", "T", "K", "first_block", "zero"])
def scan_bwd_kernel(
    u_p, dt_p, A_p, B_p, C_p, skip_p, z_p, bias_p, reset_p, g_p, states_p, r_in_p,
    du_p, ddt_p, dz_p, out_p, dB_p, dC_p, dparameters_p, dh0_p, scratch_p, sink_p,
    L, T, K, first_block, u_batch, dt_batch, z_batch, g_batch, dz_batch, zero,
    GROUP: tl.constexpr,
    D: tl.constexpr, N: tl.constexpr, NP: tl.constexpr, BD: tl.constexpr, UNROLL: tl.constexpr, SEG: tl.constexpr,
    ROWS: tl.constexpr, U_ROW: tl.constexpr, DT_ROW: tl.constexpr, Z_ROW: tl.constexpr, G_ROW: tl.constexpr,
    DZ_ROW: tl.constexpr, VEC: tl.constexpr, WARP_SUMS: tl.constexpr,
    HAS_SKIP: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, SOFTPLUS: tl.constexpr,
    HAS_RESET: tl.constexpr, HAS_R: tl.constexpr, WRITE_DH0: tl.constexpr, WRITE_OUT: tl.constexpr,
    PRECISE: tl.constexpr,
):  # fmt: skip
    """Sweeps one chunk of T steps (a multiple of SEG) backwards from r_in (B * K, D, N), the adjoint at its end.

    Writes du, ddt, dz and, with WRITE_OUT, the gated output once more (B, L, D); dB, dC (B, GROUP, cdiv(L, SEG) * SEG, N),
    with WARP_SUMS fp32 or bf16; dA (B * K, D, N); dskip, dbias (B * K, D);
    dh0 (B, D, N). states (B, cdiv(L, SEG), N, D) holds the state before every SEG-th step.
    """
    WIDE_VEC: tl.constexpr = 4
    EVEN_N: tl.constexpr = N == NP
    PER_SEG: tl.constexpr = SEG // UNROLL
    PLANE: tl.constexpr = SEG * BD
    TILE: tl.constexpr = NP * BD
    SCRATCH: tl.constexpr = PER_SEG * TILE + 4 * PLANE
    ACCURATE: tl.constexpr = dt_p.dtype.element_ty == tl.float32
    # du or ddt leaves in more than bf16: the sums behind them keep fp32 accuracy.
    SPLIT: tl.constexpr = (u_p.dtype.element_ty != tl.bfloat16) | (dt_p.dtype.element_ty != tl.bfloat16)
    NARROW: tl.constexpr = dB_p.dtype.element_ty == tl.bfloat16
    SUMS_ROW: tl.constexpr = 2 * N  # dB and dC of a step lie side by side
    pid = tl.program_id(0)
    # A launch has the GROUP blocks of channels from `first_block` on.
    block = first_block + pid % GROUP
    chunk = (pid // GROUP) % K
    batch = (pid // GROUP // K).to(tl.int64)
    n = tl.arange(0, NP)
    lane_d = tl.arange(0, BD)
    mask_n = n < N

    begin = chunk.to(tl.int64) * T
    count = (tl.minimum(begin + T, L) - begin).to(tl.int32)
    segments = tl.cdiv(L, SEG)

    first_d = block * BD
    u_rows = u_p + batch * u_batch + begin * U_ROW
    dt_rows = dt_p + batch * dt_batch + begin * DT_ROW
    z_rows = z_p + batch * z_batch + begin * Z_ROW
    g_rows = g_p + batch * g_batch + begin * G_ROW
    B_rows = B_p + (batch * L + begin) * N
    C_rows = C_p + (batch * L + begin) * N
    du_p += (batch * L + begin) * D
    ddt_p += (batch * L + begin) * D
    dz_p += batch * dz_batch + begin * DZ_ROW
    out_p += (batch * L + begin) * D
    dB_p += ((batch * GROUP + pid % GROUP) * segments * SEG + begin) * SUMS_ROW
    dC_p += ((batch * GROUP + pid % GROUP) * segments * SEG + begin) * SUMS_ROW
    reset_p += batch * L + begin
    states_p += (batch * segments + begin // SEG) * (N * D)

    scratch_p += pid.to(tl.int64) * SCRATCH
    kept_p = scratch_p + (lane_d[:, None] * NP + n[None, :] + zero * VEC)  # [BD, NP]
    row_p = scratch_p + PER_SEG * TILE + lane_d + zero * VEC  # [BD]
    planes_p = scratch_p + PER_SEG * TILE
    # Wide tiles are [1, ROWS, BD]: with the shape of a state tile the compiler would give both one layout.
    wide_t = tl.arange(0, ROWS)[None, :, None]
    wide_d = (block * BD + tl.arange(0, BD))[None, None, :]
    wide_mask = wide_d < D
    plane_p = planes_p + wide_t * BD + tl.arange(0, BD)[None, None, :] + zero * WIDE_VEC

    dskip = tl.zeros([1, ROWS, BD], tl.float32)
    dbias = tl.zeros([1, ROWS, BD], tl.float32)
    bias = tl.zeros([1, 1, BD], tl.float32)
    if HAS_BIAS:
        bias = tl.load(bias_p + wide_d, mask=wide_mask, other=0.0)
    skip = tl.zeros([1, 1, BD], tl.float32)
    if HAS_SKIP:
        skip = tl.load(skip_p + wide_d, mask=wide_mask, other=0.0)
    tile = n[None, :] * D + (first_d + lane_d)[:, None] + zero * VEC
    mask = mask_n[None, :] & (first_d + lane_d < D)[:, None]
    # A, dA and the adjoints have the states adjacent: read the other way, they would give the loop another layout.
    rows = (first_d + lane_d)[:, None] * N + n[None, :] + zero * VEC
    A2 = tl.load(A_p + rows, mask=mask, other=0.0) * LOG2E
    dA = tl.zeros([BD, NP], tl.float32)
    r = tl.zeros([BD, NP], tl.float32)
    if HAS_R:
        r = tl.load(r_in_p + (batch * K + chunk) * (N * D) + rows, mask=mask, other=0.0)
    if WARP_SUMS:
        index = lane_d[:, None] * NP + n[None, :]
        # Where the sums of a lane go, see `warp_sums`: gB, y and wA to planes 1 to 3, dB and dC of two steps.
        sums_at = (tl.minimum(n // 4, 2) + 1)[None, :] * PLANE + lane_d[:, None]
        pair_at = channel_places(lane_d, n, SUMS_ROW)

    count_segments = tl.cdiv(count, SEG)
    for back in range(count_segments):
        segment = count_segments - 1 - back
        first = segment * SEG
        size = tl.minimum(count - first, SEG)
        blocks = tl.cdiv(size, UNROLL)
        base = begin * 0 + first  # 64 bits wide
        B_seg = B_rows + base * N + n
        C_seg = C_rows + base * N + n
        reset_seg = reset_p + base

        h = tl.load(states_p + segment.to(tl.int64) * (N * D) + tile, mask=mask, other=0.0)

        tl.debug_barrier()
        for i in range(tl.cdiv(size, ROWS)):
            t = i * ROWS + wide_t
            live = (t < size) & wide_mask
            dt = load_wide(dt_rows + base * DT_ROW, t * DT_ROW + wide_d + zero * WIDE_VEC, live) + bias
            u = load_wide(u_rows + base * U_ROW, t * U_ROW + wide_d + zero * WIDE_VEC, live)
            gy = load_wide(g_rows + base * G_ROW, t * G_ROW + wide_d + zero * WIDE_VEC, live)
            if HAS_Z:
                z = load_wide(z_rows + base * Z_ROW, t * Z_ROW + wide_d + zero * WIDE_VEC, live)
                gy = gy * z * sigmoid(z)
            if SOFTPLUS:
                dt = softplus(dt, ACCURATE)
            dt = tl.where(live, dt, 0.0)  # steps past the end leave the state as it is
            at = plane_p + i * (ROWS * BD)
            tl.store(at, dt)
            tl.store(at + PLANE, dt * u)
            tl.store(at + 2 * PLANE, gy)
        tl.debug_barrier()

        # The next segment (the one before this) from DRAM to L2, this one's B and C to L1. The scratch needs no such
        # help: stores keep its lines in L1.
        soon = tl.maximum(first - SEG, 0)
        prefetch_rows(u_rows, soon, count, SEG, U_ROW, first_d, BD, D)
        prefetch_rows(dt_rows, soon, count, SEG, DT_ROW, first_d, BD, D)
        prefetch_rows(g_rows, soon, count, SEG, G_ROW, first_d, BD, D)
        if HAS_Z:
            prefetch_rows(z_rows, soon, count, SEG, Z_ROW, first_d, BD, D)
        prefetch_rows(states_p + (soon // SEG).to(tl.int64) * (N * D), 0, N, NP, D, first_d, BD, D)
        touched_B = touch_span(B_rows, base * N, count.to(tl.int64) * N, SEG * NP)
        touched_C = touch_span(C_rows, base * N, count.to(tl.int64) * N, SEG * NP)

        # Read back, so that the loop runs in the layout of kept_p; in the one of states_p it would convert every step.
        tl.store(kept_p, h)
        tl.debug_barrier()
        h = tl.load(kept_p)
        for i in range(blocks - 1):
            for j in tl.static_range(UNROLL):
                row = i * UNROLL + j
                dt = tl.load(row_p + row * BD)
                dtu = tl.load(row_p + row * BD + PLANE)
                B = load_vec(B_seg + row * N, mask_n, EVEN_N)
                if HAS_RESET:
                    h = h * tl.where(tl.load(reset_seg + row) != 0, 0.0, 1.0)
                a = change_of_state(dt[:, None] * A2, PRECISE)
                h = apply_change(a, h, PRECISE) + dtu[:, None] * B[None, :]
            tl.store(kept_p + (i + 1) * TILE, h)
        use_touched(sink_p, as_int(touched_B) + as_int(touched_C))
        tl.debug_barrier()

        for i_back in range(blocks):
            # All loads of a block, then all its arithmetic, then all its stores: the compiler moves no load across
            # a store, so anything else waits for memory at every step.
            i = blocks - 1 - i_back
            h = tl.load(kept_p + i * TILE)
            steps = ()
            for j in tl.static_range(UNROLL):
                steps = steps + (
                    load_sweep_step(
                        row_p, B_seg, C_seg, reset_seg, i * UNROLL + j, size, mask_n,
                        PLANE, BD, N, EVEN_N, HAS_RESET,
                    ),
                )  # fmt: skip
            befores = ()
            factors = ()
            afters = ()
            for j in tl.static_range(UNROLL):
                dt, dtu, gy, B, C, keep = steps[j]
                if HAS_RESET:
                    h = h * keep
                a = change_of_state(dt[:, None] * A2, PRECISE)
                befores = befores + (h,)
                factors = factors + (a,)
                h = apply_change(a, h, PRECISE) + dtu[:, None] * B[None, :]
                afters = afters + (h,)
            gs = ()
            wAs = ()
            for j in tl.static_range(UNROLL - 1, -1, -1):
                dt, dtu, gy, B, C, keep = steps[j]
                g = C[None, :] * gy[:, None] + r
                r = apply_change(factors[j], g, PRECISE)
                w = r * befores[j]
                dA += w * dt[:, None]
                if HAS_RESET:
                    r = r * keep
                gs = (g,) + gs
                wAs = (w * A2,) + wAs
            if WARP_SUMS:
                for j in tl.static_range(UNROLL):
                    dt, dtu, gy, B, C, keep = steps[j]
                    to = planes_p + (i * UNROLL + j) * BD + sums_at
                    store_state_sums(afters[j], C, gs[j], B, wAs[j], index, to.to(tl.int64), SPLIT)
                for j in tl.static_range(0, UNROLL, 2):
                    to = (base + i * UNROLL + j) * SUMS_ROW + pair_at
                    x, y = steps[j], steps[j + 1]
                    store_channel_sums(afters[j], x[2], afters[j + 1], y[2], index, (dC_p + to).to(tl.int64), NARROW)
                    store_channel_sums(gs[j], x[1], gs[j + 1], y[1], index, (dB_p + to).to(tl.int64), NARROW)
            else:
                dBs = ()
                dCs = ()
                for j in tl.static_range(UNROLL):
                    dt, dtu, gy, B, C, keep = steps[j]
                    at = row_p + (i * UNROLL + j) * BD
                    tl.store(at + PLANE, tl.sum(gs[j] * B[None, :], axis=1))
                    tl.store(at + 3 * PLANE, tl.sum(wAs[j], axis=1))
                    if HAS_Z:
                        tl.store(at + 2 * PLANE, tl.sum(afters[j] * C[None, :], axis=1))
                    dBs = dBs + (tl.sum(gs[j] * dtu[:, None], axis=0),)
                    dCs = dCs + (tl.sum(afters[j] * gy[:, None], axis=0),)
                store_rows(dC_p + (base + i * UNROLL) * SUMS_ROW, n, dCs, N, SUMS_ROW, EVEN_N, UNROLL)
                store_rows(dB_p + (base + i * UNROLL) * SUMS_ROW, n, dBs, N, SUMS_ROW, EVEN_N, UNROLL)
        tl.debug_barrier()

        for i in range(tl.cdiv(size, ROWS)):
            t = i * ROWS + wide_t
            live = (t < size) & wide_mask
            to = t * D + wide_d + zero * WIDE_VEC
            at = plane_p + i * (ROWS * BD)
            dt = tl.load(at)
            sum_gB = tl.load(at + PLANE)
            sum_wA = tl.load(at + 3 * PLANE) * LN2
            u = load_wide(u_rows + base * U_ROW, t * U_ROW + wide_d + zero * WIDE_VEC, live)
            ddt = sum_wA + u * sum_gB
            if SOFTPLUS:
                x = load_wide(dt_rows + base * DT_ROW, t * DT_ROW + wide_d + zero * WIDE_VEC, live) + bias
                ddt = ddt * sigmoid(x)
            ddt = tl.where(live, ddt, 0.0)
            gy = load_wide(g_rows + base * G_ROW, t * G_ROW + wide_d + zero * WIDE_VEC, live)
            if HAS_Z:
                z = load_wide(z_rows + base * Z_ROW, t * Z_ROW + wide_d + zero * WIDE_VEC, live)
                s = sigmoid(z)
                y = tl.load(at + 2 * PLANE) + skip * u
                dz = gy * y * s * (1.0 + z * (1.0 - s))
                gy = gy * z * s
                to_dz = t * DZ_ROW + wide_d + zero * WIDE_VEC
                tl.store(dz_p + base * DZ_ROW + to_dz, dz.to(dz_p.dtype.element_ty), mask=live)
                if WRITE_OUT:
                    tl.store(out_p + base * D + to, (y * z * s).to(out_p.dtype.element_ty), mask=live)
            du = dt * sum_gB + skip * gy
            tl.store(du_p + base * D + to, du.to(du_p.dtype.element_ty), mask=live)
            tl.store(ddt_p + base * D + to, ddt.to(ddt_p.dtype.element_ty), mask=live)
            if HAS_SKIP:
                dskip += gy * u
            if HAS_BIAS:
                dbias += ddt

    # dA (D, N), dD (D), dbias (D) of this batch and chunk, one behind the other.
    dparameters_p += (batch * K + chunk) * ((N + 2) * D)
    tl.store(dparameters_p + rows, dA, mask=mask)
    if WRITE_DH0:
        if chunk == 0:
            tl.store(dh0_p + batch * (N * D) + rows, r, mask=mask)
    last_d = block * BD + tl.arange(0, BD)[None, :]
    if HAS_SKIP:
        tl.store(dparameters_p + N * D + last_d, tl.sum(dskip, axis=1), mask=last_d < D)
    if HAS_BIAS:
        tl.store(dparameters_p + (N + 1) * D + last_d, tl.sum(dbias, axis=1), mask=last_d < D)
