"""U-Nets for many rows: a program takes GROUP rows through all tiers, so that a matrix is read once for them.

Everything is that of `unet.py`, real layers only, but each stage between two barriers goes over the rows, its matrix held in
registers, where it fits (`hold`): at a hundred rows a program each would read the same matrices from L2 faster than L2 gives
them. States are asked for (L2) at the start of a layer. Rows of a group lie one after another; the last group may have fewer.
"""

# mypy: disable-error-code="no-untyped-def, assignment, var-annotated, attr-defined"
# Triton code: `if` on a constexpr must stand alone.
from __future__ import annotations

import triton
import triton.language as tl

from mamba_bio_audio.kernels.decode.draw import choose
from mamba_bio_audio.kernels.decode.persistent import norm_scale, normed_products, product, put, tiles
from mamba_bio_audio.kernels.scan.parts import prefetch, sigmoid, softplus

# Words of a matrix that a thread may hold.
_HELD = tl.constexpr(32)
_ALL = tl.constexpr(1 << 20)


@triton.jit
def layer_rows(
    m_p, v_p, h_p, ring_p, scratch_p, own_p, mirror_p, mirrored, count, t, eps, CASE: tl.constexpr, STATE: tl.constexpr,
    ROOM: tl.constexpr, THREADS: tl.constexpr,
):  # fmt: skip
    """`layer_step` of `count` rows, whose states lie STATE and whose scratch lies ROOM apart."""
    D: tl.constexpr = CASE.D
    E: tl.constexpr = CASE.E
    N: tl.constexpr = CASE.N
    W: tl.constexpr = CASE.W
    P: tl.constexpr = CASE.P
    X: tl.constexpr = CASE.X
    ROWS: tl.constexpr = CASE.E_ROWS
    HALVES: tl.constexpr = CASE.HALVES
    U: tl.constexpr = D
    GATE: tl.constexpr = D + E
    G: tl.constexpr = D + 2 * E
    MAPS: tl.constexpr = D + 3 * E
    z_p = m_p + E * D // HALVES
    x_proj_p = z_p + E * D // HALVES
    out_proj_p = x_proj_p + X * E // HALVES
    dt_proj_p = v_p + E * N
    taps_p = dt_proj_p + E * P
    bias_p = taps_p + W * E
    dt_bias_p = bias_p + E
    skip_p = dt_bias_p + E
    n = tl.arange(0, N)
    p = tl.arange(0, P)
    IN_HELD: tl.constexpr = _ALL if 2 * ROWS * D // HALVES <= _HELD * THREADS else 0
    OUT_HELD: tl.constexpr = _ALL if CASE.D_ROWS * E // HALVES <= _HELD * THREADS else 0

    for i in range(count):
        prefetch(h_p + i * STATE + tl.arange(0, E * N // 32) * 32)
    tl.debug_barrier()
    for part in tl.static_range(E // ROWS):
        e = part * ROWS + tl.arange(0, ROWS)
        held = tiles(m_p, part, ROWS, D, CASE.IN_COLUMNS, HALVES, IN_HELD)
        held_z = tiles(z_p, part, ROWS, D, CASE.IN_COLUMNS, HALVES, IN_HELD)
        bias = tl.load(bias_p + e)
        newest = tl.load(taps_p + (W - 1) * E + e)
        for i in range(count):
            row_p = scratch_p + i * ROOM
            past_p = ring_p + i * STATE
            u = bias
            for age in tl.static_range(1, W):
                u += tl.load(taps_p + (W - 1 - age) * E + e) * tl.load(past_p + ((t + W - age) % W) * E + e)
            x, z = normed_products(m_p, row_p, part, held, held_z, eps, ROWS, D, E, CASE.IN_COLUMNS, HALVES)
            u += newest * x
            put(row_p + U + e, u * sigmoid(u))
            put(row_p + GATE + e, z * sigmoid(z))
            put(past_p + (t % W) * E + e, x)

    held = tiles(x_proj_p, 0, X, E, CASE.X_COLUMNS, HALVES, _ALL)
    tl.debug_barrier()
    for i in range(count):
        row_p = scratch_p + i * ROOM
        put(row_p + MAPS + tl.arange(0, X), product(x_proj_p, row_p + U, 0, held, X, E, CASE.X_COLUMNS, HALVES))

    tl.debug_barrier()
    for part in tl.static_range(E // ROWS):
        e = part * ROWS + tl.arange(0, ROWS)
        at = e[:, None] * N + n[None, :]
        dt_rows = tl.load(dt_proj_p + e[:, None] * P + p[None, :])
        A = tl.load(v_p + at)
        dt_bias = tl.load(dt_bias_p + e)
        skip = tl.load(skip_p + e)
        for i in range(count):
            row_p = scratch_p + i * ROOM
            h = tl.load(h_p + i * STATE + at)
            delta = tl.load(row_p + MAPS + p)
            B = tl.load(row_p + MAPS + P + n)
            C = tl.load(row_p + MAPS + P + N + n)
            u = tl.load(row_p + U + e)
            gate = tl.load(row_p + GATE + e)
            dt = softplus(tl.sum(dt_rows * delta[None, :], axis=1) + dt_bias, True)
            h = tl.exp2(dt[:, None] * A) * h + (dt * u)[:, None] * B[None, :]
            put(row_p + G + e, (tl.sum(h * C[None, :], axis=1) + skip * u) * gate)
            tl.store(h_p + i * STATE + at, h)

    tl.debug_barrier()
    for part in tl.static_range(D // CASE.D_ROWS):
        d = part * CASE.D_ROWS + tl.arange(0, CASE.D_ROWS)
        held = tiles(out_proj_p, part, CASE.D_ROWS, E, CASE.OUT_COLUMNS, HALVES, OUT_HELD)
        for i in range(count):
            row_p = scratch_p + i * ROOM
            r = tl.load(row_p + d)
            put(own_p + i * ROOM + d, r)
            r += tl.load(mirror_p + i * ROOM + d, mask=mirrored, other=0.0)
            out = product(out_proj_p, row_p + G, part, held, CASE.D_ROWS, E, CASE.OUT_COLUMNS, HALVES)
            put(row_p + d, r + out)


@triton.jit
def exchange_rows(state_p, scratch_p, place, count, TIER: tl.constexpr, STATE: tl.constexpr, ROOM: tl.constexpr):
    """`unet.exchange`."""
    d = tl.arange(0, TIER.D_ROWS)
    tl.debug_barrier()
    for i in range(count):
        frames_p = state_p + i * STATE + TIER.frames + place * TIER.D
        row_p = scratch_p + i * ROOM
        for part in tl.static_range(TIER.D // TIER.D_ROWS):
            at = part * TIER.D_ROWS + d
            r = tl.load(row_p + at)
            queued = tl.load(frames_p + TIER.pool * TIER.D + at)
            put(frames_p + at, r)
            # The sum lies beside the stream, which others still read.
            put(row_p + TIER.scratch + TIER.down * TIER.D + at, r + queued)
    tl.debug_barrier()
    for i in range(count):
        row_p = scratch_p + i * ROOM
        for part in tl.static_range(TIER.D // TIER.D_ROWS):
            at = part * TIER.D_ROWS + d
            put(row_p + at, tl.load(row_p + TIER.scratch + TIER.down * TIER.D + at))


@triton.jit
def blocks_rows(
    words_p, floats_p, state_p, scratch_p, place, count, t, eps, TIER: tl.constexpr, STATE: tl.constexpr, ROOM: tl.constexpr,
    THREADS: tl.constexpr,
):  # fmt: skip
    """`unet.blocks`."""
    kept_p = scratch_p + TIER.scratch
    for layer in range(TIER.layers):
        if TIER.wider > 0:  # noqa: SIM102
            if layer == TIER.down:
                exchange_rows(state_p, scratch_p, place, count, TIER, STATE, ROOM)
        if TIER.down > 0:
            mirror_p = kept_p + (TIER.layers - 1 - layer) * TIER.D
            mirrored = layer >= TIER.down
        else:
            mirror_p = kept_p
            mirrored = layer == TIER.layers - 1
        layer_rows(
            words_p + layer * TIER.matrices, floats_p + layer * TIER.vectors, state_p + layer * TIER.h,
            state_p + TIER.rings + layer * (TIER.W * TIER.E), scratch_p, kept_p + layer * TIER.D, mirror_p, mirrored, count, t,
            eps, TIER, STATE, ROOM, THREADS,
        )  # fmt: skip


@triton.jit
def coarser_rows(
    words_p, floats_p, state_p, scratch_p, own_words_p, own_floats_p, own_state_p, own_scratch_p, place, count, t, eps,
    FINER: tl.constexpr, TIER: tl.constexpr, STATE: tl.constexpr, ROOM: tl.constexpr, THREADS: tl.constexpr,
):  # fmt: skip
    """A frame of a coarser tier, with the pools from and to the finer one, whose pointers come first."""
    words_p += FINER.layers * FINER.matrices
    floats_p += FINER.layers * FINER.vectors
    frames_p = state_p + FINER.frames
    for part in range(TIER.D // FINER.DOWN_ROWS):
        d = part * FINER.DOWN_ROWS + tl.arange(0, FINER.DOWN_ROWS)
        bias = tl.load(floats_p + d)
        for i in range(count):
            row_p = own_scratch_p + i * ROOM
            sums = product(
                words_p, frames_p + i * STATE, part, (), FINER.DOWN_ROWS, TIER.joined, FINER.DOWN_COLUMNS, FINER.HALVES
            )
            put(row_p + d, sums + bias)
            put(row_p + TIER.scratch + d, sums + bias)
    blocks_rows(own_words_p, own_floats_p, own_state_p, own_scratch_p, place, count, t, eps, TIER, STATE, ROOM, THREADS)
    tl.debug_barrier()
    words_p += FINER.pool_words
    for part in range(TIER.joined // FINER.UP_ROWS):
        at = part * FINER.UP_ROWS + tl.arange(0, FINER.UP_ROWS)
        bias = tl.load(floats_p + FINER.wider + at)
        for i in range(count):
            sums = product(
                words_p, own_scratch_p + i * ROOM, part, (), FINER.UP_ROWS, TIER.D, FINER.UP_COLUMNS, FINER.HALVES
            )
            put(frames_p + i * STATE + TIER.joined + at, sums + bias)
    tl.debug_barrier()


@triton.jit(do_not_specialize=["steps", "start", "turn0", "turn1", "turn2", "rows", "eps"])
def unet_group_kernel(
    words_p, floats_p, allowed_p, state_p, scratch_p, last_p, draws_p, settings_p, symbols_p, scores_p, logits_p,
    steps, start, turn0, turn1, turn2, rows, eps, CASE: tl.constexpr, GROUP: tl.constexpr, THREADS: tl.constexpr,
    WRITE_LOGITS: tl.constexpr,
):  # fmt: skip
    """As `unet.unet_kernel`."""
    OUTER: tl.constexpr = CASE.outer
    MIDDLE: tl.constexpr = CASE.middle
    CENTRE: tl.constexpr = CASE.centre
    STATE: tl.constexpr = CASE.state
    ROOM: tl.constexpr = CASE.room
    low = tl.program_id(0) * GROUP
    count = tl.minimum(GROUP, rows - low)
    state_p += low.to(tl.int64) * STATE
    scratch_p += low.to(tl.int64) * ROOM
    last_p += low
    words1_p = words_p + OUTER.words
    words2_p = words1_p + MIDDLE.words
    floats1_p = floats_p + OUTER.floats
    floats2_p = floats1_p + MIDDLE.floats
    state1_p = state_p + OUTER.state
    state2_p = state1_p + MIDDLE.state
    scratch1_p = scratch_p + OUTER.room
    scratch2_p = scratch1_p + MIDDLE.room
    bias_p = floats_p + CASE.embedding
    head_p = words_p + CASE.head
    temperature = tl.load(settings_p)
    s = tl.arange(0, OUTER.S)
    d = tl.arange(0, OUTER.D_ROWS)
    for step in range(steps):
        for i in range(count):
            symbol = tl.load(last_p + i)
            for part in tl.static_range(OUTER.D // OUTER.D_ROWS):
                at = part * OUTER.D_ROWS + d
                put(scratch_p + i * ROOM + at, tl.load(bias_p + OUTER.S + symbol * OUTER.D + at))
        place = (start + step) % OUTER.pool
        t = (turn0 + step) % OUTER.W
        blocks_rows(words_p, floats_p, state_p, scratch_p, place, count, t, eps, OUTER, STATE, ROOM, THREADS)
        held = tiles(head_p, 0, OUTER.S, OUTER.D, OUTER.HEAD_COLUMNS, OUTER.HALVES, OUTER.X_AHEAD)
        tl.debug_barrier()
        for i in range(count):
            row_p = scratch_p + i * ROOM
            draw = tl.load(draws_p + step * rows + low + i)
            scale = norm_scale(row_p, eps, OUTER.D, OUTER.IN_COLUMNS)
            logits = product(head_p, row_p, 0, held, OUTER.S, OUTER.D, OUTER.HEAD_COLUMNS, OUTER.HALVES) * scale
            logits += tl.load(bias_p + s)
            if WRITE_LOGITS:
                tl.store(logits_p + (step * rows + low + i) * OUTER.S + s, logits)
            index, score = choose(logits[None, :], draw, temperature, 0, 1.0, OUTER)
            symbol = tl.load(allowed_p + tl.sum(index, axis=0))
            tl.store(last_p + i, symbol)
            tl.store(symbols_p + step * rows + low + i, symbol)
            tl.store(scores_p + step * rows + low + i, tl.sum(score, axis=0))
        if place == OUTER.pool - 1:
            frame = (start % OUTER.pool + step) // OUTER.pool
            first = start // OUTER.pool % MIDDLE.pool
            place = (first + frame) % MIDDLE.pool
            coarser_rows(
                words_p, floats_p, state_p, scratch_p, words1_p, floats1_p, state1_p, scratch1_p, place, count,
                (turn1 + frame) % MIDDLE.W, eps, OUTER, MIDDLE, STATE, ROOM, THREADS,
            )  # fmt: skip
            if place == MIDDLE.pool - 1:
                coarser_rows(
                    words1_p, floats1_p, state1_p, scratch1_p, words2_p, floats2_p, state2_p, scratch2_p, 0, count,
                    (turn2 + (first + frame) // MIDDLE.pool) % CENTRE.W, eps, MIDDLE, CENTRE, STATE, ROOM, THREADS,
                )  # fmt: skip
        # All have read the streams before the next step replaces them, and see the last symbols.
        tl.debug_barrier()
