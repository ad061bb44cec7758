"""Copies put into training windows, so that there is something to copy (an augmentation).

In a window of real sequence few stretches come again, and in short windows hardly any, so that a model is hardly rewarded for
looking back. Here pieces of a window are overwritten by what stands earlier in the same window: exactly, with
substitutions, or from the opposite strand.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mamba_bio_audio.pipelines.dna.tokenizer import A, DnaTokenizer, T

# Lengths of pieces: as likely in each octave, at most a quarter of the window.
SHORTEST, LONGEST = 32, 2048


def with_repeats(
    ids: NDArray[np.uint8], draws: np.random.Generator, *, share: float, substituted: float, reverse: float
) -> NDArray[np.uint8]:
    """Token ids (L,) of a window with pieces of it overwritten by copies of what stands before them.

    A piece and the bases between it and its source have lengths that are as likely in each octave. A copy is of what the
    window holds in the end, copies in it included.

    Args:
        ids: as read, with what is to be predicted; unchanged.
        draws: what everything is drawn from.
        share: of the bases that are overwritten, about; pieces that fall on each other make it less.
        substituted: share of a copy's bases that are substituted at most; each copy's own is drawn between 0 and this.
        reverse: share of the copies that are read from the opposite strand.
    """
    longest = min(LONGEST, len(ids) // 4)
    if longest < SHORTEST:
        return ids
    octaves = np.log(longest / SHORTEST)
    mean = (longest - SHORTEST) / octaves if octaves else SHORTEST
    count = draws.poisson(share * len(ids) / mean)
    sizes = (SHORTEST * np.exp(draws.random(count) * octaves)).astype(np.int64)
    # A source as long fits before each; in order of their places, so that what is copied does not change any more.
    starts = sizes + (draws.random(count) * (len(ids) - 2 * sizes + 1)).astype(np.int64)
    order = np.argsort(starts, kind="stable")
    gaps, kinds, changes = draws.random(count), draws.random(count) < reverse, draws.random(count) * substituted
    found = ids.copy()
    for at in order:
        start, size = int(starts[at]), int(sizes[at])
        source = start - size - int((start - size + 1) ** gaps[at] - 1)
        piece = found[source : source + size]
        piece = DnaTokenizer().reverse_complement(piece) if kinds[at] else piece.copy()
        changed = (draws.random(size) < changes[at]) & (piece >= A) & (piece <= T)
        moved = (piece[changed] - A + draws.integers(1, 4, int(changed.sum()))) % 4 + A
        piece[changed] = moved
        found[start : start + size] = piece
    return found
