"""Sums of 16 x 16 tiles in one warp: over the states on the tensor cores, over the channels by a halving exchange.

Triton's own sums cost two to three shuffles per value; here one matrix instruction of 16 x 8 x 8 adds 8 states of 16
channels, and an exchange in which every lane gives away half of its values adds 4 values of 8 lanes in 4 shuffles
instead of 12. Written as inline PTX, which works on the registers of a lane: the tile [16 channels, 16 states] must lie
so that lane 4 g + t holds channels g and g + 8, states 4 t to 4 t + 3, which is how Triton lays out what it loads and
stores 4 states at a time. All functions compare the tile of indices that they are given with the lane and write NaN
where the layout is another one (`store_state_sums` for half of the channels).

What is cut to 11 bits loses 2^-11.5 of itself on average (its leading bits being spread as those of products are); where
sums are added up over time that would show, so they are scaled by what makes up for it.
"""
# Triton code, not Python: tuples grow in unrolled loops.
# mypy: ignore-errors
# ruff: noqa: RUF005

import triton
import triton.language as tl

from mamba_bio_audio.kernels.scan.sums_asm import (
    CHANNELS,
    CHANNELS_CONSTRAINTS,
    CHANNELS_NARROW,
    PRODUCTS,
    PRODUCTS_CONSTRAINTS,
    PRODUCTS_GATE,
    PRODUCTS_GATE_CONSTRAINTS,
    PRODUCTS_GATE_ROUGH,
    PRODUCTS_PAIRS,
    PRODUCTS_PAIRS_CONSTRAINTS,
    PRODUCTS_PAIRS_GATE,
    PRODUCTS_PAIRS_GATE_CONSTRAINTS,
    PRODUCTS_PAIRS_GATE_ROUGH,
    ROUGH_CHANNELS,
    ROUGH_CHANNELS_CONSTRAINTS,
    STATES,
    STATES_CONSTRAINTS,
    STATES_SPLIT,
    STORE_ROUGH,
    STORE_ROUGH_CONSTRAINTS,
)


@triton.jit
def store_state_sums(h, C, g, B, w, index, at, SPLIT: tl.constexpr):
    """Stores sum_n g B, sum_n h C and sum_n w of every channel in shared memory.

    Args:
        h, g, w: [16 channels, 16 states] fp32. C, B: [1, 16 states] fp32.
        index: [16, 16] int32, 16 channel + state. at: [16, 16] int32 addresses; those of channel c < 8 and states 0, 4 and 8
            are where the three sums of c go (12 equals 8), those of c + 8 lie 32 bytes behind.
        SPLIT: fp32 accuracy; otherwise h, C, g, B and w count with 11 significant bits, the others cut. Multiplied by
            TWO_CUT, or that of w by ONE_CUT, the sums are unbiased.
    """
    if SPLIT:
        tl.inline_asm_elementwise(
            STATES_SPLIT, STATES_CONSTRAINTS, [h, C, g, B, w, index, at],
            dtype=tl.int32, is_pure=False, pack=8,
        )  # fmt: skip
    else:
        tl.inline_asm_elementwise(
            STATES, STATES_CONSTRAINTS, [h, C, g, B, w, index, at],
            dtype=tl.int32, is_pure=False, pack=8,
        )  # fmt: skip


