"""Symbols from logits and uniform numbers inside a kernel: temperature, top-k, top-p and inverse, as `inference/generate.py`.

Everything is fp64 but the order of symbols, which is that of fp32 logits. Legend: ROWS rows, S symbols, padded to a power of
two; CASE is a `pack.Case`.
"""

# mypy: disable-error-code="no-untyped-def, assignment, var-annotated, attr-defined"
# Triton code: `if` on a constexpr must stand alone.
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor


@lru_cache(maxsize=64)
def settings_of(temperature: float, top_k: int | None, top_p: float | None, device: torch.device) -> Tensor:
    """Temperature, top-p and top-k in fp64, made once: to copy them there would wait for every launch before."""
    return torch.tensor([temperature, top_p or 1, top_k or 0], dtype=torch.float64, device=device)


@triton.jit
def comes_first(key, other, at, at_other):
    """Whether the others come before: of equal keys the first."""
    return (other > key) | ((other == key) & (at_other < at))


@triton.jit
def before(keys, weights, ranks_p, CASE: tl.constexpr):
    """Of symbols [ROWS, S], how many come before each in falling order of keys, and what these weigh.

    All are compared with all: of one row piece by piece through scratch, where every thread reads what it needs, of several at
    once.
    """
    S: tl.constexpr = CASE.S
    if ranks_p is None:
        i = tl.arange(0, S)
        first = comes_first(keys[:, :, None], keys[:, None, :], i[None, :, None], i[None, None, :])
        return tl.sum(first.to(tl.int32), axis=2), tl.sum(tl.where(first, weights[:, None, :], 0.0), axis=2)
    else:
        PIECE: tl.constexpr = min(S, 16)
        weights_p = ranks_p.to(tl.pointer_type(tl.float64))
        keys_p = (ranks_p + 2 * S).to(tl.pointer_type(tl.int32))
        place = tl.arange(0, S)
        tl.store(weights_p + place, tl.sum(weights, axis=0))
        tl.store(keys_p + place, tl.sum(keys, axis=0))
        tl.debug_barrier()
        i = place[:, None]
        key = tl.load(keys_p + i)
        many = tl.zeros([S, PIECE], tl.int32)
        mass = tl.zeros([S, PIECE], tl.float64)
        for piece in range(S // PIECE):
            j = piece * PIECE + tl.arange(0, PIECE)[None, :]
            first = comes_first(key, tl.load(keys_p + j), i, j)
            many += first.to(tl.int32)
            mass += tl.where(first, tl.load(weights_p + j), 0.0)
        return tl.sum(many, axis=1)[None, :], tl.sum(mass, axis=1)[None, :]


@triton.jit
def truncate(p, logits, k, mass, ranks_p, CASE: tl.constexpr):
    """Probabilities [ROWS, S] beyond top-k and top-p set to zero; fp32 `logits` say their order."""
    # -0.0 is made 0.0, which it equals.
    bits = (logits + 0.0).to(tl.int32, bitcast=True)
    many, weight = before(bits ^ ((bits >> 31) & 0x7FFFFFFF), p, ranks_p, CASE)
    if CASE.top_k:
        p = tl.where(many < k, p, 0.0)
    if CASE.top_p:
        p = tl.where(weight < (mass * tl.sum(p, axis=1))[:, None], p, 0.0)
    return p


@triton.jit
def choose(logits, draw, temperature, k, mass, CASE: tl.constexpr, ranks_p=None):
    """Indices [ROWS] that the draws [ROWS] choose from logits [ROWS, S], and their log-probabilities at temperature 1.

    One row with top-k or top-p has 3 S numbers of scratch for them.
    """
    i = tl.arange(0, CASE.S)[None, :]
    inside = i < CASE.symbols
    logits = tl.where(inside, logits, float("-inf"))
    shifted = logits.to(tl.float64) - tl.max(logits, axis=1).to(tl.float64)[:, None]
    weights = tl.exp(shifted)
    if CASE.greedy:
        index = tl.argmax(logits, axis=1)
    else:
        # Not normalised: the draw and top-p take their part of the sum.
        p = weights
        if CASE.scaled:
            p = tl.exp(shifted / temperature)
        if CASE.top_k or CASE.top_p:
            p = truncate(p, logits, k, mass, ranks_p, CASE)
        running = tl.cumsum(p, axis=1)
        passed = (running <= (draw * tl.max(running, axis=1))[:, None]) & inside
        index = tl.sum(passed.to(tl.int32), axis=1)
    # NaN must not index beyond the table; the host sees it in the log-probability.
    index = tl.minimum(index, CASE.symbols - 1)
    chosen = tl.sum(tl.where(i == index[:, None], shifted, 0.0), axis=1)
    return index, chosen - tl.log(tl.sum(weights, axis=1))
