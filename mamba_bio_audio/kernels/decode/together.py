"""Persistent decoding of many rows: a program takes ROWS = 16 of them through steps and layers, products on the tensor cores.

The equations are those of `persistent.py`; a matrix is read once for 16 rows, [16, K] times [K, M] with bf16 operands and fp32
sums. The scan goes row by row, UNROLL rows' states being loaded before the first is used: their traffic, 8 E N bytes a row and
layer, is what remains where rows are many. dt_proj is multiplied in TF32. Sums and state are fp32. fp32 matrices are for the
interpreter, which cannot multiply bf16.

Legend: as in `pack.py`; scratch holds r (16, D), u, gate, dt and g (16, E) and x_proj's output (16, X) of each program.
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
from mamba_bio_audio.kernels.decode.pack import Network
from mamba_bio_audio.kernels.decode.persistent import State, put
from mamba_bio_audio.kernels.launch import cdiv, on
from mamba_bio_audio.kernels.scan.parts import prefetch, sigmoid, softplus

ROWS = tl.constexpr(16)
UNROLL = tl.constexpr(4)
_L2 = 32 << 20  # bytes of states that L2 keeps
_LONGEST = tl.constexpr(64)  # columns of a matrix in one product


@triton.jit
def products(w_p, x_p, low, M: tl.constexpr, K: tl.constexpr):
    """[ROWS, M]: vectors (ROWS, K) in scratch times rows low to low + M of a matrix with K columns."""
    BLOCK: tl.constexpr = min(K, _LONGEST)
    b, m, k = tl.arange(0, ROWS), low + tl.arange(0, M), tl.arange(0, BLOCK)
    sums = tl.zeros([ROWS, M], tl.float32)
    for start in tl.static_range(0, K, BLOCK):
        w = tl.load(w_p + m[None, :] * K + (start + k)[:, None])
        x = tl.load(x_p + b[:, None] * K + (start + k)[None, :])
        sums = tl.dot(x.to(w.dtype), w, sums, input_precision="ieee")
    return sums


@triton.jit
def norm_scales(r_p, eps, D: tl.constexpr):
    """1 / sqrt(mean(r^2) + eps) of each row, [ROWS]."""
    r = tl.load(r_p + tl.arange(0, ROWS)[:, None] * D + tl.arange(0, D)[None, :])
    return tl.rsqrt(tl.sum(r * r, axis=1) / D + eps)


@triton.jit
def scan_rows(h_p, u_p, dt_p, gate_p, maps_p, g_p, A, skip, first, low, layers, CASE: tl.constexpr):
    """The scan's step of UNROLL rows from `first` on, for channels from `low` on."""
    E: tl.constexpr = CASE.E
    N: tl.constexpr = CASE.N
    n = tl.arange(0, N)
    e = low + tl.arange(0, CASE.E_ROWS)
    tile = e[:, None] * N + n[None, :]
    states = ()
    for i in tl.static_range(UNROLL):
        states = states + (tl.load(h_p + (first + i) * (layers.to(tl.int64) * (E * N)) + tile),)  # noqa: RUF005
    for i in tl.static_range(UNROLL):
        row = first + i
        u = tl.load(u_p + row * E + e)
        dt = tl.load(dt_p + row * E + e)
        gate = tl.load(gate_p + row * E + e)
        B = tl.load(maps_p + row * CASE.X + CASE.P + n)
        C = tl.load(maps_p + row * CASE.X + CASE.P + N + n)
        h = tl.exp2(dt[:, None] * A) * states[i] + (dt * u)[:, None] * B[None, :]
        put(g_p + row * E + e, (tl.sum(h * C[None, :], axis=1) + skip * u) * gate)
        tl.store(h_p + row * (layers.to(tl.int64) * (E * N)) + tile, h)