@triton.jit
def store_product_sums(
    gr, gi, Br, Bi, wr, wi, Ar, Ai, hr, hi, Cr, Ci, index, at,
    GATE: tl.constexpr, ROUGH: tl.constexpr, COMPLEX: tl.constexpr,
):  # fmt: skip
    """Stores sum_n Re(conj(B) g), sum_n Re(conj(A) w) and, with GATE, sum_n Re(C h) of every channel in shared memory.

    In fp32 throughout; for pairs cheaper than the tensor cores, which want every operand rounded or split.

    Args:
        gr to Ci: fp32 pairs of what broadcasts to a tile [16 channels, 16 states]; the second of each counts if COMPLEX.
        index: [16, 16] int32, 16 channel + state. at: [16, 16] int32 addresses; with state = 4 t + i, that of channel c
            < 8 is where for channel c + 8 (t >> 1) the first sum goes (i = 0, t even), the second (i = 0, t odd), the third
            (i = 1).
        ROUGH: C is the same for all channels, and h and C count with 11 significant bits, the others cut: on the tensor cores.
    """
    if COMPLEX:
        if GATE:
            tl.inline_asm_elementwise(
                PRODUCTS_PAIRS_GATE_ROUGH if ROUGH else PRODUCTS_PAIRS_GATE, PRODUCTS_PAIRS_GATE_CONSTRAINTS,
                [gr, Br, gi, Bi, wr, Ar, wi, Ai, hr, Cr, hi, Ci, index, at], dtype=tl.int32, is_pure=False, pack=8,
            )  # fmt: skip
        else:
            tl.inline_asm_elementwise(
                PRODUCTS_PAIRS, PRODUCTS_PAIRS_CONSTRAINTS, [gr, Br, gi, Bi, wr, Ar, wi, Ai, index, at],
                dtype=tl.int32, is_pure=False, pack=8,
            )  # fmt: skip
    elif GATE:
        tl.inline_asm_elementwise(
            PRODUCTS_GATE_ROUGH if ROUGH else PRODUCTS_GATE, PRODUCTS_GATE_CONSTRAINTS, [gr, Br, wr, Ar, hr, Cr, index, at],
            dtype=tl.int32, is_pure=False, pack=8,
        )  # fmt: skip
    else:
        tl.inline_asm_elementwise(
            PRODUCTS, PRODUCTS_CONSTRAINTS, [gr, Br, wr, Ar, index, at], dtype=tl.int32, is_pure=False, pack=8
        )  # fmt: skip


