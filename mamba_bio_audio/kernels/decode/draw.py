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
def least_kept(keys, weights, limit):
    """The least key [ROWS] above which keys [ROWS, S] weigh less than `limit` [ROWS] in all, by bisection over int32."""
    high = tl.max(keys, axis=1)
    low = tl.full(high.shape, -(1 << 31), tl.int32)
    for _ in range(32):
        middle = (low & high) + ((low ^ high) >> 1)
        few = tl.sum(tl.where(keys > middle[:, None], weights, 0.0), axis=1) < limit
        high = tl.where(few, middle, high)
        low = tl.where(few, low, middle)
    return high


@triton.jit
def keep(p, keys, weights, limit):
    """Probabilities [ROWS, S] before which others weigh less than `limit`; of equal keys the first rank before the others."""
    least = least_kept(keys, weights, limit)[:, None]
    above = tl.sum(tl.where(keys > least, weights, 0.0), axis=1)[:, None]
    tied = tl.where(keys == least, weights, 0.0)
    before = above + tl.cumsum(tied, axis=1) - tied
    return tl.where((keys > least) | ((keys == least) & (before < limit[:, None])), p, 0.0)


@triton.jit
def truncate(p, logits, k, mass, CASE: tl.constexpr):
    """Probabilities [ROWS, S] beyond top-k and top-p set to zero; fp32 `logits` say their order."""
    bits = logits.to(tl.int32, bitcast=True)
    keys = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    if CASE.top_k:
        one = tl.full(p.shape, 1.0, tl.float64)
        p = keep(p, keys, one, tl.full([p.shape[0]], 0.0, tl.float64) + k)
    if CASE.top_p:
        p = keep(p, keys, p, mass * tl.sum(p, axis=1))
    return p


@triton.jit
def choose(logits, draw, temperature, k, mass, CASE: tl.constexpr):
    """Indices [ROWS] that the draws [ROWS] choose from logits [ROWS, S], and their log-probabilities at temperature 1."""
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
            p = truncate(p, logits, k, mass, CASE)
        running = tl.cumsum(p, axis=1)
        passed = (running <= (draw * tl.max(running, axis=1))[:, None]) & inside
        index = tl.sum(passed.to(tl.int32), axis=1)
    # NaN must not index beyond the table; the host sees it in the log-probability.
    index = tl.minimum(index, CASE.symbols - 1)
    chosen = tl.sum(tl.where(i == index[:, None], shifted, 0.0), axis=1)
    return index, chosen - tl.log(tl.sum(weights, axis=1))
