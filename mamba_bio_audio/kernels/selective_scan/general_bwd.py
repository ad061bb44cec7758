"""Triton backward of the scans of `general_fwd`: states recomputed from saved ones, one reverse sweep, no atomics.

A gradient of a complex number is dL/dRe + i dL/dIm. With gy_t = dL/dy_t, twice that where complex, and r the adjoint that
comes back from later steps (r = dL/dh_T at the end):

    g_t  = conj(C_t) gy_t + r                       dL/dh_t
    r    = conj(a_t) g_t                            dL/dh_(t-1), 0 where reset_t
    w_t  = r conj(h_(t-1))                          gradient of dt_t A; h recomputed, never divided by a_t
    dC_t = sum_d conj(h_t) gy_t                     dB_t = sum_d dt_t u_t g_t
    s_t  = sum_n Re(conj(B_t) g_t)                  du_t = dt_t s_t + D gy_t
    dA  += dt_t w_t                                 ddt_t = sum_n Re(conj(A) w_t) + u_t s_t

EXACT, b_t = P u_t B_t with P = (exp(dt_t A) - 1) / A, Q = dP/dA, q_t = conj(B_t) u_t g_t the gradient of P:

    dB_t = sum_d conj(P) u_t g_t                    du_t = sum_n Re(conj(P B_t) g_t) + D gy_t
    dA  += dt_t w_t + conj(Q) q_t                   ddt_t = sum_n Re(conj(A) w_t + conj(a_t) q_t)

One program is one warp that owns one tile [BD, NP]; the four passes over a segment, and why the tile lies so, are those of
`triton_bwd`. WARP_SUMS has the sums over n and d done by `warp_sums`. Gradients of a time-invariant B and C are sums over
time of tiles and stay in registers, as dA does; those of selective ones leave as one partial row per channel block. All
partial sums are added in a fixed order afterwards.
"""

# Triton code, not Python: tuples grow in unrolled loops, and `if` on a constexpr must stand alone.
# mypy: ignore-errors
# ruff: noqa: RUF005, SIM102

import triton
import triton.language as tl

from mamba_bio_audio.kernels.selective_scan.general_parts import (
    advance,
    conj_product,
    decay,
    hold,
    load_keep,
    load_kept,
    load_parts,
    load_tiles,
    product,
    real_product,
    step_size,
    store_kept,
    store_tiles,
)
from mamba_bio_audio.kernels.selective_scan.triton_bwd import load_wide, store_rows
from mamba_bio_audio.kernels.selective_scan.triton_fwd import (
    as_int,
    prefetch_rows,
    sigmoid,
    touch_span,
    use_touched,
)
from mamba_bio_audio.kernels.selective_scan.warp_sums import channel_places, store_channel_sums, store_product_sums


@triton.jit
def factors_of(
    dt, Ar, Ai, fixed, ACCURATE: tl.constexpr, PRECISE: tl.constexpr, EXACT: tl.constexpr, COMPLEX: tl.constexpr,
    DT_LTI: tl.constexpr,
):  # fmt: skip
    """(a, P, Q) of one step as three pairs; without EXACT P and Q repeat a. dt [BD]."""
    if DT_LTI:
        return fixed
    else:
        ar, ai = decay(dt[:, None], Ar, Ai, ACCURATE, PRECISE, COMPLEX)
        if EXACT:
            return (ar, ai) + hold(dt[:, None], Ar, Ai, ar, ai, PRECISE, COMPLEX)
        else:
            return ar, ai, ar, ai, ar, ai


@triton.jit
def recomputed_step(
    hr, hi, factors, x, Br, Bi, keep,
    HAS_RESET: tl.constexpr, PRECISE: tl.constexpr, EXACT: tl.constexpr, COMPLEX: tl.constexpr,
):  # fmt: skip
    """(h_(t-1) after a reset, h_t) from h_(t-1), each a pair of tiles; x [BD] is dt u, or u with EXACT."""
    if HAS_RESET:
        hr = hr * keep
        if COMPLEX:
            hi = hi * keep
    if EXACT:
        Br, Bi = product(factors[2], factors[3], Br, Bi, COMPLEX)
    nr, ni = advance(hr, hi, factors[0], factors[1], x[:, None], Br, Bi, PRECISE, COMPLEX)
    return hr, hi, nr, ni