@triton.jit
def channel_places(lane_d, n, ROW: tl.constexpr):
    """Offsets for `store_channel_sums` into the states of step 0 and, ROW further on, of step 1."""
    return (lane_d % 2 * ROW + lane_d // 4 * 2 + lane_d // 2 % 2)[:, None] + n[None, :]


@triton.jit
def store_channel_sums(x0, v0, x1, v1, index, at, NARROW: tl.constexpr):
    """Stores sum_d x v [16 states] of two steps.

    Args:
        x0, x1: [16 channels, 16 states] fp32 of the two steps, or of any two rows that lie one behind the
            other. v0, v1: [16 channels].
        index: as above. at: [16, 16] addresses as int64; that of channel c < 8 and state 4 t is where the sum of state
            4 t + 2 (c >> 2) + (c >> 1 & 1) of step c & 1 goes.
        NARROW: stored as bf16, otherwise as fp32.
    """
    if NARROW:
        tl.inline_asm_elementwise(
            CHANNELS_NARROW, CHANNELS_CONSTRAINTS, [x0, v0, x1, v1, index, at],
            dtype=tl.int32, is_pure=False, pack=8,
        )  # fmt: skip
    else:
        tl.inline_asm_elementwise(
            CHANNELS, CHANNELS_CONSTRAINTS, [x0, v0, x1, v1, index, at],
            dtype=tl.int32, is_pure=False, pack=8,
        )  # fmt: skip


@triton.jit
def rough_routes(lane_d, n):
    """The constant matrices of `rough_channel_sums` [16 channels, 16 states], as bits of fp32."""
    which = lane_d[:, None] // 8 * 4 + n[None, :] % 4
    g = lane_d[:, None] % 8
    t = n[None, :] // 4
    e = tl.where(which < 2, (g == t + 4 * which).to(tl.float32), 0.0)
    # Two cuts of 2^-11.5: 2^-10 is the next that 11 bits can hold.
    e = tl.where((which >= 2) & (which < 6), (g % 4 == which - 2).to(tl.float32) * 1.0009765625, e)
    return e.to(tl.int32, bitcast=True)


@triton.jit
def more_routes(lane_d, n, zeros_p):
    """Zeros in the first registers of a lane and its first two of `rough_routes` once more, 256 of them from zeros_p.

    Matrices take four registers in a row: these stand beside and around those of `rough_routes`. The compiler would move
    zeros that it knows, and copies, into place for every product.
    """
    e = rough_routes((lane_d + 8) % 16, n)
    e = tl.where((lane_d[:, None] >= 8) & (n[None, :] % 4 < 2), e, 0)
    return e + tl.load(zeros_p + lane_d[:, None] * 16 + n[None, :])


@triton.jit
def rough_places(lane_d, n, N: tl.constexpr):
    """Offsets for `store_rough_sums` into a row of N sums of the first and N of the second product."""
    m = lane_d[:, None] % 8 + n[None, :] // 8 * 8
    return n[None, :] // 4 % 2 * N + m % 4 * 4 + m // 4


@triton.jit
def rough_channel_sums(x0, v0, x1, v1, routes, more):
    """sum_d x0 v0 and sum_d x1 v1 [16 states] of a step, one of the 32 in the first register of every lane.

    On the tensor cores, where what is added counts with 11 bits, twice one behind the other.

    Args:
        x0, x1: [16 channels, 16 states] fp32. v0, v1: what broadcasts to that from [16 channels].
        routes, more: what `rough_routes` and `more_routes` give.
    """
    return tl.inline_asm_elementwise(
        ROUGH_CHANNELS,
        ROUGH_CHANNELS_CONSTRAINTS,
        [x0, v0, x1, v1, routes, more],
        dtype=tl.float32,
        is_pure=True,
        pack=8,
    )


@triton.jit
def store_rough_sums(sums, index, at):
    """Stores what `rough_channel_sums` gave, as bf16; at: [16, 16], that of a lane's first element is its place."""
    tl.inline_asm_elementwise(
        STORE_ROUGH, STORE_ROUGH_CONSTRAINTS, [sums, index, at.to(tl.int64)], dtype=tl.int32, is_pure=False, pack=8
    )


@triton.jit
def store_rough_parts(p, index, routes, more, xs, vs, SIGN: tl.constexpr, ROW: tl.constexpr, UNROLL: tl.constexpr):
    """Writes the rows of a complex map of all steps of a block: sums over d of x v, SIGN times that for the second part."""
    for j in tl.static_range(UNROLL):
        parts = rough_channel_sums(xs[j][0], vs[j], xs[j][1], SIGN * vs[j], routes, more)
        store_rough_sums(parts, index, p + j * ROW)


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


@triton.jit
def store_map_gradient(
    p, n, index, pair_at, xs, vs, j, SIGN: tl.constexpr, N: tl.constexpr, ROW: tl.constexpr, EVEN_N: tl.constexpr,
    STEPS: tl.constexpr, COMPLEX: tl.constexpr, BY_WARP: tl.constexpr,
):  # fmt: skip
    """Writes the rows of dB or dC of steps j .. j + STEPS - 1 at p, ROW apart: sums over d of x v, SIGN times that for the
    second part of a complex row.

    pair_at: what `channel_places` gives. xs: a block's pairs of tiles. vs: what broadcasts to them, as [BD, 1].
    """
    NARROW: tl.constexpr = p.dtype.element_ty == tl.bfloat16
    if BY_WARP and COMPLEX:
        for k in tl.static_range(STEPS):
            to = (p + pair_at + k * ROW).to(tl.int64)
            store_channel_sums(xs[j + k][0], vs[j + k], xs[j + k][1], SIGN * vs[j + k], index, to, NARROW)
    elif BY_WARP:
        store_channel_sums(xs[j][0], vs[j], xs[j + 1][0], vs[j + 1], index, (p + pair_at).to(tl.int64), NARROW)
    else:
        rows = ()
        for k in tl.static_range(STEPS):
            rows = rows + (tl.sum(xs[j + k][0] * vs[j + k], axis=0),)
            if COMPLEX:
                rows = rows + (SIGN * tl.sum(xs[j + k][1] * vs[j + k], axis=0),)
        # The parts of a complex row lie side by side.
        store_rows(p, n, rows, N, (N if COMPLEX else ROW), EVEN_N, (STEPS * 2 if COMPLEX else STEPS))
