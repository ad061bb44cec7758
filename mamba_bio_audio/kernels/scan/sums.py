"""Sums of 16 x 16 tiles in one warp: over the states on the tensor cores, over the channels by a halving exchange.

Triton's own sums cost two to three shuffles per value; here one matrix instruction of 16 x 8 x 8 adds 8 states of 16
channels, and an exchange in which every lane gives away half of its values adds 4 values of 8 lanes in 4 shuffles
instead of 12. Written as inline PTX, which works on the registers of a lane: the tile [16 channels, 16 states] must lie
so that lane 4 g + t holds channels g and g + 8, states 4 t to 4 t + 3, which is how Triton lays out what it loads and
stores 4 states at a time. All functions compare the tile of indices that they are given with the lane and write NaN
where the layout is another one (`store_state_sums` for half of the channels).

What is cut to 11 bits loses 2^-11.5 of itself on average (its leading bits being spread as those of products are); where
sums are added up over time that would show, so they are scaled by what makes up for it.

PTX ISA 9.7.14, mma.sync m16n8k8 with .tf32: the operand holds a's rows in lanes / 4, what is summed in lanes % 4.
"""

# Triton code, not Python: tuples grow in unrolled loops.
# mypy: ignore-errors
# ruff: noqa: RUF005

import triton
import triton.language as tl


def _operands(*names):
    """The 8 registers of each tile that goes in, behind the 8 of the one that comes out."""
    return {name: [f"${8 * i + j}" for j in range(8)] for i, name in enumerate(names, 1)}


def _product(out, a, b):
    """PTX: out[0] (row g) and out[2] (row g + 8) += sum over the 16 states of a * b; a has 8 registers, b 4."""
    lines = []
    for half in (0, 2):
        left = f"{{{a[half]}, {a[half + 4]}, {a[half + 1]}, {a[half + 5]}}}"
        total = f"{{{', '.join(out)}}}"
        lines.append(
            f"mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {total}, {left}, {{{b[half]}, {b[half + 1]}}}, {total};"
        )
    return lines


_LAYOUT = [
    "mov.u32 lane, %laneid;",
    "shl.b32 want, lane, 2;",  # 16 g + 4 t, the index of the first register
    "and.b32 t, lane, 3;",
]


def _check(index):
    """PTX: predicate `bad` where the first or the last of the 8 registers is not what the lane should hold."""
    return [
        f"setp.ne.s32 bad, {index[0]}, want;",
        "add.s32 want, want, 131;",
        f"setp.ne.or.s32 bad, {index[7]}, want, bad;",
    ]


def _states_asm(split):
    """PTX of `store_state_sums`; with `split` three products of halves instead of one."""
    at = _operands("h", "C", "g", "B", "w", "index", "at")
    lines = [
        "{",
        ".reg .pred bad, second, third;",
        ".reg .b32 lane, want, t, one;",
        ".reg .b32 low<8>, high<8>, v<4>, vlow<4>;",
        ".reg .f32 s<12>, difference, upper, lower;",
        *_LAYOUT,
        *_check(at["index"]),
        *(f"mov.f32 s{i}, 0f00000000;" for i in range(12)),
        "mov.b32 one, 0f3F800000;",
    ]

    def halves(source, high, low):
        """The 19 bits that the tensor cores read, and what is left."""
        return [
            f"mov.b32 {high}, {source};",
            f"and.b32 {high}, {high}, 0xffffe000;",
            f"mov.b32 upper, {high};",
            f"sub.f32 difference, {source}, upper;",
            f"mov.b32 {low}, difference;",
        ]

    for first_sum, tile, vector in ((0, "h", "C"), (4, "g", "B"), (8, "w", None)):
        out = [f"s{first_sum + i}" for i in range(4)]
        if split:
            for i in range(8):
                lines += halves(at[tile][i], f"high{i}", f"low{i}")
        else:
            lines += [f"mov.b32 high{i}, {at[tile][i]};" for i in range(8)]
        high, low = ([f"{name}{i}" for i in range(8)] for name in ("high", "low"))
        if vector is None:
            v, vlow = ["one"] * 4, None
        elif split:
            for i in range(4):
                lines += halves(at[vector][i], f"v{i}", f"vlow{i}")
            v, vlow = ([f"{name}{i}" for i in range(4)] for name in ("v", "vlow"))
        else:
            lines += [f"mov.b32 v{i}, {at[vector][i]};" for i in range(4)]
            v, vlow = [f"v{i}" for i in range(4)], None
        lines += _product(out, high, v)
        if split:
            lines += _product(out, low, v)
        if vlow is not None:
            lines += _product(out, high, vlow)
    lines += [
        # Lane t of 4 stores the t-th of the three sums, lane 3 the third once more.
        "setp.eq.u32 second, t, 1;",
        "setp.ge.u32 third, t, 2;",
    ]
    for i, name in ((0, "upper"), (2, "lower")):
        lines += [
            f"selp.f32 {name}, s{i}, s{4 + i}, second;",
            f"selp.f32 {name}, s{8 + i}, {name}, third;",
        ]
    lines += [
        "selp.f32 upper, 0f7FC00000, upper, bad;",
        f"st.shared.f32 [{at['at'][0]}], upper;",
        f"st.shared.f32 [{at['at'][0]}+32], lower;",
        *(f"mov.b32 ${i}, 0;" for i in range(8)),
        "}",
    ]
    return "\n".join(lines)


