"""Persistent decoding of many rows: a program takes ROWS of them through steps and layers, products on the tensor cores.

The equations are those of `persistent.py`; a matrix is read once for ROWS rows, [ROWS, K] times [K, M] with bf16 operands and
fp32 sums, pieces of K on their way to registers before they are needed. The scan goes row by row, UNROLL rows' states being
loaded before the first is used: their traffic, 8 E N bytes a row and layer, is what remains where rows are many. dt_proj is
multiplied in TF32. Sums and state are fp32. fp32 matrices are for the interpreter, which cannot multiply bf16.

Where there are fewer blocks of rows than multiprocessors, G programs share a block's inner channels as in `split.py`.

Legend: as in `pack.py`, E being a program's share; scratch holds r (ROWS, D), u, gate and dt (ROWS, E) and x_proj's output
(ROWS, X) of each program, g its gated output in the matrices' type, exchange the summands of x_proj (G, ROWS, X) and out_proj
(G, ROWS, D) of each block.
"""

# mypy: disable-error-code="no-untyped-def, assignment, var-annotated, attr-defined"
# Triton code: `if` on a constexpr must stand alone.
from __future__ import annotations

import os

import torch
import triton
import triton.language as tl
from torch import Tensor

from mamba_bio_audio.kernels.decode.draw import choose
from mamba_bio_audio.kernels.decode.grid import arrive, sum_parts, wait
from mamba_bio_audio.kernels.decode.lost import mark
from mamba_bio_audio.kernels.decode.pack import Network
from mamba_bio_audio.kernels.decode.persistent import State, begin, put
from mamba_bio_audio.kernels.launch import cdiv, on
from mamba_bio_audio.kernels.scan.parts import sigmoid, softplus

_LONGEST = tl.constexpr(64)  # columns of a matrix in one product
_FLAT = tl.constexpr(4096)  # summands added up at a time


if os.environ.get("TRITON_INTERPRET", "0") == "1":  # the interpreter has no assembler

    @triton.jit
    def put_operand(p, value):
        tl.store(p, value.to(p.dtype.element_ty))

else:

    @triton.jit
    def put_operand(p, value):
        """As `put`, rounded to bf16."""
        tl.inline_asm_elementwise(
            "{ .reg .b16 rounded; cvt.rn.bf16.f32 rounded, $2; st.global.b16 [$1], rounded; mov.b32 $0, 0; }",
            "=r,l,f",
            [p.to(tl.int64), value],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )


@triton.jit
def block_of(w_p, low, start, M: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr):
    """[BLOCK, M]: columns start to start + BLOCK of rows low to low + M of a matrix with K columns."""
    m = low + tl.arange(0, M)
    k = start + tl.arange(0, BLOCK)
    return tl.load(w_p + m[None, :] * K + k[:, None])


