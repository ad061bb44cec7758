"""Persistent decoding of few rows of wide networks: G programs share a row's inner channels, two grid barriers a layer.

The equations are those of `persistent.py`. Every program holds the stream r whole and E channels of the rest, so that in_proj,
convolution, dt_proj and scan are its own; x_proj and out_proj give a summand each, which all programs exchange through global
memory and add up in the same order. The head and the draw are computed by every program alike. All of a layer's weights are on
the way to registers while a program waits for the others.

A summand is stored again two barriers after it was last read. Legend: as in `pack.py`, E being a program's share; exchange
holds x_proj's summands (G, X) and out_proj's (G, D) of each row.
"""

# mypy: disable-error-code="no-untyped-def, assignment, var-annotated, attr-defined"
# Triton code: `if` on a constexpr must stand alone.
from __future__ import annotations

from math import gcd

import torch
import triton
import triton.language as tl
from torch import Tensor

from mamba_bio_audio.kernels.decode.draw import choose
from mamba_bio_audio.kernels.decode.grid import arrive, sum_parts, wait
from mamba_bio_audio.kernels.decode.lost import mark
from mamba_bio_audio.kernels.decode.pack import Network
from mamba_bio_audio.kernels.decode.persistent import (
    State,
    begin,
    norm_scale,
    normed_products,
    product,
    put,
    tile,
    tiles,
)
from mamba_bio_audio.kernels.launch import on
from mamba_bio_audio.kernels.scan.parts import sigmoid, softplus