def _exchange(low, high, mask):
    """PTX: low becomes low or high of this lane plus the same of the lane whose bit differs; p{mask} is set where it is 1."""
    return [
        f"selp.f32 keep, {high}, {low}, p{mask};",
        f"selp.f32 give, {low}, {high}, p{mask};",
        f"shfl.sync.bfly.b32 come, give, {mask}, 31, 0xffffffff;",
        f"add.f32 {low}, keep, come;",
    ]


def _bits(*masks):
    """PTX: p{mask} for each bit of the lane's number."""
    return [line for m in masks for line in (f"and.b32 bit, lane, {m};", f"setp.ne.u32 p{m}, bit, 0;")]


def _products_asm(parts, gate, rough=False):
    """PTX of `store_product_sums` of real (1 part) or complex (2) products, with y or without, exact or rough."""
    names = [f"{name}{k}" for pair in ("gB", "wA", "hC")[: 3 if gate else 2] for k in range(parts) for name in pair]
    at = _operands(*names, "index", "at")
    sums = "gwh" if gate and not rough else "gw"
    lines = [
        "{",
        ".reg .pred bad, p2, p1;",
        ".reg .b32 lane, want, t, bit;",
        ".reg .f32 g<2>, w<2>, h<2>, keep, give, come, minus, s<8>;",
        ".reg .b32 x<8>, v<4>;",
        *_LAYOUT,
        *_check(at["index"]),
        *_bits(2, 1),
    ]
    for half in range(2):
        for k in range(parts):
            for i in range(4 * half, 4 * half + 4):
                for s, factor in zip(sums, "BAC", strict=False):
                    x, y = at[f"{s}{k}"][i], at[f"{factor}{k}"][i]
                    if s == "h" and k == 1:  # Re(C h)
                        lines.append(f"neg.f32 minus, {y};")
                        y = "minus"
                    first = k == 0 and i == 4 * half
                    lines.append(
                        f"mul.f32 {s}{half}, {x}, {y};" if first else f"fma.rn.f32 {s}{half}, {x}, {y}, {s}{half};"
                    )
    for s in sums:
        lines += _exchange(f"{s}0", f"{s}1", 2)
    lines += [*_exchange("g0", "w0", 1), "selp.f32 g0, 0f7FC00000, g0, bad;", f"st.shared.f32 [{at['at'][0]}], g0;"]
    if rough:
        lines += [f"mov.f32 s{i}, 0f00000000;" for i in range(8)]
        for k in range(parts):
            lines += [f"mov.b32 x{i}, {at[f'h{k}'][i]};" for i in range(8)]
            lines += [f"mov.b32 v{i}, {at[f'C{k}'][i]};" for i in range(4)]
            x, v = ([f"{name}{i}" for i in range(count)] for name, count in (("x", 8), ("v", 4)))
            lines += _product([f"s{4 * k + i}" for i in range(4)], x, v)
        lines += ["sub.f32 s0, s0, s4;", "sub.f32 s2, s2, s6;", "selp.f32 h0, s2, s0, p2;"]
    elif gate:
        lines += ["shfl.sync.bfly.b32 come, h0, 1, 31, 0xffffffff;", "add.f32 h0, h0, come;"]
    if gate:
        lines += [
            "selp.f32 h0, 0f7FC00000, h0, bad;",
            f"st.shared.f32 [{at['at'][1]}], h0;",
        ]
    return "\n".join([*lines, *(f"mov.b32 ${i}, 0;" for i in range(8)), "}"])


