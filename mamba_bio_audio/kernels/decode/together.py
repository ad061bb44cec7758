"""Persistent decoding of many rows: a program takes ROWS of them through steps and layers, products on the tensor cores.

The equations are those of `persistent.py`; a matrix is read once for ROWS rows, [ROWS, K] times [K, M] with bf16 operands and
fp32 sums, pieces of K on their way to registers before they are needed. The scan goes row by row, UNROLL rows' states being
loaded before the first is used: their traffic, 8 E N bytes a row and layer, is what remains where rows are many. dt_proj is
multiplied in TF32. Sums and state are fp32. fp32 matrices are for the interpreter, which cannot multiply bf16.

Where there are fewer blocks of rows than multiprocessors, G programs share a block's inner channels as in `split.py`.

Legend: as in `pack.py`, E being a program's share; scratch holds r (ROWS, D), u, gate, dt and g (ROWS, E) and x_proj's output
(ROWS, X) of each program, exchange the summands of x_proj (G, ROWS, X) and out_proj (G, ROWS, D) of each block.
"""

# mypy: disable-error-code="no-untyped-def, assignment, var-annotated, attr-defined"
# Triton code: `if` on a constexpr must stand alone.
from __future__ import annotations

from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from mamba_bio_audio.kernels.decode.draw import choose
from mamba_bio_audio.kernels.decode.grid import arrive, check, sum_parts, wait
from mamba_bio_audio.kernels.decode.pack import Network
from mamba_bio_audio.kernels.decode.persistent import State, begin, put
from mamba_bio_audio.kernels.launch import cdiv, on
from mamba_bio_audio.kernels.scan.parts import prefetch, sigmoid, softplus

_L2 = 32 << 20  # bytes of states that L2 keeps
_LONGEST = tl.constexpr(64)  # columns of a matrix in one product
_FLAT = tl.constexpr(4096)  # summands added up at a time


@triton.jit
def block_of(w_p, low, piece, M: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr):
    """[BLOCK, M]: columns of a piece of rows low to low + M of a matrix with K columns."""
    m = low + tl.arange(0, M)
    k = piece * BLOCK + tl.arange(0, BLOCK)
    return tl.load(w_p + m[None, :] * K + k[:, None])


