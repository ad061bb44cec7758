"""Symbols from logits and uniform numbers inside a kernel: temperature, top-k, top-p and inverse, as `inference/generate.py`.

Everything is fp64. Legend: ROWS rows, S symbols, padded to a power of two; CASE is a `pack.Case`.
"""

# mypy: disable-error-code="no-untyped-def, assignment, var-annotated, attr-defined"
# Triton code: `if` on a constexpr must stand alone.
import triton
import triton.language as tl


@triton.jit
def truncate(p, k, mass, CASE: tl.constexpr):
    """Probabilities [ROWS, S] beyond top-k and top-p set to zero; of equals the first ranks before the others."""
    i = tl.arange(0, CASE.S)
    other, own = p[:, None, :], p[:, :, None]
    ahead = (other > own) | ((other == own) & (i[None, None, :] < i[None, :, None]))
    if CASE.top_k:
        p = tl.where(tl.sum(ahead.to(tl.int32), axis=2) < k, p, 0.0)
    if CASE.top_p:
        before = tl.sum(tl.where(ahead, p[:, None, :], 0.0), axis=2)
        p = tl.where(before < mass * tl.sum(p, axis=1)[:, None], p, 0.0)
    return p


@triton.jit
def choose(logits, draw, temperature, k, mass, CASE: tl.constexpr):
    """Indices [ROWS] that the draws [ROWS] choose from logits [ROWS, S], and their log-probabilities at temperature 1."""
    i = tl.arange(0, CASE.S)[None, :]
    inside = i < CASE.symbols
    logits = tl.where(inside, logits.to(tl.float64), float("-inf"))
    shifted = logits - tl.max(logits, axis=1)[:, None]
    log_p = shifted - tl.log(tl.sum(tl.exp(shifted), axis=1))[:, None]
    if CASE.greedy:
        index = tl.argmax(logits, axis=1)
    else:
        if CASE.scaled:
            p = tl.exp(shifted / temperature)
            p = p / tl.sum(p, axis=1)[:, None]
        else:
            p = tl.exp(log_p)
        if CASE.top_k or CASE.top_p:
            p = truncate(p, k, mass, CASE)
        running = tl.cumsum(p, axis=1)
        passed = (running <= (draw * tl.max(running, axis=1))[:, None]) & inside
        index = tl.sum(passed.to(tl.int32), axis=1)
    # NaN must not index beyond the table; the host sees it in the log-probability.
    index = tl.minimum(index, CASE.symbols - 1)
    return index, tl.sum(tl.where(i == index[:, None], log_p, 0.0), axis=1)