def _channels_asm(narrow):
    """PTX of `store_channel_sums`, to bf16 or fp32."""
    at = _operands("x0", "v0", "x1", "v1", "index", "at")
    lines = [
        "{",
        ".reg .pred bad, p16, p8, p4;",
        ".reg .b32 lane, want, t, bit;",
        ".reg .f32 a<4>, b<4>, keep, give, come;",
        ".reg .b16 narrow;",
        *_LAYOUT,
        *_check(at["index"]),
        *_bits(16, 8, 4),
    ]
    for s, x, v in (("a", at["x0"], at["v0"]), ("b", at["x1"], at["v1"])):
        lines += [f"mul.f32 {s}{i}, {x[i]}, {v[0]};" for i in range(4)]
        lines += [f"fma.rn.f32 {s}{i}, {x[i + 4]}, {v[4]}, {s}{i};" for i in range(4)]
    for s in "ab":
        lines += _exchange(f"{s}0", f"{s}2", 16) + _exchange(f"{s}1", f"{s}3", 16)
    for s in "ab":
        lines += _exchange(f"{s}0", f"{s}1", 8)
    store = [f"st.global.f32 [{at['at'][0]}], a0;"]
    if narrow:
        store = ["cvt.rn.bf16.f32 narrow, a0;", f"st.global.b16 [{at['at'][0]}], narrow;"]
    lines += [
        *_exchange("a0", "b0", 4),
        "selp.f32 a0, 0f7FC00000, a0, bad;",
        *store,
        *(f"mov.b32 ${i}, 0;" for i in range(8)),
        "}",
    ]
    return "\n".join(lines)


def _turned_product(out, a, b):
    """PTX: out += a b of 16 x 8 x 8, all in registers by name."""
    out, a, b = (f"{{{', '.join(x)}}}" for x in (out, a, b))
    return f"mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {out}, {a}, {b}, {out};"


def _rough_channels_asm():
    """PTX of `rough_channel_sums`.

    The products of a lane's two channels are added: c0 to c3 of lane 4 g + t, states 4 t to 4 t + 3. Matrices of zeros and
    ones turn them, so that rows m are states m % 4 * 4 + m // 4 and columns are g, and add up the columns, into even and
    odd columns.
    """
    at = _operands("x0", "v0", "x1", "v1", "routes", "more")
    lines = [
        "{",
        ".reg .pred high;",
        ".reg .b32 c<8>, d<8>, lane, bit;",
        ".reg .f32 p<8>, q<8>, f<4>;",
        *(f"mov.f32 {name}{i}, 0f00000000;" for name, count in (("q", 8), ("f", 4)) for i in range(count)),
    ]
    e, m = at["routes"], at["more"]
    for k in range(2):
        x, v = at[f"x{k}"], at[f"v{k}"]
        p, q, c, d = ([f"{name}{i}" for i in range(4 * k, 4 * k + 4)] for name in "pqcd")
        for i in range(4):
            lines += [f"mul.f32 {p[i]}, {x[i]}, {v[0]};", f"fma.rn.f32 {p[i]}, {x[i + 4]}, {v[4]}, {p[i]};"]
        lines += [f"mov.b32 {a}, {b};" for a, b in zip(c, p, strict=True)]
        lines += [
            _turned_product(q, [e[0], m[0], e[1], m[1]], c[:2]),
            _turned_product(q, [m[2], m[4], m[3], m[5]], c[2:]),
        ]
        lines += [f"mov.b32 {a}, {b};" for a, b in zip(d, q, strict=True)]
        lines.append(_turned_product([f"f{i}" for i in range(4)], d, e[2 + 2 * k : 4 + 2 * k]))
    lines += [
        "mov.u32 lane, %laneid;",
        "and.b32 bit, lane, 2;",
        "setp.ne.u32 high, bit, 0;",
        "add.f32 f0, f0, f2;",
        "add.f32 f1, f1, f3;",
        "selp.f32 $0, f1, f0, high;",
        *(f"mov.f32 ${i}, 0f00000000;" for i in range(1, 8)),
        "}",
    ]
    return "\n".join(lines)