@triton.jit
def blocks_of(w_p, low, M: tl.constexpr, K: tl.constexpr, AHEAD: tl.constexpr):
    """The first pieces of K, AHEAD of them or all."""
    BLOCK: tl.constexpr = min(K & -K, _LONGEST)
    found = ()
    for piece in tl.static_range(min(AHEAD if K // BLOCK <= 4 else 1, K // BLOCK)):
        found = found + (block_of(w_p, low, piece, M, K, BLOCK),)  # noqa: RUF005
    return found


@triton.jit
def piece_of(x_p, piece, K: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr):
    """[ROWS, BLOCK] of vectors (ROWS, K) in scratch."""
    k = piece * BLOCK + tl.arange(0, BLOCK)
    return tl.load(x_p + tl.arange(0, ROWS)[:, None] * K + k[None, :])


@triton.jit
def products(w_p, x_p, ahead, low, M: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr):
    """[ROWS, M]: vectors (ROWS, K) in scratch times rows low to low + M of a matrix; `ahead` are its first pieces."""
    BLOCK: tl.constexpr = min(K & -K, _LONGEST)
    PIECES: tl.constexpr = K // BLOCK
    sums = tl.zeros([ROWS, M], tl.float32)
    if PIECES <= 4:
        pieces = ahead
        for piece in tl.static_range(PIECES):
            if len(pieces) < PIECES:
                pieces = pieces + (block_of(w_p, low, len(pieces), M, K, BLOCK),)  # noqa: RUF005
            x = piece_of(x_p, piece, K, BLOCK, ROWS)
            sums = tl.dot(x.to(w_p.dtype.element_ty), pieces[piece], sums, input_precision="ieee")
    else:
        if len(ahead) > 0:
            w = ahead[0]
        else:
            w = block_of(w_p, low, 0, M, K, BLOCK)
        for piece in tl.range(0, PIECES - 1, num_stages=1):
            following = block_of(w_p, low, piece + 1, M, K, BLOCK)
            x = piece_of(x_p, piece, K, BLOCK, ROWS)
            sums = tl.dot(x.to(w_p.dtype.element_ty), w, sums, input_precision="ieee")
            w = following
        x = piece_of(x_p, PIECES - 1, K, BLOCK, ROWS)
        sums = tl.dot(x.to(w_p.dtype.element_ty), w, sums, input_precision="ieee")
    return sums


@triton.jit
def norm_scales(r_p, eps, D: tl.constexpr, ROWS: tl.constexpr):
    """1 / sqrt(mean(r^2) + eps) of each row, [ROWS]."""
    BLOCK: tl.constexpr = min(D & -D, _LONGEST)
    at = tl.arange(0, ROWS)[:, None] * D + tl.arange(0, BLOCK)[None, :]
    squares = tl.zeros([ROWS, BLOCK], tl.float32)
    for piece in tl.static_range(D // BLOCK):
        r = tl.load(r_p + piece * BLOCK + at)
        squares += r * r
    return tl.rsqrt(tl.sum(squares, axis=1) / D + eps)


@triton.jit
def scan_rows(h_p, u_p, dt_p, gate_p, maps_p, g_p, A, skip, first, low, layers, CASE: tl.constexpr):
    """The scan's step of UNROLL rows from `first` on, for channels from `low` on; rows of states lie `layers` layers apart."""
    E: tl.constexpr = CASE.E
    N: tl.constexpr = CASE.N
    UNROLL: tl.constexpr = CASE.UNROLL
    n = tl.arange(0, N)
    e = low + tl.arange(0, CASE.E_ROWS)
    tile = e[:, None] * N + n[None, :]
    apart = layers.to(tl.int64) * (E * CASE.G * N)
    states = ()
    for i in tl.static_range(UNROLL):
        states = states + (tl.load(h_p + (first + i) * apart + tile),)  # noqa: RUF005
    for i in tl.static_range(UNROLL):
        row = first + i
        u = tl.load(u_p + row * E + e)
        dt = tl.load(dt_p + row * E + e)
        gate = tl.load(gate_p + row * E + e)
        B = tl.load(maps_p + row * CASE.X + CASE.P + n)
        C = tl.load(maps_p + row * CASE.X + CASE.P + N + n)
        h = tl.exp2(dt[:, None] * A) * states[i] + (dt * u)[:, None] * B[None, :]
        put(g_p + row * E + e, (tl.sum(h * C[None, :], axis=1) + skip * u) * gate)
        tl.store(h_p + row * apart + tile, h)


@triton.jit
def add_parts(to_p, parts_p, SIZE: tl.constexpr, ADD: tl.constexpr, G: tl.constexpr):
    """Stores the sum of G vectors (SIZE) of other programs to scratch, or adds it to what is there."""
    BLOCK: tl.constexpr = min(SIZE & -SIZE, _FLAT)
    for piece in tl.static_range(SIZE // BLOCK):
        i = piece * BLOCK + tl.arange(0, BLOCK)
        total = sum_parts(parts_p, i, SIZE, G)
        if ADD:
            total += tl.load(to_p + i)
        put(to_p + i, total)


@triton.jit
def layers_step(
    m_p, v_p, h_p, ring_p, scratch_p, parts_p, counter_p, g, layer, layers, target, t, eps, CASE: tl.constexpr
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
    z_proj_p = m_p + E * D
    x_proj_p = z_proj_p + E * D
    out_proj_p = x_proj_p + X * E
    r_p = scratch_p
    u_p = r_p + ROWS * D
    gate_p = u_p + ROWS * E
    dt_p = gate_p + ROWS * E
    g_p = dt_p + ROWS * E
    maps_p = g_p + ROWS * E
    out_parts_p = parts_p + G * ROWS * X
    dt_proj_p = v_p + E * N
    taps_p = dt_proj_p + E * P
    bias_p = taps_p + W * E
    dt_bias_p = bias_p + E
    skip_p = dt_bias_p + E
    b = tl.arange(0, ROWS)[:, None]
    n = tl.arange(0, N)
    p = tl.arange(0, P)

    if CASE.far:
        lines = tl.arange(0, BE * N // 32)
        for part in tl.static_range(E // BE):
            at_lines = part * (BE * N) + lines * 32
            prefetch(h_p + b.to(tl.int64) * (layers * (E * G * N)) + at_lines[None, :])
    for part in tl.static_range(E // BE):
        e = part * BE + tl.arange(0, BE)
        at = b * E + e[None, :]
        ring_row = ring_p + b.to(tl.int64) * (layers * (W * E * G)) + e[None, :]
        ahead_x = blocks_of(m_p, part * BE, BE, D, CASE.IN_AHEAD)
        ahead_z = blocks_of(z_proj_p, part * BE, BE, D, CASE.IN_AHEAD)
        u = tl.zeros([ROWS, BE], tl.float32) + tl.load(bias_p + e)[None, :]
        for age in tl.static_range(1, W):
            u += tl.load(taps_p + (W - 1 - age) * E + e)[None, :] * tl.load(ring_row + ((t + W - age) % W) * (E * G))
        newest = tl.load(taps_p + (W - 1) * E + e)[None, :]
        if part == 0:
            if G > 1:  # noqa: SIM102
                if layer > 0:
                    wait(counter_p, target)
                    add_parts(r_p, out_parts_p, ROWS * D, True, G)
            tl.debug_barrier()
            scale = norm_scales(r_p, eps, D, ROWS)[:, None]
        x = products(m_p, r_p, ahead_x, part * BE, BE, D, ROWS) * scale
        z = products(z_proj_p, r_p, ahead_z, part * BE, BE, D, ROWS) * scale
        u += newest * x
        tl.store(u_p + at, u * sigmoid(u))
        tl.store(gate_p + at, z * sigmoid(z))
        tl.store(ring_row + (t % W) * (E * G), x)

    ahead_maps = blocks_of(x_proj_p, 0, X, E, CASE.X_AHEAD)
    tl.debug_barrier()
    maps = products(x_proj_p, u_p, ahead_maps, 0, X, E, ROWS)
    at_maps = b * X + tl.arange(0, X)[None, :]
    if G > 1:
        tl.store(parts_p + g * (ROWS * X) + at_maps, maps)
        arrive(counter_p)
    else:
        tl.store(maps_p + at_maps, maps)
    ahead_out = blocks_of(out_proj_p, 0, BD, E, CASE.OUT_AHEAD)
    if G > 1:
        wait(counter_p, target + G)
        add_parts(maps_p, parts_p, ROWS * X, False, G)
    tl.debug_barrier()
    delta = tl.load(maps_p + b * X + p[None, :])
    for part in tl.static_range(E // BE):
        e = part * BE + tl.arange(0, BE)
        w = tl.load(dt_proj_p + e[None, :] * P + p[:, None])
        dt = tl.dot(delta, w, input_precision="tf32") + tl.load(dt_bias_p + e)[None, :]
        tl.store(dt_p + b * E + e[None, :], softplus(dt, True))

    tl.debug_barrier()
    for part in tl.range(E // BE, num_stages=1):
        e = part * BE + tl.arange(0, BE)
        A = tl.load(v_p + e[:, None] * N + n[None, :])
        skip = tl.load(skip_p + e)
        for block in tl.range(ROWS // CASE.UNROLL, num_stages=1):
            scan_rows(h_p, u_p, dt_p, gate_p, maps_p, g_p, A, skip, block * CASE.UNROLL, part * BE, layers, CASE)

    tl.debug_barrier()
    for part in tl.static_range(D // BD):
        d = part * BD + tl.arange(0, BD)
        at = b * D + d[None, :]
        if part > 0:
            ahead_out = ()
        out = products(out_proj_p, g_p, ahead_out, part * BD, BD, E, ROWS)
        if G > 1:
            tl.store(out_parts_p + g * (ROWS * D) + at, out)
        else:
            tl.store(r_p + at, tl.load(r_p + at) + out)
    if G > 1:
        arrive(counter_p)


@triton.jit(do_not_specialize=["steps", "start", "layers", "rows", "k", "eps"])
def decode_together_kernel(
    matrices_p, vectors_p, embedding_p, head_p, allowed_p, h_p, ring_p, scratch_p, exchange_p, counters_p, last_p, draws_p,
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
    scratch_p += program * ROWS * (D + 4 * E + CASE.X)
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
                ring_p + at_layer * (E * CASE.W), scratch_p, parts_p, counter_p, g, layer, layers, target, t, eps, CASE,
            )  # fmt: skip
            target += 2 * G
        ahead = blocks_of(head_p, 0, CASE.S, D, 2)
        if G > 1:
            wait(counter_p, target)
            add_parts(scratch_p, parts_p + G * ROWS * CASE.X, ROWS * D, True, G)
        tl.debug_barrier()
        scale = norm_scales(scratch_p, eps, D, ROWS)[:, None]
        logits = products(head_p, scratch_p, ahead, 0, CASE.S, D, ROWS) * scale
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
    programs must not be more than the GPU has multiprocessors, and the call returns when the launch has ended.

    Raises:
        RuntimeError: programs that share rows did not meet.
    """
    (steps, rows), device = draws.shape, draws.device
    case, settings, symbols, scores, logits = begin(network, draws, temperature, top_k, top_p, want_logits)
    case = replace(case, far=state.h.nbytes > _L2)
    blocks = cdiv(rows, case.ROWS)
    scratch = torch.empty(blocks * case.G, case.ROWS * (case.D + 4 * case.E + case.X), device=device)
    exchange = torch.empty(blocks if case.G > 1 else 0, case.G * case.ROWS * (case.X + case.D), device=device)
    counters = torch.zeros(blocks, dtype=torch.int32, device=device)
    with on(device):
        decode_together_kernel[(blocks * case.G,)](
            network.matrices, network.vectors, network.embedding, network.head, network.allowed, state.h, state.ring, scratch,
            exchange, counters, state.last, draws.contiguous(), settings, symbols, scores, logits, steps,
            state.position % case.W, network.layers, rows, top_k or 0, network.eps, CASE=case, WRITE_LOGITS=want_logits,
            num_warps=network.warps, num_stages=1, launch_cooperative_grid=case.G > 1,
        )  # fmt: skip
    if case.G > 1:
        check(counters, 2 * case.G * network.layers * steps)
    moved = state._replace(position=state.position + steps)
    return symbols, scores, logits[..., : case.symbols] if want_logits else None, moved
