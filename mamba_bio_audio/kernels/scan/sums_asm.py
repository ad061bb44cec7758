"""PTX of the sums of 16 x 16 tiles in one warp, and what its operands are (see `sums`).

PTX ISA 9.7.14, mma.sync m16n8k8 with .tf32: the operand holds a's rows in lanes / 4, what is summed in lanes % 4.
"""

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