@triton.jit
def in_blocks(m_p, found, low, COUNT: tl.constexpr, CASE: tl.constexpr):
    """`found` and what follows of in_proj's blocks, COUNT or all: piece by piece of x and of z."""
    M: tl.constexpr = CASE.E_ROWS
    SIZE: tl.constexpr = CASE.E * CASE.D
    BLOCK: tl.constexpr = min(CASE.D & -CASE.D, CASE.PIECE // M)
    for i in tl.static_range(len(found), min(COUNT, 2 * (CASE.D // BLOCK))):
        w_p = m_p + (i % 2) * SIZE
        found = found + (block_of(w_p, low, (i // 2) * BLOCK, M, CASE.D, BLOCK),)  # noqa: RUF005
    return found


@triton.jit
def normed_products(m_p, r_p, blocks, low, eps, CASE: tl.constexpr):
    """[ROWS, E_ROWS] of x and of z: in_proj times the streams, which are read once for both and for the norm."""
    D: tl.constexpr = CASE.D
    M: tl.constexpr = CASE.E_ROWS
    ROWS: tl.constexpr = CASE.ROWS
    BLOCK: tl.constexpr = min(D & -D, CASE.PIECE // M)
    b = tl.arange(0, ROWS)[:, None]
    x = tl.zeros([ROWS, M], tl.float32)
    z = tl.zeros([ROWS, M], tl.float32)
    squares = tl.zeros([ROWS, BLOCK], tl.float32)
    for piece in tl.static_range(D // BLOCK):
        d = piece * BLOCK + tl.arange(0, BLOCK)
        r = tl.load(r_p + b * D + d[None, :])
        squares += r * r
        r = r.to(m_p.dtype.element_ty)
        blocks = in_blocks(m_p, blocks, low, 2 * piece + 1 + CASE.IN_AHEAD, CASE)
        x = tl.dot(r, blocks[2 * piece], x, input_precision="ieee")
        blocks = in_blocks(m_p, blocks, low, 2 * piece + 2 + CASE.IN_AHEAD, CASE)
        z = tl.dot(r, blocks[2 * piece + 1], z, input_precision="ieee")
    scale = tl.rsqrt(tl.sum(squares, axis=1) / D + eps)[:, None]
    return x * scale, z * scale


@triton.jit
def products(w_p, x_p, first, low, M: tl.constexpr, K: tl.constexpr, CASE: tl.constexpr):
    """[ROWS, M]: vectors (ROWS, K) in memory times rows low to low + M of a matrix; `first` is its first block."""
    ROWS: tl.constexpr = CASE.ROWS
    BLOCK: tl.constexpr = min(K & -K, CASE.PIECE // M)
    b = tl.arange(0, ROWS)[:, None]
    sums = tl.zeros([ROWS, M], tl.float32)
    w = first
    for piece in tl.static_range(K // BLOCK):
        k = piece * BLOCK + tl.arange(0, BLOCK)
        x = tl.load(x_p + b * K + k[None, :])
        following = w
        if piece + 1 < K // BLOCK:
            following = block_of(w_p, low, (piece + 1) * BLOCK, M, K, BLOCK)
        sums = tl.dot(x.to(w_p.dtype.element_ty), w, sums, input_precision="ieee")
        w = following
    return sums


@triton.jit
def first_block(w_p, low, M: tl.constexpr, K: tl.constexpr, CASE: tl.constexpr):
    """The first block for `products`."""
    return block_of(w_p, low, 0, M, K, min(K & -K, CASE.PIECE // M))


@triton.jit
def norm_scales(r_p, eps, D: tl.constexpr, ROWS: tl.constexpr):
    """1 / sqrt(mean(r^2) + eps) of each row, [ROWS]."""
    BLOCK: tl.constexpr = min(D & -D, _LONGEST)
    b = tl.arange(0, ROWS)[:, None]
    squares = tl.zeros([ROWS, BLOCK], tl.float32)
    for piece in tl.static_range(D // BLOCK):
        d = piece * BLOCK + tl.arange(0, BLOCK)
        r = tl.load(r_p + b * D + d[None, :])
        squares += r * r
    return tl.rsqrt(tl.sum(squares, axis=1) / D + eps)


@triton.jit
def scan_rows(h_p, u_p, dt_p, gate_p, maps_p, g_p, A, skip, first, low, apart, CASE: tl.constexpr):
    """The scan's step of UNROLL rows from `first` on, for channels from `low` on; rows of states lie `apart`.

    Everything is loaded before the first row is computed: a load must not wait for the row before.
    """
    E: tl.constexpr = CASE.E
    N: tl.constexpr = CASE.N
    UNROLL: tl.constexpr = CASE.UNROLL
    n = tl.arange(0, N)
    e = low + tl.arange(0, CASE.E_ROWS)
    tile = e[:, None] * N + n[None, :]
    states = ()
    vectors = ()
    for i in tl.static_range(UNROLL):
        states = states + (tl.load(h_p + (first + i) * apart + tile),)  # noqa: RUF005
    for i in tl.static_range(UNROLL):
        at = (first + i) * E + e
        B_p = maps_p + (first + i) * CASE.X + CASE.P + n
        vectors = vectors + (tl.load(u_p + at), tl.load(dt_p + at), tl.load(gate_p + at))  # noqa: RUF005
        vectors = vectors + (tl.load(B_p), tl.load(B_p + N))  # noqa: RUF005
    for i in tl.static_range(UNROLL):
        u = vectors[5 * i]
        dt = vectors[5 * i + 1]
        B = vectors[5 * i + 3]
        C = vectors[5 * i + 4]
        h = tl.exp2(dt[:, None] * A) * states[i] + (dt * u)[:, None] * B[None, :]
        put_operand(g_p + (first + i) * E + e, (tl.sum(h * C[None, :], axis=1) + skip * u) * vectors[5 * i + 2])
        tl.store(h_p + (first + i) * apart + tile, h)


@triton.jit
def add_to_streams(r_p, parts_p, CASE: tl.constexpr):
    """Adds the summands of out_proj to the streams."""
    SIZE: tl.constexpr = CASE.ROWS * CASE.D
    BLOCK: tl.constexpr = min(SIZE & -SIZE, _FLAT)
    for piece in tl.static_range(SIZE // BLOCK):
        i = piece * BLOCK + tl.arange(0, BLOCK)
        put(r_p + i, tl.load(r_p + i) + sum_parts(parts_p, i, SIZE, CASE.G))


@triton.jit
def layers_step(
    m_p, v_p, h_p, ring_p, scratch_p, g_p, parts_p, counter_p, g, layer, layers, target, t, eps, CASE: tl.constexpr
):  # fmt: skip
    """One layer's step of ROWS rows.

    The streams r in scratch are read, and replaced where one program has a row; else the next reader adds up the summands.
    """
    D: tl.constexpr = CASE.D
    E: tl.constexpr = CASE.E
    N: tl.constexpr = CASE.N
    W: tl.constexpr = CASE.W
    P: tl.constexpr = CASE.P
    X: tl.constexpr = CASE.X
    G: tl.constexpr = CASE.G
    ROWS: tl.constexpr = CASE.ROWS
    BE: tl.constexpr = CASE.E_ROWS
    BD: tl.constexpr = CASE.D_ROWS
    x_proj_p = m_p + 2 * E * D
    out_proj_p = x_proj_p + X * E
    r_p = scratch_p
    u_p = r_p + ROWS * D
    gate_p = u_p + ROWS * E
    dt_p = gate_p + ROWS * E
    maps_p = dt_p + ROWS * E
    out_parts_p = parts_p + G * ROWS * X
    dt_proj_p = v_p + E * N
    taps_p = dt_proj_p + E * P
    bias_p = taps_p + W * E
    dt_bias_p = bias_p + E
    skip_p = dt_bias_p + E
    b = tl.arange(0, ROWS)[:, None]
    n = tl.arange(0, N)
    apart = layers.to(tl.int64) * (E * G * N)

    # The convolution without its newest input goes through u's place: a trip through shared memory instead of six.
    for part in tl.static_range(E // BE):
        e = part * BE + tl.arange(0, BE)
        ring_row = ring_p + b.to(tl.int64) * (layers * (W * E * G)) + e[None, :]
        u = tl.zeros([ROWS, BE], tl.float32) + tl.load(bias_p + e)[None, :]
        for age in tl.static_range(1, W):
            u += tl.load(taps_p + (W - 1 - age) * E + e)[None, :] * tl.load(ring_row + ((t + W - age) % W) * (E * G))
        put(u_p + b * E + e[None, :], u)
    maps = tl.zeros([ROWS, X], tl.float32)
    for part in tl.static_range(E // BE):
        e = part * BE + tl.arange(0, BE)
        at = b * E + e[None, :]
        blocks = in_blocks(m_p, (), part * BE, CASE.IN_AHEAD, CASE)
        newest = tl.load(taps_p + (W - 1) * E + e)[None, :]
        if part == 0:
            if G > 1:  # noqa: SIM102
                if layer > 0:
                    wait(counter_p, target)
                    add_to_streams(r_p, out_parts_p, CASE)
            tl.debug_barrier()
        x, z = normed_products(m_p, r_p, blocks, part * BE, eps, CASE)
        w = block_of(x_proj_p, 0, part * BE, X, E, BE)
        u = tl.load(u_p + at) + newest * x
        u = u * sigmoid(u)
        maps = tl.dot(u.to(w.dtype), w, maps, input_precision="ieee")
        put(u_p + at, u)
        put(gate_p + at, z * sigmoid(z))
        put(ring_p + b.to(tl.int64) * (layers * (W * E * G)) + e[None, :] + (t % W) * (E * G), x)

    at_maps = b * X + tl.arange(0, X)[None, :]
    if G > 1:
        put(parts_p + g * (ROWS * X) + at_maps, maps)
        arrive(counter_p)
    else:
        put(maps_p + at_maps, maps)
    block = first_block(out_proj_p, 0, BD, E, CASE)
    p = b * X + tl.arange(0, P)[None, :]
    if G > 1:
        wait(counter_p, target + G)
        i = tl.arange(0, ROWS * X)
        put(maps_p + i, sum_parts(parts_p, i, ROWS * X, G))
    tl.debug_barrier()
    delta = tl.load(maps_p + p)
    for part in tl.static_range(E // BE):
        e = part * BE + tl.arange(0, BE)
        w = tl.load(dt_proj_p + e[None, :] * P + tl.arange(0, P)[:, None])
        dt = tl.dot(delta, w, input_precision="tf32") + tl.load(dt_bias_p + e)[None, :]
        put(dt_p + b * E + e[None, :], softplus(dt, True))

    tl.debug_barrier()
    for part in tl.range(E // BE, num_stages=1):
        e = part * BE + tl.arange(0, BE)
        A = tl.load(v_p + e[:, None] * N + n[None, :])
        skip = tl.load(skip_p + e)
        for rows in tl.range(ROWS // CASE.UNROLL, num_stages=1):
            scan_rows(h_p, u_p, dt_p, gate_p, maps_p, g_p, A, skip, rows * CASE.UNROLL, part * BE, apart, CASE)

    tl.debug_barrier()
    for part in tl.static_range(D // BD):
        d = part * BD + tl.arange(0, BD)
        at = b * D + d[None, :]
        if part > 0:
            block = first_block(out_proj_p, part * BD, BD, E, CASE)
        out = products(out_proj_p, g_p, block, part * BD, BD, E, CASE)
        if G > 1:
            put(out_parts_p + g * (ROWS * D) + at, out)
        else:
            put(r_p + at, tl.load(r_p + at) + out)
    if G > 1:
        arrive(counter_p)


@triton.jit(do_not_specialize=["steps", "start", "layers", "rows", "k", "eps"])
def decode_together_kernel(
    matrices_p, vectors_p, embedding_p, head_p, allowed_p, h_p, ring_p, scratch_p, g_p, exchange_p, counters_p, last_p, draws_p,
    settings_p, symbols_p, scores_p, logits_p, steps, start, layers, rows, k, eps, CASE: tl.constexpr,
    WRITE_LOGITS: tl.constexpr,
):  # fmt: skip
    """As `decode_kernel`; h, the ring and the last symbols have a multiple of ROWS rows, of which `rows` are wanted."""
    D: tl.constexpr = CASE.D
    E: tl.constexpr = CASE.E
    G: tl.constexpr = CASE.G
    ROWS: tl.constexpr = CASE.ROWS
    BLOCK: tl.constexpr = min(D & -D, 2 * _LONGEST)
    program = tl.program_id(0).to(tl.int64)
    block = program // G
    g = program % G
    matrices_p += g * CASE.matrices
    vectors_p += g * CASE.vectors
    h_p += block * ROWS * layers * (E * G * CASE.N) + g * (E * CASE.N)
    ring_p += block * ROWS * layers * (E * G * CASE.W) + g * E
    scratch_p += program * ROWS * (D + 3 * E + CASE.X)
    g_p += program * ROWS * E
    parts_p = exchange_p + block * (G * ROWS * (CASE.X + D))
    counter_p = counters_p + block
    b = tl.arange(0, ROWS)
    row = block * ROWS + b
    wanted = (row < rows) & (g == 0)
    d = tl.arange(0, BLOCK)
    s = tl.arange(0, CASE.S)
    temperature = tl.load(settings_p)
    mass = tl.load(settings_p + 1)
    symbol = tl.load(last_p + row)
    target = 0
    for step in range(steps):
        t = (start + step) % CASE.W
        for piece in tl.static_range(D // BLOCK):
            at = piece * BLOCK + d
            r = tl.load(embedding_p + symbol[:, None] * D + at[None, :])
            tl.store(scratch_p + b[:, None] * D + at[None, :], r)
        for layer in range(layers):
            at_layer = layer * G
            layers_step(
                matrices_p + at_layer * CASE.matrices, vectors_p + at_layer * CASE.vectors, h_p + at_layer * (E * CASE.N),
                ring_p + at_layer * (E * CASE.W), scratch_p, g_p, parts_p, counter_p, g, layer, layers, target, t, eps,
                CASE,
            )  # fmt: skip
            target += 2 * G
        first = first_block(head_p, 0, CASE.S, D, CASE)
        if G > 1:
            wait(counter_p, target)
            add_to_streams(scratch_p, parts_p + G * ROWS * CASE.X, CASE)
        tl.debug_barrier()
        scale = norm_scales(scratch_p, eps, D, ROWS)[:, None]
        logits = products(head_p, scratch_p, first, 0, CASE.S, D, CASE) * scale
        at = step * rows + row
        if WRITE_LOGITS:
            tl.store(logits_p + at[:, None] * CASE.S + s[None, :], logits, mask=wanted[:, None])
        draw = tl.load(draws_p + at, mask=row < rows, other=0.0)
        index, score = choose(logits, draw, temperature, k, mass, CASE)
        symbol = tl.load(allowed_p + index)
        tl.store(symbols_p + at, symbol, mask=wanted)
        tl.store(scores_p + at, score, mask=wanted)
        # All have read the streams before the next step replaces them.
        tl.debug_barrier()
    tl.store(last_p + row, symbol, mask=(row >= 0) & (g == 0))


def decode_together(
    network: Network,
    state: State,
    draws: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    want_logits: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None, State]:
    """As `persistent.decode`, for networks packed with `tiled=False`; rows of `state` must be a multiple of ROWS.

    Rows beyond those of `draws` are computed and not returned. Where several programs share rows, blocks of rows times
    programs must not be more than the GPU has multiprocessors; log-probabilities are +inf where they did not meet
    (`lost.confirm`).
    """
    (steps, rows), device = draws.shape, draws.device
    case, settings, symbols, scores, logits = begin(network, draws, temperature, top_k, top_p, want_logits)
    blocks = cdiv(rows, case.ROWS)
    scratch = torch.empty(blocks * case.G, case.ROWS * (case.D + 3 * case.E + case.X), device=device)
    gated = torch.empty(blocks * case.G, case.ROWS * case.E, dtype=network.matrices.dtype, device=device)
    exchange = torch.empty(blocks if case.G > 1 else 0, case.G * case.ROWS * (case.X + case.D), device=device)
    counters = torch.zeros(blocks, dtype=torch.int32, device=device)
    with on(device):
        decode_together_kernel[(blocks * case.G,)](
            network.matrices, network.vectors, network.embedding, network.head, network.allowed, state.h, state.ring, scratch,
            gated, exchange, counters, state.last, draws.contiguous(), settings, symbols, scores, logits, steps,
            state.position % case.W, network.layers, rows, top_k or 0, network.eps, CASE=case, WRITE_LOGITS=want_logits,
            num_warps=network.warps, num_stages=1, maxnreg=network.registers, launch_cooperative_grid=case.G > 1,
        )  # fmt: skip
    if case.G > 1:
        mark(scores, (counters != 2 * case.G * network.layers * steps).any())
    moved = state._replace(position=state.position + steps)
    return symbols, scores, logits[..., : case.symbols] if want_logits else None, moved
