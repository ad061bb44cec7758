"""Many steps of a stack of Mamba layers in one launch: a program per row walks over steps and layers and draws symbols.

    r = embedding[symbol];    for each layer:
        x, z = in_proj(r) * s          s = rsqrt(mean(r^2) + eps), the norm's weight being part of in_proj
        u = silu(sum_a taps[a] x_(t-a) + conv_bias)
        delta, B, C = x_proj(u)        dt = softplus(dt_proj(delta) + dt_bias)
        h = exp(dt A) h + dt u B       g = (sum_n C h + D u) silu(z)
        r = r + out_proj(g)
    logits = head(r) * s;    the symbol as in `inference/generate.py`, in fp64, from one uniform number per step

Threads share vectors, not matrices: a matrix goes from L2 into registers tile by tile (`pack.py`), a product's row lies in four
lanes or more of one warp, and its sum is stored to scratch in global memory, which L1 holds, for all warps to read as the next
product's vector. So a layer has four barriers: before in_proj, x_proj, dt_proj and out_proj; the first tile of the matrix
behind each are loaded in front of it. A scratch vector is written again three barriers after it was last read. The state h and
the convolution's ring (position t in slot t mod W) stay in global memory: only the thread that writes an element of h reads it.

Sums and state are fp32. Letters as in `pack.py`; Gu and Dao 2023 (arXiv 2312.00752), sections 3.4 to 3.6.
"""

# mypy: disable-error-code="no-untyped-def, assignment, var-annotated, attr-defined"
# Triton code: `if` on a constexpr must stand alone.
from __future__ import annotations

import os
from dataclasses import replace
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from mamba_bio_audio.kernels.decode.draw import choose, settings_of
from mamba_bio_audio.kernels.decode.pack import Case, Network
from mamba_bio_audio.kernels.launch import on
from mamba_bio_audio.kernels.scan.parts import sigmoid, softplus

if os.environ.get("TRITON_INTERPRET", "0") == "1":  # the interpreter has no assembler

    @triton.jit
    def put(p, value):
        tl.store(p, value)

else:

    @triton.jit
    def put(p, value):
        """Stores fp32 numbers in the layout that they have; tl.store would take them through shared memory to another first."""
        tl.inline_asm_elementwise(
            "st.global.f32 [$1], $2; mov.b32 $0, 0;",
            "=r,l,f",
            [p.to(tl.int64), value],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )


@triton.jit
def tile(w_p, part, chunk, ROWS: tl.constexpr, K: tl.constexpr, COLUMNS: tl.constexpr, HALVES: tl.constexpr):
    """One tile [ROWS, COLUMNS] of words of a packed matrix with K columns."""
    at = (part * (K // (HALVES * COLUMNS)) + chunk) * (ROWS * COLUMNS)
    return tl.load(w_p + at + tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :])


@triton.jit
def add_tile(sums, words, x, x_above, HALVES: tl.constexpr):
    """Adds a tile of words times its piece of the vector, [COLUMNS] and, of bf16, as many above."""
    if HALVES == 1:
        return sums + words * x[None, :]
    else:
        sums += (words << 16).to(tl.float32, bitcast=True) * x[None, :]
        return sums + (words & -65536).to(tl.float32, bitcast=True) * x_above[None, :]


@triton.jit
def piece(x_p, chunk, COLUMNS: tl.constexpr, HALVES: tl.constexpr):
    """The vector's elements that a tile of words multiplies, in one or two parts."""
    at = x_p + chunk * (HALVES * COLUMNS) + tl.arange(0, COLUMNS)
    x = tl.load(at)
    if HALVES == 1:
        return x, x
    else:
        return x, tl.load(at + COLUMNS)


@triton.jit
def tiles(
    w_p, part, ROWS: tl.constexpr, K: tl.constexpr, COLUMNS: tl.constexpr, HALVES: tl.constexpr, AHEAD: tl.constexpr
):  # fmt: skip
    """The first tiles of a part, AHEAD of them or all."""
    found = ()
    for chunk in tl.static_range(min(AHEAD, K // (HALVES * COLUMNS))):
        found = found + (tile(w_p, part, chunk, ROWS, K, COLUMNS, HALVES),)  # noqa: RUF005
    return found


@triton.jit
def product(
    w_p, x_p, part, ahead, ROWS: tl.constexpr, K: tl.constexpr, COLUMNS: tl.constexpr, HALVES: tl.constexpr
):  # fmt: skip
    """ROWS rows of a packed matrix times a vector (K) in scratch, [ROWS] fp32; `ahead` are the part's first tiles."""
    sums = tl.zeros([ROWS, COLUMNS], tl.float32)
    for chunk in tl.static_range(K // (HALVES * COLUMNS)):
        x, above = piece(x_p, chunk, COLUMNS, HALVES)
        if chunk < len(ahead):
            words = ahead[chunk]
        else:
            words = tile(w_p, part, chunk, ROWS, K, COLUMNS, HALVES)
        sums = add_tile(sums, words, x, above, HALVES)
    return tl.sum(sums, axis=1)


@triton.jit
def norm_scale(r_p, eps, K: tl.constexpr, COLUMNS: tl.constexpr):
    """1 / sqrt(mean(r^2) + eps) of a vector (K) in scratch."""
    columns = tl.arange(0, COLUMNS)
    r = tl.load(r_p + columns)
    squares = r * r
    for chunk in tl.static_range(1, K // COLUMNS):
        r = tl.load(r_p + chunk * COLUMNS + columns)
        squares += r * r
    return tl.rsqrt(tl.sum(squares, axis=0) / K + eps)


@triton.jit
def normed_products(
    w_p, r_p, part, ahead, ahead_z, eps, ROWS: tl.constexpr, D: tl.constexpr, E: tl.constexpr, COLUMNS: tl.constexpr,
    HALVES: tl.constexpr,
):  # fmt: skip
    """Rows of x and of z, [ROWS] each: in_proj times the stream, which is read once for both and for the norm."""
    z_p = w_p + E * D // HALVES
    x, z = tl.zeros([ROWS, COLUMNS], tl.float32), tl.zeros([ROWS, COLUMNS], tl.float32)
    squares = tl.zeros([COLUMNS], tl.float32)
    for chunk in tl.static_range(D // (HALVES * COLUMNS)):
        r, above = piece(r_p, chunk, COLUMNS, HALVES)
        if chunk < len(ahead):
            words = ahead[chunk]
            words_z = ahead_z[chunk]
        else:
            words = tile(w_p, part, chunk, ROWS, D, COLUMNS, HALVES)
            words_z = tile(z_p, part, chunk, ROWS, D, COLUMNS, HALVES)
        x = add_tile(x, words, r, above, HALVES)
        z = add_tile(z, words_z, r, above, HALVES)
        squares += r * r
        if HALVES == 2:
            squares += above * above
    scale = tl.rsqrt(tl.sum(squares, axis=0) / D + eps)
    return tl.sum(x, axis=1) * scale, tl.sum(z, axis=1) * scale


@triton.jit
def convolved(taps_p, bias_p, ring_p, e, t, E: tl.constexpr, W: tl.constexpr):
    """The convolution of channels e so far, without its newest input, and that one's tap."""
    u = tl.load(bias_p + e)
    for age in tl.static_range(1, W):
        u += tl.load(taps_p + (W - 1 - age) * E + e) * tl.load(ring_p + ((t + W - age) % W) * E + e)
    return u, tl.load(taps_p + (W - 1) * E + e)


@triton.jit
def leave(out_proj_p, g_p, r_p, ahead, kept_p, mirror_p, mirrored, CASE: tl.constexpr):
    """Adds out_proj times the gated output to the stream, for U-Nets as `layer_step` says."""
    for part in tl.static_range(CASE.D // CASE.D_ROWS):
        d = part * CASE.D_ROWS + tl.arange(0, CASE.D_ROWS)
        if part > 0:
            ahead = ()
        r = tl.load(r_p + d)
        if kept_p is not None:
            put(kept_p + d, r)
            r += tl.load(mirror_p + d, mask=mirrored, other=0.0)
        put(r_p + d, r + product(out_proj_p, g_p, part, ahead, CASE.D_ROWS, CASE.E, CASE.OUT_COLUMNS, CASE.HALVES))


@triton.jit
def layer_step(
    m_p, v_p, h_p, ring_p, scratch_p, t, eps, CASE: tl.constexpr, kept_p=None, mirror_p=None, mirrored=None
):  # fmt: skip
    """One layer's step; the stream r in scratch is read and replaced.

    In a U-Net the stream before it is kept, and where `mirrored` the one that another layer kept is added.
    """
    D: tl.constexpr = CASE.D
    E: tl.constexpr = CASE.E
    N: tl.constexpr = CASE.N
    W: tl.constexpr = CASE.W
    P: tl.constexpr = CASE.P
    X: tl.constexpr = CASE.X
    ROWS: tl.constexpr = CASE.E_ROWS
    HALVES: tl.constexpr = CASE.HALVES
    r_p = scratch_p
    u_p = r_p + D
    gate_p = u_p + E
    g_p = gate_p + E
    maps_p = g_p + E
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

    ahead = tiles(m_p, 0, ROWS, D, CASE.IN_COLUMNS, HALVES, CASE.IN_AHEAD)
    ahead_z = tiles(z_p, 0, ROWS, D, CASE.IN_COLUMNS, HALVES, CASE.IN_AHEAD)
    # Ahead of the barrier where blocks of a U-Net are small; a wide network's registers hold its first tiles.
    if kept_p is not None:
        u, newest = convolved(taps_p, bias_p, ring_p, tl.arange(0, ROWS), t, E, W)
    tl.debug_barrier()
    for part in tl.static_range(E // ROWS):
        e = part * ROWS + tl.arange(0, ROWS)
        if part > 0:
            ahead = ()
            ahead_z = ()
        if part > 0 or kept_p is None:
            u, newest = convolved(taps_p, bias_p, ring_p, e, t, E, W)
        x, z = normed_products(m_p, r_p, part, ahead, ahead_z, eps, ROWS, D, E, CASE.IN_COLUMNS, HALVES)
        u += newest * x
        put(u_p + e, u * sigmoid(u))
        put(gate_p + e, z * sigmoid(z))
        put(ring_p + (t % W) * E + e, x)

    ahead = tiles(x_proj_p, 0, X, E, CASE.X_COLUMNS, HALVES, CASE.X_AHEAD)
    e = tl.arange(0, ROWS)
    dt_rows = tl.load(dt_proj_p + e[:, None] * P + p[None, :])
    A = tl.load(v_p + e[:, None] * N + n[None, :])
    h = tl.load(h_p + e[:, None] * N + n[None, :])
    dt_bias = tl.load(dt_bias_p + e)
    skip = tl.load(skip_p + e)
    tl.debug_barrier()
    put(maps_p + tl.arange(0, X), product(x_proj_p, u_p, 0, ahead, X, E, CASE.X_COLUMNS, HALVES))

    ahead = tiles(out_proj_p, 0, CASE.D_ROWS, E, CASE.OUT_COLUMNS, HALVES, CASE.OUT_AHEAD)
    tl.debug_barrier()
    delta = tl.load(maps_p + p)
    B = tl.load(maps_p + P + n)
    C = tl.load(maps_p + P + N + n)
    for part in tl.static_range(E // ROWS):
        e = part * ROWS + tl.arange(0, ROWS)
        if part > 0:
            dt_rows = tl.load(dt_proj_p + e[:, None] * P + p[None, :])
            A = tl.load(v_p + e[:, None] * N + n[None, :])
            h = tl.load(h_p + e[:, None] * N + n[None, :])
            dt_bias = tl.load(dt_bias_p + e)
            skip = tl.load(skip_p + e)
        u = tl.load(u_p + e)
        gate = tl.load(gate_p + e)
        dt = softplus(tl.sum(dt_rows * delta[None, :], axis=1) + dt_bias, True)
        h = tl.exp2(dt[:, None] * A) * h + (dt * u)[:, None] * B[None, :]
        put(g_p + e, (tl.sum(h * C[None, :], axis=1) + skip * u) * gate)
        tl.store(h_p + e[:, None] * N + n[None, :], h)

    tl.debug_barrier()
    leave(out_proj_p, g_p, r_p, ahead, kept_p, mirror_p, mirrored, CASE)


@triton.jit(do_not_specialize=["steps", "start", "layers", "rows", "k", "eps"])
def decode_kernel(
    matrices_p, vectors_p, embedding_p, head_p, allowed_p, h_p, ring_p, scratch_p, last_p, draws_p, settings_p, symbols_p,
    scores_p, logits_p, steps, start, layers, rows, k, eps, CASE: tl.constexpr, WRITE_LOGITS: tl.constexpr,
):  # fmt: skip
    """Writes symbols and scores (steps, rows), and logits (steps, rows, S) if wanted; moves h, the ring and the last symbol.

    Settings are temperature and top-p in fp64; `start` is the position of the first step, modulo W.
    """
    row = tl.program_id(0).to(tl.int64)
    E: tl.constexpr = CASE.E
    h_p += row * layers * (E * CASE.N)
    ring_p += row * layers * (E * CASE.W)
    scratch_p += row * CASE.scratch
    temperature = tl.load(settings_p)
    mass = tl.load(settings_p + 1)
    d = tl.arange(0, CASE.D_ROWS)
    symbol = tl.load(last_p + row)
    for step in range(steps):
        t = (start + step) % CASE.W
        for part in tl.static_range(CASE.D // CASE.D_ROWS):
            at = part * CASE.D_ROWS + d
            tl.store(scratch_p + at, tl.load(embedding_p + symbol * CASE.D + at))
        for layer in range(layers):
            layer_step(
                matrices_p + layer * CASE.matrices, vectors_p + layer * CASE.vectors, h_p + layer * (E * CASE.N),
                ring_p + layer * (E * CASE.W), scratch_p, t, eps, CASE,
            )  # fmt: skip
        ahead = tiles(head_p, 0, CASE.S, CASE.D, CASE.HEAD_COLUMNS, CASE.HALVES, CASE.X_AHEAD)
        draw = tl.load(draws_p + step * rows + row)
        tl.debug_barrier()
        scale = norm_scale(scratch_p, eps, CASE.D, CASE.IN_COLUMNS)
        logits = product(head_p, scratch_p, 0, ahead, CASE.S, CASE.D, CASE.HEAD_COLUMNS, CASE.HALVES) * scale
        if WRITE_LOGITS:
            tl.store(logits_p + (step * rows + row) * CASE.S + tl.arange(0, CASE.S), logits)
        index, score = choose(logits[None, :], draw, temperature, k, mass, CASE)
        symbol = tl.load(allowed_p + tl.sum(index, axis=0))
        tl.store(symbols_p + step * rows + row, symbol)
        tl.store(scores_p + step * rows + row, tl.sum(score, axis=0))
        # All have read the stream before the next step replaces it.
        tl.debug_barrier()
    tl.store(last_p + row, symbol)


class State(NamedTuple):
    """State of rows before their last symbols; `decode` moves the tensors in place.

    Attributes:
        h: (rows, layers, E, N) fp32.
        ring: (rows, layers, W, E) fp32, the input of the convolution at position t in slot t mod W.
        last: (rows,) int32 symbols.
        position: of the next step.
    """

    h: Tensor
    ring: Tensor
    last: Tensor
    position: int = 0

    @classmethod
    def of(cls, tails: Tensor, h: Tensor, last: Tensor) -> State:
        """From the convolutions' tails (rows, layers, W - 1, E) and states (rows, layers, E, N) of a model."""
        ring = torch.nn.functional.pad(tails.float(), (0, 0, 1, 0))
        return cls(h.float().clone(), ring.contiguous(), last.int().clone())

    def copy(self) -> State:
        """Tensors of its own."""
        return State(self.h.clone(), self.ring.clone(), self.last.clone(), self.position)

    @property
    def tails(self) -> Tensor:
        """(rows, layers, W - 1, E), the last inputs of the convolutions, oldest first."""
        width = self.ring.shape[2]
        return self.ring[:, :, [(self.position - age) % width for age in range(width - 1, 0, -1)]]


def begin(
    network: Network, draws: Tensor, temperature: float, top_k: int | None, top_p: float | None, want_logits: bool
) -> tuple[Case, Tensor, Tensor, Tensor, Tensor]:
    """What every form passes to its kernel: case and settings of the draws, and room for symbols, scores and logits."""
    (steps, rows), device = draws.shape, draws.device
    case = replace(
        network.case,
        greedy=temperature == 0,
        scaled=temperature not in (0, 1),
        top_k=top_k is not None and temperature != 0,
        top_p=top_p is not None and temperature != 0,
    )
    symbols = torch.empty(steps, rows, dtype=torch.int32, device=device)
    scores = torch.empty(steps, rows, dtype=torch.float64, device=device)
    logits = torch.empty(steps if want_logits else 0, rows, case.S, device=device)
    return case, settings_of(temperature, top_k, top_p, device), symbols, scores, logits


def decode(
    network: Network,
    state: State,
    draws: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    want_logits: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None, State]:
    """As many steps as there are rows of `draws` (steps, rows), uniform numbers in fp64.

    Args:
        network: as `pack` makes it.
        state: of the rows; its tensors are moved in place.
        temperature: 0 takes the most probable symbol.
        top_k: keep so many symbols, fewer than there are; None keeps all.
        top_p: keep the most probable up to this mass, below 1; None keeps all.
        want_logits: return the logits of allowed symbols.

    Returns:
        Symbols (steps, rows) int32, their log-probabilities fp64, logits (steps, rows, V) fp32 or None, and the state after.
    """
    (steps, rows), device = draws.shape, draws.device
    case, settings, symbols, scores, logits = begin(network, draws, temperature, top_k, top_p, want_logits)
    scratch = torch.empty(rows, case.scratch, device=device)
    with on(device):
        decode_kernel[(rows,)](
            network.matrices, network.vectors, network.embedding, network.head, network.allowed, state.h, state.ring, scratch,
            state.last, draws.contiguous(), settings, symbols, scores, logits, steps, state.position % case.W, network.layers,
            rows, top_k or 0, network.eps, CASE=case, WRITE_LOGITS=want_logits, num_warps=network.warps,
        )  # fmt: skip
    moved = state._replace(position=state.position + steps)
    return symbols, scores, logits[..., : case.symbols] if want_logits else None, moved
