"""Triton backward of the selective scan: states recomputed from saved ones, one reverse sweep, no atomics.

A gradient of a complex number is dL/dRe + i dL/dIm. With gy_t = dL/dy_t, twice that where complex, and r the adjoint that
comes back from later steps (r = dL/dh_T at the end):

    g_t  = conj(C_t) gy_t + r                       dL/dh_t
    r    = conj(a_t) g_t                            dL/dh_(t-1), 0 where reset_t
    w_t  = r conj(h_(t-1))                          gradient of dt_t A; h recomputed, never divided by a_t
    dC_t = sum_d conj(h_t) gy_t                     dB_t = sum_d dt_t u_t g_t
    s_t  = sum_n Re(conj(B_t) g_t)                  du_t = dt_t s_t + D gy_t
    dA  += dt_t w_t                                 ddt_t = sum_n Re(conj(A) w_t) + u_t s_t
    dz_t = dout_t y_t silu'(z_t)

Held exactly, b_t = P u_t B_t with P = (exp(dt_t A) - 1) / A, Q = dP/dA, q_t = conj(B_t) u_t g_t the gradient of P:

    dB_t = sum_d conj(P) u_t g_t                    du_t = sum_n Re(conj(P B_t) g_t) + D gy_t
    dA  += dt_t w_t + conj(Q) q_t                   ddt_t = sum_n Re(conj(A) w_t + conj(a_t) q_t)

Letters as in `forward`. One program is one warp that owns a tile [BD, NP]. With BD = NP = 16 and VEC = 4 a lane holds
2 channels x 4 states, and WARP_SUMS has the sums over n and d done by `sums` and the scratch kept in shared memory by
`warp_memory`; tiles of other sizes, and the interpreter, use Triton's own sums and a scratch in global memory. All vectors
[BD], [NP] then have fewer elements than the warp has lanes; such loads the compiler puts straight into the layout where
they are used, larger ones go through shared memory.

Per segment of SEG steps, last segment first, in a scratch that stays in shared memory or L1:
 1. tiles [ROWS, BD]: dt after softplus, dt * u (held exactly, u) and gy in fp32, every element computed by one lane;
 2. states forward from the one saved by the forward pass, kept every UNROLL steps;
 3. sweep backwards: UNROLL steps again in registers, then their adjoints; the three sums over n go to the scratch;
 4. tiles again: du, ddt, dz, and the sums over time for D and dt_bias.
Gradients of time-invariant B and C are sums over time of tiles and stay in registers, as dA does; those of selective ones
leave as one partial row per channel block, dA, dD, dbias as one per (batch, chunk). All are added in a fixed order
afterwards, so two runs agree bit for bit.
"""

# Triton code, not Python: tuples grow in unrolled loops, and `if` on a constexpr must stand alone.
# mypy: ignore-errors
# ruff: noqa: RUF005, SIM102

import triton
import triton.language as tl

from mamba_bio_audio.kernels.scan.backward_steps import (
    keep_tiles,
    kept_tiles,
    load_sweep_step,
    recomputed_step,
    sweep_factors,
)
from mamba_bio_audio.kernels.scan.backward_tiles import ask_for_segment, finish_tile, put_tile
from mamba_bio_audio.kernels.scan.parts import (
    LOG2E,
    as_int,
    back,
    conj_product,
    factors_of,
    load_kept,
    load_tiles,
    product,
    real_product,
    restart,
    sigmoid,
    step_size,
    store_kept,
    store_tiles,
    use_touched,
)
from mamba_bio_audio.kernels.scan.sums import (
    channel_places,
    more_routes,
    rough_channel_sums,
    rough_places,
    rough_routes,
    store_map_gradient,
    store_product_sums,
    store_rough_parts,
    store_rough_sums,
    store_state_sums,
)
from mamba_bio_audio.kernels.scan.warp_memory import (
    keep_places,
    later,
    place_tile,
    shared_room,
    step_places,
)