def _store_rough_asm():
    """PTX of `store_rough_sums`."""
    at = _operands("sums", "index", "at")
    return "\n".join(
        [
            "{",
            ".reg .pred bad;",
            ".reg .b32 lane, want, t;",
            ".reg .f32 sum;",
            ".reg .b16 narrow;",
            *_LAYOUT,
            *_check(at["index"]),
            f"selp.f32 sum, 0f7FC00000, {at['sums'][0]}, bad;",
            "cvt.rn.bf16.f32 narrow, sum;",
            f"st.global.b16 [{at['at'][0]}], narrow;",
            *(f"mov.b32 ${i}, 0;" for i in range(8)),
            "}",
        ]
    )


def _constraints(*kinds):
    return ",".join(["=r"] * 8 + [kind for kind in kinds for _ in range(8)])


ONE_CUT = tl.constexpr(1 + 2**-11.47)
ONE_CUT_LN2 = tl.constexpr(0.6931471805599453 * (1 + 2**-11.47))
TWO_CUT = tl.constexpr(1 + 2 * 2**-11.47)
STATES = tl.constexpr(_states_asm(False))
STATES_SPLIT = tl.constexpr(_states_asm(True))
STATES_CONSTRAINTS = tl.constexpr(_constraints("f", "f", "f", "f", "f", "r", "r"))
PRODUCTS = tl.constexpr(_products_asm(1, False))
PRODUCTS_CONSTRAINTS = tl.constexpr(_constraints(*"ffff", "r", "r"))
PRODUCTS_GATE = tl.constexpr(_products_asm(1, True))
PRODUCTS_GATE_CONSTRAINTS = tl.constexpr(_constraints(*"ffffff", "r", "r"))
PRODUCTS_GATE_ROUGH = tl.constexpr(_products_asm(1, True, True))
PRODUCTS_PAIRS = tl.constexpr(_products_asm(2, False))
PRODUCTS_PAIRS_CONSTRAINTS = tl.constexpr(_constraints(*"ffffffff", "r", "r"))
PRODUCTS_PAIRS_GATE = tl.constexpr(_products_asm(2, True))
PRODUCTS_PAIRS_GATE_ROUGH = tl.constexpr(_products_asm(2, True, True))
PRODUCTS_PAIRS_GATE_CONSTRAINTS = tl.constexpr(_constraints(*"ffffffffffff", "r", "r"))
CHANNELS = tl.constexpr(_channels_asm(False))
CHANNELS_NARROW = tl.constexpr(_channels_asm(True))
ROUGH_CHANNELS = tl.constexpr(_rough_channels_asm())
ROUGH_CHANNELS_CONSTRAINTS = tl.constexpr(_constraints(*"ffff", "r", "r").replace("=r", "=f"))
STORE_ROUGH = tl.constexpr(_store_rough_asm())
STORE_ROUGH_CONSTRAINTS = tl.constexpr(_constraints("f", "r", "l"))
CHANNELS_CONSTRAINTS = tl.constexpr(_constraints("f", "f", "f", "f", "r", "l"))


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