@triton.jit
def store_map_gradient(
    p, n, index, at, xs, vs, SIGN: tl.constexpr,
    N: tl.constexpr, EVEN_N: tl.constexpr, UNROLL: tl.constexpr, COMPLEX: tl.constexpr, WARP_SUMS: tl.constexpr,
):  # fmt: skip
    """Writes the block's rows of dB or dC at p, (UNROLL, PARTS, N): sums over d of x v, SIGN times that for the second part.

    xs: UNROLL pairs of tiles. vs: UNROLL vectors [BD]. at: `channel_places`.
    """
    NARROW: tl.constexpr = p.dtype.element_ty == tl.bfloat16
    if WARP_SUMS and COMPLEX:
        for j in tl.static_range(UNROLL):
            to = (p + j * (2 * N) + at).to(tl.int64)
            store_channel_sums(xs[j][0], vs[j], xs[j][1], SIGN * vs[j], index, to, NARROW)
    elif WARP_SUMS and UNROLL % 2 == 0:
        for j in tl.static_range(0, UNROLL, 2):
            to = (p + j * N + at).to(tl.int64)
            store_channel_sums(xs[j][0], vs[j], xs[j + 1][0], vs[j + 1], index, to, NARROW)
    else:
        rows = ()
        for j in tl.static_range(UNROLL):
            rows = rows + (tl.sum(xs[j][0] * vs[j][:, None], axis=0),)
            if COMPLEX:
                rows = rows + (SIGN * tl.sum(xs[j][1] * vs[j][:, None], axis=0),)
        store_rows(p, n, rows, N, N, EVEN_N, (UNROLL * 2 if COMPLEX else UNROLL))


@triton.jit
def load_sweep_inputs(
    row_p, B_p, C_p, reset_p, row, size, n, mask_n, B, C,
    PLANE: tl.constexpr, BD: tl.constexpr, N: tl.constexpr, EVEN_N: tl.constexpr, HAS_RESET: tl.constexpr,
    COMPLEX: tl.constexpr, B_LTI: tl.constexpr, C_LTI: tl.constexpr,
):  # fmt: skip
    """All inputs of one step. Past the end dt, x and gy are 0 in the scratch, so any finite B and C will do."""
    ROW: tl.constexpr = 2 * N if COMPLEX else N
    at = row_p + row * BD
    dt = tl.load(at)
    x = tl.load(at + PLANE)
    gy = tl.load(at + 2 * PLANE)
    t = tl.minimum(row, size - 1)
    if not B_LTI:
        B = load_parts(B_p + t * ROW, n, mask_n, N, EVEN_N, COMPLEX, 0)
    if not C_LTI:
        C = load_parts(C_p + t * ROW, n, mask_n, N, EVEN_N, COMPLEX, 0)
    keep = load_keep(reset_p + t, HAS_RESET)
    if HAS_RESET:
        keep = tl.where(row < size, keep, 1.0)
    return dt, x, gy, B[0], B[1], C[0], C[1], keep