@triton.jit
def layers_step(m_p, v_p, h_p, ring_p, scratch_p, layers, t, eps, CASE: tl.constexpr):
    """One layer's step of ROWS rows; the streams r in scratch are read and replaced. Rows of h and ring lie `layers` apart."""
    D: tl.constexpr = CASE.D
    E: tl.constexpr = CASE.E
    N: tl.constexpr = CASE.N
    W: tl.constexpr = CASE.W
    P: tl.constexpr = CASE.P
    X: tl.constexpr = CASE.X
    BE: tl.constexpr = CASE.E_ROWS
    BD: tl.constexpr = CASE.D_ROWS
    r_p = scratch_p
    u_p = r_p + ROWS * D
    gate_p = u_p + ROWS * E
    dt_p = gate_p + ROWS * E
    g_p = dt_p + ROWS * E
    maps_p = g_p + ROWS * E
    dt_proj_p = v_p + E * N
    taps_p = dt_proj_p + E * P
    bias_p = taps_p + W * E
    dt_bias_p = bias_p + E
    skip_p = dt_bias_p + E
    b = tl.arange(0, ROWS)[:, None]
    n = tl.arange(0, N)
    p = tl.arange(0, P)

    if CASE.far:
        lines = tl.arange(0, E * N // 32)
        prefetch(h_p + b.to(tl.int64) * (layers * E * N) + lines[None, :] * 32)
    tl.debug_barrier()
    scale = norm_scales(r_p, eps, D)[:, None]
    for low in range(0, E, BE):
        e = low + tl.arange(0, BE)
        at = b * E + e[None, :]
        ring_row = ring_p + b.to(tl.int64) * (layers * W * E) + e[None, :]
        z = products(m_p + E * D, r_p, low, BE, D) * scale
        tl.store(gate_p + at, z * sigmoid(z))
        x = products(m_p, r_p, low, BE, D) * scale
        u = tl.load(bias_p + e)[None, :] + tl.load(taps_p + (W - 1) * E + e)[None, :] * x
        for age in tl.static_range(1, W):
            u += tl.load(taps_p + (W - 1 - age) * E + e)[None, :] * tl.load(ring_row + ((t + W - age) % W) * E)
        tl.store(ring_row + (t % W) * E, x)
        tl.store(u_p + at, u * sigmoid(u))

    tl.debug_barrier()
    maps = products(m_p + 2 * E * D, u_p, 0, X, E)
    tl.store(maps_p + b * X + tl.arange(0, X)[None, :], maps)

    tl.debug_barrier()
    delta = tl.load(maps_p + b * X + p[None, :])
    for low in range(0, E, BE):
        e = low + tl.arange(0, BE)
        w = tl.load(dt_proj_p + e[None, :] * P + p[:, None])
        dt = tl.dot(delta, w, input_precision="tf32") + tl.load(dt_bias_p + e)[None, :]
        tl.store(dt_p + b * E + e[None, :], softplus(dt, True))

    tl.debug_barrier()
    for low in range(0, E, BE):
        e = low + tl.arange(0, BE)
        tile = e[:, None] * N + n[None, :]
        A = tl.load(v_p + tile)
        skip = tl.load(skip_p + e)
        for block in range(ROWS // UNROLL):
            scan_rows(h_p, u_p, dt_p, gate_p, maps_p, g_p, A, skip, block * UNROLL, low, layers, CASE)

    tl.debug_barrier()
    for low in tl.static_range(0, D, BD):
        at = b * D + (low + tl.arange(0, BD))[None, :]
        out = products(m_p + (2 * D + X) * E, g_p, low, BD, E)
        tl.store(r_p + at, tl.load(r_p + at) + out)


@triton.jit(do_not_specialize=["steps", "start", "layers", "rows", "k", "eps"])
def decode_together_kernel(
    matrices_p, vectors_p, embedding_p, head_p, allowed_p, h_p, ring_p, scratch_p, last_p, draws_p, settings_p, symbols_p,
    scores_p, logits_p, steps, start, layers, rows, k, eps, CASE: tl.constexpr, WRITE_LOGITS: tl.constexpr,
):  # fmt: skip
    """As `decode_kernel`; h, the ring and the last symbols have a multiple of ROWS rows, of which `rows` are wanted."""
    D: tl.constexpr = CASE.D
    E: tl.constexpr = CASE.E
    program = tl.program_id(0).to(tl.int64)
    h_p += program * ROWS * layers * (E * CASE.N)
    ring_p += program * ROWS * layers * (E * CASE.W)
    scratch_p += program * ROWS * (D + 4 * E + CASE.X)
    b = tl.arange(0, ROWS)
    row = program * ROWS + b
    wanted = row < rows
    d = tl.arange(0, D)
    s = tl.arange(0, CASE.S)
    temperature = tl.load(settings_p)
    mass = tl.load(settings_p + 1)
    symbol = tl.load(last_p + row)
    for step in range(steps):
        t = (start + step) % CASE.W
        tl.store(scratch_p + b[:, None] * D + d[None, :], tl.load(embedding_p + symbol[:, None] * D + d[None, :]))
        for layer in range(layers):
            layers_step(
                matrices_p + layer * CASE.matrices, vectors_p + layer * CASE.vectors, h_p + layer * (E * CASE.N),
                ring_p + layer * (E * CASE.W), scratch_p, layers, t, eps, CASE,
            )  # fmt: skip
        tl.debug_barrier()
        logits = products(head_p, scratch_p, 0, CASE.S, D) * norm_scales(scratch_p, eps, D)[:, None]
        at = step * rows + row
        if WRITE_LOGITS:
            tl.store(logits_p + at[:, None] * CASE.S + s[None, :], logits, mask=wanted[:, None])
        draw = tl.load(draws_p + at, mask=wanted, other=0.0)
        index, score = choose(logits, draw, temperature, k, mass, CASE)
        symbol = tl.load(allowed_p + index)
        tl.store(symbols_p + at, symbol, mask=wanted)
        tl.store(scores_p + at, score, mask=wanted)
        # All have read the streams before the next step replaces them.
        tl.debug_barrier()
    tl.store(last_p + row, symbol)


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
    """As `persistent.decode`, for networks packed with `tiled=False`; rows of `state` must be a multiple of 16.

    Rows beyond those of `draws` are computed and not returned.
    """
    (steps, rows), device = draws.shape, draws.device
    case = replace(
        network.case,
        greedy=temperature == 0,
        scaled=temperature not in (0, 1),
        top_k=top_k is not None and temperature != 0,
        top_p=top_p is not None and temperature != 0,
        far=state.h.nbytes > _L2,
    )
    programs = cdiv(rows, 16)
    symbols = torch.empty(steps, rows, dtype=torch.int32, device=device)
    scores = torch.empty(steps, rows, dtype=torch.float64, device=device)
    logits = torch.empty(steps if want_logits else 0, rows, case.S, device=device)
    settings = torch.tensor([temperature, top_p or 1.0], dtype=torch.float64, device=device)
    scratch = torch.empty(programs, 16 * (case.D + 4 * case.E + case.X), device=device)
    with on(device):
        decode_together_kernel[(programs,)](
            network.matrices, network.vectors, network.embedding, network.head, network.allowed, state.h, state.ring, scratch,
            state.last, draws.contiguous(), settings, symbols, scores, logits, steps, state.position % case.W, network.layers,
            rows, top_k or 0, network.eps, CASE=case, WRITE_LOGITS=want_logits, num_warps=network.warps,
        )  # fmt: skip
    moved = state._replace(position=state.position + steps)
    return symbols, scores, logits[..., : case.symbols] if want_logits else None, moved