@triton.jit(do_not_specialize=["L", "T", "K", "first_block", "zero"])
def scan_bwd_kernel(
    u_p, dt_p, A_p, B_p, C_p, skip_p, z_p, bias_p, reset_p, g_p, states_p, r_in_p,
    du_p, ddt_p, dz_p, out_p, dB_p, dC_p, dparameters_p, dh0_p, scratch_p, sink_p,
    L, T, K, first_block, u_batch, dt_batch, z_batch, g_batch, dz_batch, zero,
    GROUP: tl.constexpr,
    D: tl.constexpr, N: tl.constexpr, NP: tl.constexpr, BD: tl.constexpr, UNROLL: tl.constexpr, SEG: tl.constexpr,
    ROWS: tl.constexpr, U_ROW: tl.constexpr, DT_ROW: tl.constexpr, Z_ROW: tl.constexpr, G_ROW: tl.constexpr,
    DZ_ROW: tl.constexpr, SUMS_ROW: tl.constexpr, VEC: tl.constexpr, WARP_SUMS: tl.constexpr, CASE: tl.constexpr,
    HAS_R: tl.constexpr, WRITE_DH0: tl.constexpr, WRITE_OUT: tl.constexpr,
):  # fmt: skip
    """Sweeps one chunk of T steps (a multiple of SEG) backwards from r_in (B * K, PARTS, D, N), the adjoint at its end.

    A and time-invariant B, C are (PARTS, D, N). Writes du, ddt, dz and, with WRITE_OUT, the gated output once more (B, L,
    D); dB, dC (B, GROUP, cdiv(L, SEG) * SEG, PARTS, N), rows SUMS_ROW apart, with WARP_SUMS fp32 or bf16; dparameters (B *
    K, ...): dA (PARTS, D, N), dB and dC likewise where they are time-invariant, dskip (D), dbias (D); dh0 (B, PARTS, D, N).
    states (B, cdiv(L, SEG), PARTS, N, D) holds the state before every SEG-th step. With a time-invariant dt its gradient
    is that of the bias, and UNROLL must divide L: a does not become 1 past the end as it does where dt is 0.
    """
    STATE_PLANE: tl.constexpr = N * D
    STATE: tl.constexpr = CASE.parts * N * D
    BC_ROW: tl.constexpr = CASE.parts * N
    WIDE_VEC: tl.constexpr = 4
    EVEN_N: tl.constexpr = N == NP
    PER_SEG: tl.constexpr = SEG // UNROLL
    PLANE: tl.constexpr = SEG * BD
    TILE: tl.constexpr = NP * BD
    KEPT: tl.constexpr = PER_SEG * CASE.parts * TILE
    SCRATCH: tl.constexpr = KEPT + 4 * PLANE
    # Shared memory holds whole tiles of ROWS steps.
    LONG: tl.constexpr = SEG if SEG > ROWS else ROWS
    STEP_BYTES: tl.constexpr = 16 * BD
    MAPS_BYTES: tl.constexpr = ((0 if CASE.B_lti else 4) + (0 if CASE.C_lti else 4)) * CASE.parts * NP
    C_PLACE: tl.constexpr = 0 if CASE.B_lti else 4 * CASE.parts * NP
    # y is for dz alone.
    ROUGH: tl.constexpr = z_p.dtype.element_ty == tl.bfloat16 and not CASE.C_lti
    # du or ddt leaves in more than bf16: the sums behind them keep fp32 accuracy.
    SPLIT: tl.constexpr = (u_p.dtype.element_ty != tl.bfloat16) | (dt_p.dtype.element_ty != tl.bfloat16)
    CUT: tl.constexpr = WARP_SUMS and CASE.plain and not SPLIT
    # Gradients of B and C that end in bf16 are summed on the tensor cores, two rows at a time: B's and C's or the parts of one.
    ROUGH_PLAIN: tl.constexpr = WARP_SUMS and CASE.plain and dB_p.dtype.element_ty == tl.bfloat16
    ROUGH_PARTS: tl.constexpr = WARP_SUMS and CASE.complex
    ACCURATE: tl.constexpr = dt_p.dtype.element_ty == tl.float32
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
    B_rows = B_p + (batch * L + begin) * BC_ROW
    C_rows = C_p + (batch * L + begin) * BC_ROW
    du_p += (batch * L + begin) * D
    ddt_p += (batch * L + begin) * D
    dz_p += batch * dz_batch + begin * DZ_ROW
    out_p += (batch * L + begin) * D
    dB_rows = dB_p + ((batch * GROUP + pid % GROUP) * segments * SEG + begin) * SUMS_ROW
    dC_rows = dC_p + ((batch * GROUP + pid % GROUP) * segments * SEG + begin) * SUMS_ROW
    reset_p += batch * L + begin
    states_p += (batch * segments + begin // SEG) * STATE

    if not WARP_SUMS:
        scratch_p += pid.to(tl.int64) * SCRATCH
    kept_p = scratch_p + (lane_d[:, None] * NP + n[None, :] + zero * VEC)  # [BD, NP]
    row_p = scratch_p + KEPT + lane_d + zero * VEC  # [BD]
    planes_p = scratch_p + KEPT
    # Wide tiles are [1, ROWS, BD]: with the shape of a state tile the compiler would give both one layout.
    wide_t = tl.arange(0, ROWS)[None, :, None]
    wide_d = (first_d + tl.arange(0, BD))[None, None, :]
    wide_mask = wide_d < D
    index = lane_d[:, None] * NP + n[None, :]
    step_at = row_p
    wide_at = wide_t
    slope_at = wide_t
    maps_room = wide_t
    keep_at = index
    map_at = index
    pair_at = index
    if WARP_SUMS:
        room = shared_room(index, LONG * (STEP_BYTES + 8 * BD + MAPS_BYTES) + 4 * KEPT)
        step_at = room + tl.broadcast_to(step_places(lane_d)[:, None], [BD, NP])
        wide_at = room + wide_t * STEP_BYTES + step_places(tl.arange(0, BD))[None, None, :]
        keep_room = room + LONG * STEP_BYTES
        slope_room = keep_room + 4 * KEPT
        slope_at = slope_room + (wide_t * BD + tl.arange(0, BD)[None, None, :]) * 4
        maps_room = slope_room + LONG * BD * 8
        map_at = maps_room + tl.broadcast_to((n // 4 * 16)[None, :], [BD, NP])
        keep_at = keep_room + keep_places(lane_d, n)
    plane_p = planes_p + wide_t * BD + tl.arange(0, BD)[None, None, :] + zero * WIDE_VEC

    dskip = tl.zeros([1, ROWS, BD], tl.float32)
    dbias = tl.zeros([1, ROWS, BD], tl.float32)
    bias = tl.zeros([1, 1, BD], tl.float32)
    if CASE.bias:
        bias = tl.load(bias_p + wide_d, mask=wide_mask, other=0.0)
    skip = tl.zeros([1, 1, BD], tl.float32)
    if CASE.skip:
        skip = tl.load(skip_p + wide_d, mask=wide_mask, other=0.0)
    fixed_raw = bias
    fixed_dt = bias
    if CASE.dt_lti:
        fixed_raw = tl.load(dt_p + wide_d, mask=wide_mask, other=0.0).to(tl.float32) + bias
        fixed_dt = step_size(fixed_raw, 0.0, CASE.softplus, True)

    d = first_d + lane_d
    tile = n[None, :] * D + d[:, None] + zero * VEC
    mask = mask_n[None, :] & (d < D)[:, None]
    # Everything but the states has them adjacent: read the other way, it would give the loops another layout.
    rows = d[:, None] * N + n[None, :] + zero * VEC
    Ar, Ai = load_tiles(A_p, rows, mask, STATE_PLANE, CASE.complex)
    if CASE.plain:
        Ar = Ar * LOG2E
    nothing = tl.zeros([BD, NP], tl.float32)
    rr = nothing
    ri = nothing
    if HAS_R:
        rr, ri = load_tiles(r_in_p + (batch * K + chunk) * STATE, rows, mask, STATE_PLANE, CASE.complex)
    dAr = nothing
    dAi = nothing
    dBr = nothing
    dBi = nothing
    dCr = nothing
    dCi = nothing
    fixed = ((nothing, nothing), (nothing, nothing), (nothing, nothing))
    if CASE.dt_lti:
        # The same numbers as in the forward pass, from loads that have the layout of the tile.
        one_dt = tl.load(dt_p + d + zero * VEC, mask=d < D, other=0.0).to(tl.float32)
        if CASE.bias:
            one_dt += tl.load(bias_p + d + zero * VEC, mask=d < D, other=0.0)
        one_dt = step_size(one_dt, 0.0, CASE.softplus, True)
        fixed = factors_of(one_dt[:, None], Ar, Ai, True, CASE)
    fixed_B = (nothing, nothing)
    if CASE.B_lti:
        fixed_B = load_tiles(B_p, rows, mask, STATE_PLANE, CASE.complex)
    fixed_C = (nothing, nothing)
    if CASE.C_lti:
        fixed_C = load_tiles(C_p, rows, mask, STATE_PLANE, CASE.complex)

    if WARP_SUMS:
        # Where the sums of a lane go, see `sums`: gB, y and wA behind dt in shared memory, dB and dC of two rows.
        pair_at = channel_places(lane_d, n, (N if CASE.complex else SUMS_ROW))
        rough_at = rough_places(lane_d, n, N)
        routes = rough_routes(lane_d, n)
        more = more_routes(lane_d, n, scratch_p)
        if CASE.plain:
            sums_at = step_at + (tl.minimum(n // 4, 2) + 1)[None, :] * 4
        else:
            place = tl.where(n % 4 == 0, 1 + n // 4 % 2 * 2, 2)
            sums_at = room + step_places(lane_d[:, None] % 8 + n[None, :] // 8 * 8) + place[None, :] * 4

    count_segments = tl.cdiv(count, SEG)
    for backwards in range(count_segments):
        segment = count_segments - 1 - backwards
        first = segment * SEG
        size = tl.minimum(count - first, SEG)
        blocks = tl.cdiv(size, UNROLL)
        base = begin * 0 + first  # 64 bits wide
        B_seg = B_rows + base * BC_ROW + n
        C_seg = C_rows + base * BC_ROW + n
        reset_seg = reset_p + base
        hr, hi = load_tiles(states_p + segment.to(tl.int64) * STATE, tile, mask, STATE_PLANE, CASE.complex)

        tl.debug_barrier()
        inputs = (u_rows, dt_rows, z_rows, g_rows, B_rows, C_rows)
        for i in range(tl.cdiv(size, ROWS)):
            put_tile(
                i, inputs, base, size, wide_t, wide_d, wide_mask, fixed_dt, bias, plane_p, wide_at, slope_at, maps_room, zero,
                PLANE, LONG, STEP_BYTES, MAPS_BYTES, C_PLACE, NP, BD, ROWS, U_ROW, DT_ROW, Z_ROW, G_ROW, BC_ROW,
                WARP_SUMS, ACCURATE, CASE,
            )  # fmt: skip
        tl.debug_barrier()

        # The next segment (the one before this). The scratch needs no such help: stores keep its lines in L1.
        soon = tl.maximum(first - SEG, 0)
        before_p = states_p + (soon // SEG).to(tl.int64) * STATE
        touched = ask_for_segment(
            inputs, before_p, base, soon, count, first_d, SEG, D, N, NP, BD, U_ROW, DT_ROW, Z_ROW, G_ROW, BC_ROW,
            WARP_SUMS, CASE,
        )  # fmt: skip

        # Read back, so that the loop runs in the layout of kept_p; in the one of states_p it would convert every step.
        if WARP_SUMS:
            place_tile(hr, lane_d, n, keep_room)
            if CASE.complex:
                place_tile(hi, lane_d, n, keep_room + 4 * TILE)
            tl.debug_barrier()
            hr, hi = kept_tiles(keep_at, TILE, CASE.complex)
        else:
            store_kept(kept_p, hr, hi, TILE, CASE.complex)
            tl.debug_barrier()
            hr, hi = load_kept(kept_p, TILE, CASE.complex)
        for i in range(blocks - 1):
            for j in tl.static_range(UNROLL):
                row = i * UNROLL + j  # never past the end
                dt, x, gy, B, C, keep = load_sweep_step(
                    step_at, map_at, B_seg, C_seg, reset_seg, row, row, mask_n, fixed_B, fixed_C,
                    PLANE, MAPS_BYTES, C_PLACE, BD, N, EVEN_N, CASE, WARP_SUMS,
                )  # fmt: skip
                _, after = recomputed_step(hr, hi, sweep_factors(dt, Ar, Ai, fixed, ACCURATE, CASE), x, B, keep, CASE)
                hr, hi = after
            if WARP_SUMS:
                keep_tiles(keep_at + (i + 1) * (4 * CASE.parts * TILE), hr, hi, TILE, CASE.complex)
            else:
                store_kept(kept_p + (i + 1) * (CASE.parts * TILE), hr, hi, TILE, CASE.complex)
        if len(touched) > 0:
            total = as_int(touched[0])
            for k in tl.static_range(1, len(touched)):
                more_total = as_int(touched[k])
                if more_total.shape[0] == total.shape[0]:
                    total += more_total
                else:
                    use_touched(sink_p, total)
                    total = more_total
            use_touched(sink_p, total)
        tl.debug_barrier()

        for i_back in range(blocks):
            # All loads of a block, then all its arithmetic, then all its stores: the compiler moves no load across
            # a store, so anything else waits for memory at every step.
            i = blocks - 1 - i_back
            if WARP_SUMS:
                hr, hi = kept_tiles(keep_at + i * (4 * CASE.parts * TILE), TILE, CASE.complex)
            else:
                hr, hi = load_kept(kept_p + i * (CASE.parts * TILE), TILE, CASE.complex)
            steps = ()
            for j in tl.static_range(UNROLL):
                row = i * UNROLL + j
                steps = steps + (
                    load_sweep_step(
                        step_at, map_at, B_seg, C_seg, reset_seg, row, tl.minimum(row, size - 1), mask_n,
                        fixed_B, fixed_C, PLANE, MAPS_BYTES, C_PLACE, BD, N, EVEN_N, CASE, WARP_SUMS,
                    ),
                )  # fmt: skip
            befores = ()
            afters = ()
            factors = ()
            gys = ()
            xs = ()
            for j in tl.static_range(UNROLL):
                dt, x, gy, B, C, keep = steps[j]
                if CASE.plain and WARP_SUMS and j >= 2:
                    dt = later(dt, afters[j - 2][0], more)
                factors = factors + (sweep_factors(dt, Ar, Ai, fixed, ACCURATE, CASE),)
                before, after = recomputed_step(hr, hi, factors[j], x, B, keep, CASE)
                hr, hi = after
                befores = befores + (before,)
                afters = afters + (after,)
                gys = gys + (gy,)
                xs = xs + (x,)
                if CASE.C_lti:
                    dCr += hr * gy
                    if CASE.complex:
                        dCi -= hi * gy
            gs = ()
            ws = ()
            for j in tl.static_range(UNROLL - 1, -1, -1):
                dt, x, gy, B, C, keep = steps[j]
                a, P, Q = factors[j]
                gr = C[0] * gy + rr
                gi = gr
                if CASE.complex:
                    gi = ri - C[1] * gy
                rr, ri = back(a[0], a[1], gr, gi, CASE)
                wr, wi = conj_product(befores[j][0], befores[j][1], rr, ri, CASE.complex)
                dAr += wr * dt
                if CASE.complex:
                    dAi += wi * dt
                wAr = Ar  # sum_n Re(conj(A) w), as products that the sum multiplies out
                wAi = Ai
                if CASE.exact:
                    qr, qi = conj_product(B[0], B[1], gr, gi, CASE.complex)
                    qr = qr * x
                    qi = qi * x
                    wr = real_product(Ar, Ai, wr, wi, CASE.complex)
                    wi = real_product(a[0], a[1], qr, qi, CASE.complex)
                    if CASE.precise:
                        wi += qr
                    if not CASE.complex:
                        wr += wi
                    wAr = nothing + 1.0
                    wAi = wAr
                    tr, ti = conj_product(Q[0], Q[1], qr, qi, CASE.complex)
                    dAr += tr
                    if CASE.complex:
                        dAi += ti
                    gr, gi = conj_product(P[0], P[1], gr, gi, CASE.complex)
                if CASE.plain:
                    wr = wr * Ar
                gs = ((gr, gi),) + gs
                ws = ((wr, wi, wAr, wAi),) + ws
                if CASE.B_lti:
                    dBr += gr * x
                    if CASE.complex:
                        dBi += gi * x
                rr, ri = restart(rr, ri, keep, CASE)
            for j in tl.static_range(UNROLL):
                _, _, _, B, C, _ = steps[j]
                wr, wi, wAr, wAi = ws[j]
                if WARP_SUMS:
                    to = sums_at + (i * UNROLL + j) * STEP_BYTES
                    if CASE.plain:
                        store_state_sums(afters[j][0], C[0], gs[j][0], B[0], wr, index, to, SPLIT)
                    else:
                        store_product_sums(
                            gs[j][0], gs[j][1], B[0], B[1], wr, wi, wAr, wAi, afters[j][0], afters[j][1], C[0], C[1],
                            index, to, CASE.gate, ROUGH, CASE.complex,
                        )  # fmt: skip
                else:
                    at = row_p + (i * UNROLL + j) * BD
                    tl.store(at + PLANE, tl.sum(real_product(B[0], B[1], gs[j][0], gs[j][1], CASE.complex), axis=1))
                    if CASE.plain:
                        tl.store(at + 3 * PLANE, tl.sum(wr, axis=1))
                    else:
                        tl.store(at + 3 * PLANE, tl.sum(real_product(wAr, wAi, wr, wi, CASE.complex), axis=1))
                    if CASE.gate:
                        y, _ = product(C[0], C[1], afters[j][0], afters[j][1], CASE.complex)
                        tl.store(at + 2 * PLANE, tl.sum(y, axis=1))
            # Steps whose rows are stored together: `sums` adds two rows at once, the parts of one step or two steps.
            BY_WARP: tl.constexpr = WARP_SUMS and (CASE.complex or UNROLL % 2 == 0)
            TOGETHER: tl.constexpr = 2 if BY_WARP and not CASE.complex else UNROLL
            if ROUGH_PLAIN:
                for j in tl.static_range(UNROLL):
                    both = rough_channel_sums(gs[j][0], xs[j], afters[j][0], gys[j], routes, more)
                    store_rough_sums(both, index, dB_rows + rough_at + (base + i * UNROLL + j) * SUMS_ROW)
            for j in tl.static_range(0, 0 if ROUGH_PLAIN else UNROLL, TOGETHER):
                to = (base + i * UNROLL + j) * SUMS_ROW
                if not CASE.C_lti:
                    if ROUGH_PARTS and dC_p.dtype.element_ty == tl.bfloat16:
                        store_rough_parts(
                            dC_rows + rough_at + to, index, routes, more, afters, gys, -1.0, SUMS_ROW, UNROLL
                        )
                    else:
                        store_map_gradient(
                            dC_rows + to, n, index, pair_at, afters, gys, j, -1.0,
                            N, SUMS_ROW, EVEN_N, TOGETHER, CASE.complex, BY_WARP,
                        )  # fmt: skip
                if not CASE.B_lti:
                    if ROUGH_PARTS and dB_p.dtype.element_ty == tl.bfloat16:
                        store_rough_parts(dB_rows + rough_at + to, index, routes, more, gs, xs, 1.0, SUMS_ROW, UNROLL)
                    else:
                        store_map_gradient(
                            dB_rows + to, n, index, pair_at, gs, xs, j, 1.0,
                            N, SUMS_ROW, EVEN_N, TOGETHER, CASE.complex, BY_WARP,
                        )  # fmt: skip
        tl.debug_barrier()

        for i in range(tl.cdiv(size, ROWS)):
            gy_u, ddt = finish_tile(
                i, inputs, (du_p, ddt_p, dz_p, out_p), base, size, wide_t, wide_d, wide_mask, bias, skip, plane_p, wide_at,
                slope_at, zero, PLANE, LONG, STEP_BYTES, D, BD, ROWS, U_ROW, DT_ROW, Z_ROW, G_ROW, DZ_ROW, CUT, WRITE_OUT,
                WARP_SUMS, CASE,
            )  # fmt: skip
            if CASE.skip:
                dskip += gy_u
            if CASE.bias or CASE.dt_lti:
                dbias += ddt

    # dA, dB and dC where they are time-invariant, dD, dbias of this batch and chunk, one behind the other.
    TILES: tl.constexpr = 1 + CASE.B_lti + CASE.C_lti
    part_p = dparameters_p + (batch * K + chunk) * (TILES * STATE + 2 * D)
    store_tiles(part_p, rows, mask, dAr, dAi, STATE_PLANE, CASE.complex)
    part_p += STATE
    if CASE.B_lti:
        store_tiles(part_p, rows, mask, dBr, dBi, STATE_PLANE, CASE.complex)
        part_p += STATE
    if CASE.C_lti:
        store_tiles(part_p, rows, mask, dCr, dCi, STATE_PLANE, CASE.complex)
        part_p += STATE
    if WRITE_DH0:
        if chunk == 0:
            store_tiles(dh0_p + batch * STATE, rows, mask, rr, ri, STATE_PLANE, CASE.complex)
    last_d = first_d + tl.arange(0, BD)[None, :]
    if CASE.skip:
        tl.store(part_p + last_d, tl.sum(dskip, axis=1), mask=last_d < D)
    if CASE.bias or CASE.dt_lti:
        if CASE.dt_lti and CASE.softplus:
            dbias = dbias * sigmoid(fixed_raw)
        tl.store(part_p + D + last_d, tl.sum(dbias, axis=1), mask=last_d < D)