@triton.jit(do_not_specialize=["L", "T", "K", "first_block", "zero"])
def general_bwd_kernel(
    u_p, dt_p, A_p, B_p, C_p, skip_p, z_p, bias_p, reset_p, g_p, states_p, r_in_p,
    du_p, ddt_p, dz_p, dB_p, dC_p, dA_p, dskip_p, dbias_p, dh0_p, scratch_p, sink_p,
    L, T, K, first_block, u_batch, dt_batch, z_batch, g_batch, zero,
    GROUP: tl.constexpr,
    D: tl.constexpr, N: tl.constexpr, NP: tl.constexpr, BD: tl.constexpr, UNROLL: tl.constexpr, SEG: tl.constexpr,
    ROWS: tl.constexpr, U_ROW: tl.constexpr, DT_ROW: tl.constexpr, Z_ROW: tl.constexpr, G_ROW: tl.constexpr,
    VEC: tl.constexpr, WARP_SUMS: tl.constexpr,
    COMPLEX: tl.constexpr, DT_LTI: tl.constexpr, B_LTI: tl.constexpr, C_LTI: tl.constexpr, EXACT: tl.constexpr,
    HAS_SKIP: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, SOFTPLUS: tl.constexpr,
    HAS_RESET: tl.constexpr, HAS_R: tl.constexpr, WRITE_DH0: tl.constexpr, PRECISE: tl.constexpr,
):  # fmt: skip
    """Sweeps one chunk of T steps (a multiple of SEG) backwards from r_in (B * K, PARTS, D, N), the adjoint at its end.

    A and time-invariant B, C are (PARTS, D, N). Writes du, ddt, dz (B, L, D); dB, dC (B, GROUP, cdiv(L, SEG) * SEG, PARTS,
    N), with WARP_SUMS fp32 or bf16, or (B * K, PARTS, D, N) where they are time-invariant; dA (B * K, PARTS, D, N); dskip,
    dbias (B * K, D); dh0 (B, PARTS, D, N). states (B, cdiv(L, SEG), PARTS, N, D). With a time-invariant dt its
    gradient is that of the bias, written to dbias whatever HAS_BIAS says, and UNROLL must divide L: a does not become 1
    past the end as it does where dt is 0.
    """
    PARTS: tl.constexpr = 2 if COMPLEX else 1
    STATE_PLANE: tl.constexpr = N * D
    STATE: tl.constexpr = PARTS * N * D
    BC_ROW: tl.constexpr = PARTS * N
    WIDE_VEC: tl.constexpr = 4
    EVEN_N: tl.constexpr = N == NP
    PER_SEG: tl.constexpr = SEG // UNROLL
    PLANE: tl.constexpr = SEG * BD
    TILE: tl.constexpr = NP * BD
    KEPT: tl.constexpr = PER_SEG * PARTS * TILE
    SCRATCH: tl.constexpr = KEPT + 4 * PLANE
    # y is for dz alone.
    ROUGH: tl.constexpr = z_p.dtype.element_ty == tl.bfloat16 and not C_LTI
    SUM_DT: tl.constexpr = HAS_BIAS or DT_LTI
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
    dz_p += (batch * L + begin) * D
    dB_rows = dB_p + ((batch * GROUP + pid % GROUP) * segments * SEG + begin) * BC_ROW
    dC_rows = dC_p + ((batch * GROUP + pid % GROUP) * segments * SEG + begin) * BC_ROW
    reset_p += batch * L + begin
    states_p += (batch * segments + begin // SEG) * STATE

    scratch_p += pid.to(tl.int64) * SCRATCH
    kept_p = scratch_p + (lane_d[:, None] * NP + n[None, :] + zero * VEC)  # [BD, NP]
    row_p = scratch_p + KEPT + lane_d + zero * VEC  # [BD]
    # Wide tiles are [1, ROWS, BD]: with the shape of a state tile the compiler would give both one layout.
    wide_t = tl.arange(0, ROWS)[None, :, None]
    wide_d = (first_d + tl.arange(0, BD))[None, None, :]
    wide_mask = wide_d < D
    plane_p = scratch_p + KEPT + wide_t * BD + tl.arange(0, BD)[None, None, :] + zero * WIDE_VEC

    dskip = tl.zeros([1, ROWS, BD], tl.float32)
    dbias = tl.zeros([1, ROWS, BD], tl.float32)
    bias = tl.zeros([1, 1, BD], tl.float32)
    if HAS_BIAS:
        bias = tl.load(bias_p + wide_d, mask=wide_mask, other=0.0)
    skip = tl.zeros([1, 1, BD], tl.float32)
    if HAS_SKIP:
        skip = tl.load(skip_p + wide_d, mask=wide_mask, other=0.0)
    fixed_raw = bias
    fixed_dt = bias
    if DT_LTI:
        fixed_raw = tl.load(dt_p + wide_d, mask=wide_mask, other=0.0).to(tl.float32) + bias
        fixed_dt = step_size(fixed_raw, 0.0, SOFTPLUS, True)

    d = first_d + lane_d
    tile = n[None, :] * D + d[:, None] + zero * VEC
    mask = mask_n[None, :] & (d < D)[:, None]
    # Everything but the states has them adjacent: read the other way, it would give the loops another layout.
    rows = d[:, None] * N + n[None, :] + zero * VEC
    Ar, Ai = load_tiles(A_p, rows, mask, STATE_PLANE, COMPLEX)
    nothing = tl.zeros([BD, NP], tl.float32)
    rr = nothing
    ri = nothing
    if HAS_R:
        rr, ri = load_tiles(r_in_p + (batch * K + chunk) * STATE, rows, mask, STATE_PLANE, COMPLEX)
    dAr = nothing
    dAi = nothing
    dBr = nothing
    dBi = nothing
    dCr = nothing
    dCi = nothing
    fixed = (nothing, nothing, nothing, nothing, nothing, nothing)
    if DT_LTI:
        # The same numbers as in the forward pass, from loads that have the layout of the tile.
        one_dt = tl.load(dt_p + d + zero * VEC, mask=d < D, other=0.0).to(tl.float32)
        if HAS_BIAS:
            one_dt += tl.load(bias_p + d + zero * VEC, mask=d < D, other=0.0)
        one_dt = step_size(one_dt, 0.0, SOFTPLUS, True)
        fixed = factors_of(one_dt, Ar, Ai, fixed, True, PRECISE, EXACT, COMPLEX, False)
    fixed_B = (nothing, nothing)
    if B_LTI:
        fixed_B = load_tiles(B_p, rows, mask, STATE_PLANE, COMPLEX)
    fixed_C = (nothing, nothing)
    if C_LTI:
        fixed_C = load_tiles(C_p, rows, mask, STATE_PLANE, COMPLEX)

    if WARP_SUMS:
        index = lane_d[:, None] * NP + n[None, :]
        # Where the sums of a lane go, see `warp_sums`: gB, y and wA to planes 1 to 3.
        plane = tl.where(n % 4 == 0, 1 + n // 4 % 2 * 2, 2)
        sums_at = (plane * PLANE + n // 8 * 8)[None, :] + lane_d[:, None]
        pair_at = channel_places(lane_d, n, N)
    else:
        index = nothing
        pair_at = nothing

    count_segments = tl.cdiv(count, SEG)
    for back in range(count_segments):
        segment = count_segments - 1 - back
        first = segment * SEG
        size = tl.minimum(count - first, SEG)
        blocks = tl.cdiv(size, UNROLL)
        base = begin * 0 + first  # 64 bits wide
        B_seg = B_rows + base * BC_ROW
        C_seg = C_rows + base * BC_ROW
        reset_seg = reset_p + base
        hr, hi = load_tiles(states_p + segment.to(tl.int64) * STATE, tile, mask, STATE_PLANE, COMPLEX)

        tl.debug_barrier()
        for i in range(tl.cdiv(size, ROWS)):
            t = i * ROWS + wide_t
            live = (t < size) & wide_mask
            u = load_wide(u_rows + base * U_ROW, t * U_ROW + wide_d + zero * WIDE_VEC, live)
            gy = load_wide(g_rows + base * G_ROW, t * G_ROW + wide_d + zero * WIDE_VEC, live)
            if HAS_Z:
                z = load_wide(z_rows + base * Z_ROW, t * Z_ROW + wide_d + zero * WIDE_VEC, live)
                gy = gy * z * sigmoid(z)
            if COMPLEX:
                gy = 2.0 * gy
            dt = fixed_dt
            if not DT_LTI:
                dt = load_wide(dt_rows + base * DT_ROW, t * DT_ROW + wide_d + zero * WIDE_VEC, live)
                dt = step_size(dt, bias, SOFTPLUS, ACCURATE)
            dt = tl.where(live, dt, 0.0)  # steps past the end leave the state as it is
            x = u
            if not EXACT:
                x = dt * u
            at = plane_p + i * (ROWS * BD)
            tl.store(at, dt)
            tl.store(at + PLANE, x)
            tl.store(at + 2 * PLANE, gy)
        tl.debug_barrier()

        # The next segment (the one before this) from DRAM to L2, this one's B and C to L1. The scratch needs no such help:
        # stores keep its lines in L1.
        soon = tl.maximum(first - SEG, 0)
        prefetch_rows(u_rows, soon, count, SEG, U_ROW, first_d, BD, D)
        prefetch_rows(g_rows, soon, count, SEG, G_ROW, first_d, BD, D)
        if not DT_LTI:
            prefetch_rows(dt_rows, soon, count, SEG, DT_ROW, first_d, BD, D)
        if HAS_Z:
            prefetch_rows(z_rows, soon, count, SEG, Z_ROW, first_d, BD, D)
        prefetch_rows(states_p + (soon // SEG).to(tl.int64) * STATE, 0, PARTS * N, PARTS * NP, D, first_d, BD, D)
        if not B_LTI:
            touched_B = touch_span(B_rows, base * BC_ROW, count.to(tl.int64) * BC_ROW, SEG * PARTS * NP)
        if not C_LTI:
            touched_C = touch_span(C_rows, base * BC_ROW, count.to(tl.int64) * BC_ROW, SEG * PARTS * NP)

        # Read back, so that the loop runs in the layout of kept_p; in the one of states_p it would convert every step.
        store_kept(kept_p, hr, hi, TILE, COMPLEX)
        tl.debug_barrier()
        hr, hi = load_kept(kept_p, TILE, COMPLEX)
        for i in range(blocks - 1):
            for j in tl.static_range(UNROLL):
                row = i * UNROLL + j
                dt, x, gy, Br, Bi, Cr, Ci, keep = load_sweep_inputs(
                    row_p, B_seg, C_seg, reset_seg, row, size, n, mask_n, fixed_B, fixed_C,
                    PLANE, BD, N, EVEN_N, HAS_RESET, COMPLEX, B_LTI, True,
                )  # fmt: skip
                factors = factors_of(dt, Ar, Ai, fixed, ACCURATE, PRECISE, EXACT, COMPLEX, DT_LTI)
                _, _, hr, hi = recomputed_step(hr, hi, factors, x, Br, Bi, keep, HAS_RESET, PRECISE, EXACT, COMPLEX)
            store_kept(kept_p + (i + 1) * (PARTS * TILE), hr, hi, TILE, COMPLEX)
        if not B_LTI:
            use_touched(sink_p, as_int(touched_B))
        if not C_LTI:
            use_touched(sink_p, as_int(touched_C))
        tl.debug_barrier()

        for i_back in range(blocks):
            # All loads of a block, then all its arithmetic, then all its stores: the compiler moves no load across
            # a store, so anything else waits for memory at every step.
            i = blocks - 1 - i_back
            hr, hi = load_kept(kept_p + i * (PARTS * TILE), TILE, COMPLEX)
            steps = ()
            for j in tl.static_range(UNROLL):
                steps = steps + (
                    load_sweep_inputs(
                        row_p, B_seg, C_seg, reset_seg, i * UNROLL + j, size, n, mask_n, fixed_B, fixed_C,
                        PLANE, BD, N, EVEN_N, HAS_RESET, COMPLEX, B_LTI, C_LTI,
                    ),
                )  # fmt: skip
            befores = ()
            afters = ()
            factors = ()
            gys = ()
            xs = ()
            for j in tl.static_range(UNROLL):
                dt, x, gy, Br, Bi, Cr, Ci, keep = steps[j]
                factors = factors + (factors_of(dt, Ar, Ai, fixed, ACCURATE, PRECISE, EXACT, COMPLEX, DT_LTI),)
                br, bi, hr, hi = recomputed_step(
                    hr, hi, factors[j], x, Br, Bi, keep, HAS_RESET, PRECISE, EXACT, COMPLEX
                )
                befores = befores + ((br, bi),)
                afters = afters + ((hr, hi),)
                gys = gys + (gy,)
                xs = xs + (x,)
                if C_LTI:
                    dCr += hr * gy[:, None]
                    if COMPLEX:
                        dCi -= hi * gy[:, None]
            gs = ()
            for j in tl.static_range(UNROLL - 1, -1, -1):
                dt, x, gy, Br, Bi, Cr, Ci, keep = steps[j]
                ar, ai, Pr, Pi, Qr, Qi = factors[j]
                gr = Cr * gy[:, None] + rr
                gi = gr
                if COMPLEX:
                    gi = ri - Ci * gy[:, None]
                rr, ri = conj_product(ar, ai, gr, gi, COMPLEX)
                if PRECISE:
                    rr += gr
                    if COMPLEX:
                        ri += gi
                wr, wi = conj_product(befores[j][0], befores[j][1], rr, ri, COMPLEX)
                dAr += wr * dt[:, None]
                if COMPLEX:
                    dAi += wi * dt[:, None]
                wAr = Ar  # sum_n Re(conj(A) w), as products that the sum multiplies out
                wAi = Ai
                if EXACT:
                    qr, qi = conj_product(Br, Bi, gr, gi, COMPLEX)
                    qr = qr * x[:, None]
                    qi = qi * x[:, None]
                    wr = real_product(Ar, Ai, wr, wi, COMPLEX)
                    wi = real_product(ar, ai, qr, qi, COMPLEX)
                    if PRECISE:
                        wi += qr
                    if not COMPLEX:
                        wr += wi
                    wAr = nothing + 1.0
                    wAi = wAr
                    tr, ti = conj_product(Qr, Qi, qr, qi, COMPLEX)
                    dAr += tr
                    if COMPLEX:
                        dAi += ti
                    gr, gi = conj_product(Pr, Pi, gr, gi, COMPLEX)
                gs = ((gr, gi),) + gs
                at = row_p + (i * UNROLL + j) * BD
                if WARP_SUMS:
                    to = scratch_p + KEPT + (i * UNROLL + j) * BD + sums_at
                    store_product_sums(
                        gr, gi, Br, Bi, wr, wi, wAr, wAi, afters[j][0], afters[j][1], Cr, Ci,
                        index, to.to(tl.int64), HAS_Z, ROUGH, COMPLEX,
                    )  # fmt: skip
                else:
                    tl.store(at + PLANE, tl.sum(real_product(Br, Bi, gr, gi, COMPLEX), axis=1))
                    tl.store(at + 3 * PLANE, tl.sum(real_product(wAr, wAi, wr, wi, COMPLEX), axis=1))
                    if HAS_Z:
                        y, _ = product(Cr, Ci, afters[j][0], afters[j][1], COMPLEX)
                        tl.store(at + 2 * PLANE, tl.sum(y, axis=1))
                if B_LTI:
                    dBr += gr * x[:, None]
                    if COMPLEX:
                        dBi += gi * x[:, None]
                if HAS_RESET:
                    rr = rr * keep
                    if COMPLEX:
                        ri = ri * keep
            if not C_LTI:
                store_map_gradient(
                    dC_rows + (base + i * UNROLL) * BC_ROW, n, index, pair_at, afters, gys, -1.0,
                    N, EVEN_N, UNROLL, COMPLEX, WARP_SUMS,
                )  # fmt: skip
            if not B_LTI:
                store_map_gradient(
                    dB_rows + (base + i * UNROLL) * BC_ROW, n, index, pair_at, gs, xs, 1.0,
                    N, EVEN_N, UNROLL, COMPLEX, WARP_SUMS,
                )  # fmt: skip
        tl.debug_barrier()

        for i in range(tl.cdiv(size, ROWS)):
            t = i * ROWS + wide_t
            live = (t < size) & wide_mask
            to = t * D + wide_d + zero * WIDE_VEC
            at = plane_p + i * (ROWS * BD)
            sum_gB = tl.load(at + PLANE)
            sum_wA = tl.load(at + 3 * PLANE)
            u = load_wide(u_rows + base * U_ROW, t * U_ROW + wide_d + zero * WIDE_VEC, live)
            du = sum_gB
            ddt = sum_wA
            if not EXACT:
                du = tl.load(at) * sum_gB
                ddt += u * sum_gB
            if not DT_LTI:
                if SOFTPLUS:
                    raw = load_wide(dt_rows + base * DT_ROW, t * DT_ROW + wide_d + zero * WIDE_VEC, live) + bias
                    ddt = ddt * sigmoid(raw)
            ddt = tl.where(live, ddt, 0.0)
            gy = load_wide(g_rows + base * G_ROW, t * G_ROW + wide_d + zero * WIDE_VEC, live)
            if HAS_Z:
                z = load_wide(z_rows + base * Z_ROW, t * Z_ROW + wide_d + zero * WIDE_VEC, live)
                s = sigmoid(z)
                y = tl.load(at + 2 * PLANE)
                if COMPLEX:
                    y = 2.0 * y
                y += skip * u
                dz = gy * y * s * (1.0 + z * (1.0 - s))
                gy = gy * z * s
                tl.store(dz_p + base * D + to, dz.to(dz_p.dtype.element_ty), mask=live)
            du += skip * gy
            tl.store(du_p + base * D + to, du.to(du_p.dtype.element_ty), mask=live)
            if not DT_LTI:
                tl.store(ddt_p + base * D + to, ddt.to(ddt_p.dtype.element_ty), mask=live)
            if HAS_SKIP:
                dskip += gy * u
            if SUM_DT:
                dbias += ddt

    part = (batch * K + chunk) * STATE
    store_tiles(dA_p + part, rows, mask, dAr, dAi, STATE_PLANE, COMPLEX)
    if B_LTI:
        store_tiles(dB_p + part, rows, mask, dBr, dBi, STATE_PLANE, COMPLEX)
    if C_LTI:
        store_tiles(dC_p + part, rows, mask, dCr, dCi, STATE_PLANE, COMPLEX)
    if WRITE_DH0:
        if chunk == 0:
            store_tiles(dh0_p + batch * STATE, rows, mask, rr, ri, STATE_PLANE, COMPLEX)
    last_d = first_d + tl.arange(0, BD)[None, :]
    if HAS_SKIP:
        tl.store(dskip_p + (batch * K + chunk) * D + last_d, tl.sum(dskip, axis=1), mask=last_d < D)
    if SUM_DT:
        if DT_LTI:
            if SOFTPLUS:
                dbias = dbias * sigmoid(fixed_raw)
        tl.store(dbias_p + (batch * K + chunk) * D + last_d, tl.sum(dbias, axis=1), mask=last_d < D)