@triton.jit
def before_maps(m_p, v_p, ring_p, scratch_p, maps_parts_p, ahead, ahead_z, ahead_x, t, eps, CASE: tl.constexpr):
    """From the stream in scratch to this program's summand of x_proj; `ahead` are all tiles of in_proj and x_proj."""
    D: tl.constexpr = CASE.D
    E: tl.constexpr = CASE.E
    W: tl.constexpr = CASE.W
    X: tl.constexpr = CASE.X
    ALL: tl.constexpr = CASE.E * CASE.G
    u_p = scratch_p + D
    gate_p = u_p + E
    taps_p = v_p + E * (CASE.N + CASE.P)
    e = tl.arange(0, E)
    u = tl.load(taps_p + W * E + e)
    for age in tl.static_range(1, W):
        u += tl.load(taps_p + (W - 1 - age) * E + e) * tl.load(ring_p + ((t + W - age) % W) * ALL + e)
    newest = tl.load(taps_p + (W - 1) * E + e)
    x, z = normed_products(m_p, scratch_p, 0, ahead, ahead_z, eps, E, D, E, CASE.IN_COLUMNS, CASE.HALVES)
    u += newest * x
    put(u_p + e, u * sigmoid(u))
    put(gate_p + e, z * sigmoid(z))
    put(ring_p + (t % W) * ALL + e, x)
    tl.debug_barrier()
    maps = product(m_p + 2 * E * D // CASE.HALVES, u_p, 0, ahead_x, X, E, CASE.X_COLUMNS, CASE.HALVES)
    put(maps_parts_p + tl.arange(0, X), maps)


@triton.jit
def scan_loads(v_p, h_p, CASE: tl.constexpr):
    """What the scan needs of its channels: dt_proj, A, h, delta's bias and D."""
    E: tl.constexpr = CASE.E
    N: tl.constexpr = CASE.N
    P: tl.constexpr = CASE.P
    dt_proj_p = v_p + E * N
    dt_bias_p = dt_proj_p + E * (P + CASE.W + 1)
    e = tl.arange(0, E)
    at = e[:, None] * N + tl.arange(0, N)[None, :]
    dt_rows = tl.load(dt_proj_p + e[:, None] * P + tl.arange(0, P)[None, :])
    return dt_rows, tl.load(v_p + at), tl.load(h_p + at), tl.load(dt_bias_p + e), tl.load(dt_bias_p + E + e)


@triton.jit
def out_tiles(out_proj_p, CASE: tl.constexpr):
    """The first OUT_AHEAD tiles of out_proj, part by part."""
    CHUNKS: tl.constexpr = CASE.E // (CASE.HALVES * CASE.OUT_COLUMNS)
    found = ()
    for i in tl.static_range(min(CASE.OUT_AHEAD, CASE.D // CASE.D_ROWS * CHUNKS)):
        words = tile(out_proj_p, i // CHUNKS, i % CHUNKS, CASE.D_ROWS, CASE.E, CASE.OUT_COLUMNS, CASE.HALVES)
        found = found + (words,)  # noqa: RUF005
    return found


@triton.jit
def after_maps(out_proj_p, h_p, scratch_p, maps_parts_p, out_part_p, loads, ahead, CASE: tl.constexpr):
    """From the summands of x_proj to this program's summand of out_proj."""
    D: tl.constexpr = CASE.D
    E: tl.constexpr = CASE.E
    N: tl.constexpr = CASE.N
    P: tl.constexpr = CASE.P
    X: tl.constexpr = CASE.X
    u_p = scratch_p + D
    gate_p = u_p + E
    g_p = gate_p + E
    maps_p = g_p + E
    n = tl.arange(0, N)
    e = tl.arange(0, E)
    x = tl.arange(0, X)
    put(maps_p + x, sum_parts(maps_parts_p, x, X, CASE.G))
    tl.debug_barrier()
    delta = tl.load(maps_p + tl.arange(0, P))
    B = tl.load(maps_p + P + n)
    C = tl.load(maps_p + P + N + n)
    u = tl.load(u_p + e)
    gate = tl.load(gate_p + e)
    dt_rows, A, h, dt_bias, skip = loads
    dt = softplus(tl.sum(dt_rows * delta[None, :], axis=1) + dt_bias, True)
    h = tl.exp2(dt[:, None] * A) * h + (dt * u)[:, None] * B[None, :]
    put(g_p + e, (tl.sum(h * C[None, :], axis=1) + skip * u) * gate)
    tl.store(h_p + e[:, None] * N + n[None, :], h)
    tl.debug_barrier()
    CHUNKS: tl.constexpr = E // (CASE.HALVES * CASE.OUT_COLUMNS)
    for part in tl.static_range(D // CASE.D_ROWS):
        own = ()
        for chunk in tl.static_range(CHUNKS):
            if part * CHUNKS + chunk < len(ahead):
                own = own + (ahead[part * CHUNKS + chunk],)  # noqa: RUF005
        out = product(out_proj_p, g_p, part, own, CASE.D_ROWS, E, CASE.OUT_COLUMNS, CASE.HALVES)
        put(out_part_p + part * CASE.D_ROWS + tl.arange(0, CASE.D_ROWS), out)


@triton.jit
def add_to_stream(scratch_p, out_parts_p, BLOCK: tl.constexpr, CASE: tl.constexpr):
    """Adds the summands of out_proj to the stream in scratch."""
    for part in tl.static_range(CASE.D // BLOCK):
        d = part * BLOCK + tl.arange(0, BLOCK)
        put(scratch_p + d, tl.load(scratch_p + d) + sum_parts(out_parts_p, d, CASE.D, CASE.G))


@triton.jit
def embed(scratch_p, embedding_p, symbol, BLOCK: tl.constexpr, CASE: tl.constexpr):
    """The stream of a step's beginning."""
    for part in tl.static_range(CASE.D // BLOCK):
        d = part * BLOCK + tl.arange(0, BLOCK)
        put(scratch_p + d, tl.load(embedding_p + symbol * CASE.D + d))


@triton.jit
def head_logits(head_p, scratch_p, ahead, eps, CASE: tl.constexpr):
    """[S] from the stream in scratch."""
    scale = norm_scale(scratch_p, eps, CASE.D, CASE.IN_COLUMNS)
    return product(head_p, scratch_p, 0, ahead, CASE.S, CASE.D, CASE.HEAD_COLUMNS, CASE.HALVES) * scale


@triton.jit(do_not_specialize=["steps", "start", "layers", "rows", "k", "eps"])
def decode_split_kernel(
    matrices_p, vectors_p, embedding_p, head_p, allowed_p, h_p, ring_p, scratch_p, exchange_p, counters_p, last_p, draws_p,
    settings_p, symbols_p, scores_p, logits_p, steps, start, layers, rows, k, eps, BLOCK: tl.constexpr, CASE: tl.constexpr,
    WRITE_LOGITS: tl.constexpr,
):  # fmt: skip
    """As `decode_kernel`, G programs a row; BLOCK elements of the stream are added up at a time."""
    D: tl.constexpr = CASE.D
    E: tl.constexpr = CASE.E
    X: tl.constexpr = CASE.X
    G: tl.constexpr = CASE.G
    HALVES: tl.constexpr = CASE.HALVES
    program = tl.program_id(0)
    row = (program // G).to(tl.int64)
    g = program % G
    matrices_p += g * CASE.matrices
    vectors_p += g * CASE.vectors
    h_p += row * layers * (E * G * CASE.N) + g * (E * CASE.N)
    ring_p += row * layers * (E * G * CASE.W) + g * E
    scratch_p += program * CASE.scratch
    maps_parts_p = exchange_p + row * (G * (X + D))
    out_parts_p = maps_parts_p + G * X
    counter_p = counters_p + row
    temperature = tl.load(settings_p)
    mass = tl.load(settings_p + 1)
    symbol = tl.load(last_p + row)
    target = 0
    for step in range(steps):
        t = (start + step) % CASE.W
        embed(scratch_p, embedding_p, symbol, BLOCK, CASE)
        for layer in range(layers):
            m_p = matrices_p + layer * (G * CASE.matrices)
            v_p = vectors_p + layer * (G * CASE.vectors)
            x_proj_p = m_p + 2 * E * D // HALVES
            out_proj_p = x_proj_p + X * E // HALVES
            ahead = tiles(m_p, 0, E, D, CASE.IN_COLUMNS, HALVES, CASE.IN_AHEAD)
            ahead_z = tiles(m_p + E * D // HALVES, 0, E, D, CASE.IN_COLUMNS, HALVES, CASE.IN_AHEAD)
            ahead_x = tiles(x_proj_p, 0, X, E, CASE.X_COLUMNS, HALVES, CASE.X_AHEAD)
            if layer > 0:
                wait(counter_p, target)
                add_to_stream(scratch_p, out_parts_p, BLOCK, CASE)
            tl.debug_barrier()
            before_maps(
                m_p, v_p, ring_p + layer * (E * G * CASE.W), scratch_p, maps_parts_p + g * X, ahead, ahead_z, ahead_x, t, eps,
                CASE,
            )  # fmt: skip
            arrive(counter_p)
            h_layer_p = h_p + layer * (E * G * CASE.N)
            loads = scan_loads(v_p, h_layer_p, CASE)
            ahead_out = out_tiles(out_proj_p, CASE)
            wait(counter_p, target + G)
            after_maps(out_proj_p, h_layer_p, scratch_p, maps_parts_p, out_parts_p + g * D, loads, ahead_out, CASE)
            arrive(counter_p)
            target += 2 * G
        ahead_head = tiles(head_p, 0, CASE.S, D, CASE.HEAD_COLUMNS, HALVES, CASE.X_AHEAD)
        draw = tl.load(draws_p + step * rows + row)
        wait(counter_p, target)
        add_to_stream(scratch_p, out_parts_p, BLOCK, CASE)
        tl.debug_barrier()
        logits = head_logits(head_p, scratch_p, ahead_head, eps, CASE)
        if WRITE_LOGITS:
            i = tl.arange(0, CASE.S)
            tl.store(logits_p + (step * rows + row) * CASE.S + i, logits, mask=(i >= 0) & (g == 0))
        index, score = choose(logits[None, :], draw, temperature, k, mass, CASE)
        symbol = tl.load(allowed_p + tl.sum(index, axis=0))
        tl.store(symbols_p + step * rows + row, symbol, mask=g == 0)
        tl.store(scores_p + step * rows + row, tl.sum(score, axis=0), mask=g == 0)
        # All have read the stream before the next step replaces it.
        tl.debug_barrier()
    tl.store(last_p + row, symbol, mask=g == 0)


def decode_split(
    network: Network,
    state: State,
    draws: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    want_logits: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None, State]:
    """As `persistent.decode`, for networks packed for several programs.

    Rows times programs must not be more than the GPU has multiprocessors. Log-probabilities are +inf where the programs did
    not meet (`lost.confirm`).

    Raises:
        ValueError: a program's share is wider than half its threads.
    """
    (steps, rows), device = draws.shape, draws.device
    case, settings, symbols, scores, logits = begin(network, draws, temperature, top_k, top_p, want_logits)
    if case.E_ROWS != case.E:
        raise ValueError(f"a program's share of {case.E} channels is too wide; let more programs share a row")
    scratch = torch.empty(rows * case.G, case.scratch, device=device)
    exchange = torch.empty(rows, case.G * (case.X + case.D), device=device)
    counters = torch.zeros(rows, dtype=torch.int32, device=device)
    with on(device):
        decode_split_kernel[(rows * case.G,)](
            network.matrices, network.vectors, network.embedding, network.head, network.allowed, state.h, state.ring, scratch,
            exchange, counters, state.last, draws.contiguous(), settings, symbols, scores, logits, steps,
            state.position % case.W, network.layers, rows, top_k or 0, network.eps, BLOCK=gcd(case.D, 32 * network.warps),
            CASE=case, WRITE_LOGITS=want_logits, num_warps=network.warps, launch_cooperative_grid=True,
        )  # fmt: skip
    mark(scores, (counters != 2 * case.G * network.layers * steps).any())
    moved = state._replace(position=state.position + steps)
    return symbols, scores, logits[..., : case.symbols] if want_logits else None, moved
