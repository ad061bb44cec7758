"""Words of bases as numbers, and counts of what follows contexts of any length that occur."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

FIRST_BASE_ID = 7  # A, C, G, T are 7..10 in the HyenaDNA and Caduceus vocabulary
# int32, or int64 where int32 is too short.
Words = NDArray[Any]


def words_of(tokens: NDArray[np.uint8], longest: int) -> tuple[Words, NDArray[np.int32]]:
    """The word that ends at each base, and how many of its bases are known.

    Returns:
        words: (n,) int32, or int64 beyond 15 bases; base-4 digits (A 0, C 1, G 2, T 3), the base itself lowest,
            `longest` digits; digits before an unknown base or the start are zero. The last m bases are
            `words & (4^m - 1)`.
        depth: (n,) int32, length of the run of known bases that ends here, at most `longest`; 0 if unknown.
    """
    kind: Any = np.int32 if longest < 16 else np.int64
    digits: Words = tokens.astype(kind) - FIRST_BASE_ID
    known = (digits >= 0) & (digits < 4)
    n = len(digits)
    # Position after the last unknown base so far.
    breaks = np.where(known, 0, np.arange(1, n + 1, dtype=np.int32))
    depth = np.minimum(np.arange(1, n + 1, dtype=np.int32) - np.maximum.accumulate(breaks), longest)
    digits[~known] = 0
    words = digits.copy()
    for back in range(1, min(longest, n)):
        words[back:] |= digits[:-back] << (2 * back)
    # Digits older than the run of known bases carry no meaning.
    short = depth < longest
    words[short] &= (1 << (2 * depth[short].astype(words.dtype))) - 1
    return words, depth


def reversed_digits(words: NDArray[Any], length: int) -> NDArray[np.uint64]:
    """Words of `length` bases, 1 to 32, with their digits in the opposite order."""
    if not length:
        return np.zeros(len(words), np.uint64)
    bits = words.astype(np.uint64)
    for shift, mask in ((2, 0x3333333333333333), (4, 0x0F0F0F0F0F0F0F0F)):
        kept = np.uint64(mask)
        bits = ((bits >> np.uint64(shift)) & kept) | ((bits & kept) << np.uint64(shift))
    return bits.byteswap() >> np.uint64(64 - 2 * length)


def reverse_complement_words(words: Words, length: int) -> Words:
    """Reverse complement of words of `length` bases: digits reversed, 3 - digit."""
    return reversed_digits(words, length).astype(words.dtype) ^ ((1 << (2 * length)) - 1)


class DeepCounts:
    """Counts of one or more orders, of the contexts that occur.

    Contexts are read from their last base backwards and sorted, so that those that agree in their last k bases stand
    together, whatever k is: one list serves every order up to its depth. A row (n, 4) is the difference of two sums.

    Attributes:
        depth: bases of a context.
        contexts: (m,) distinct ones, last base highest, sorted.
        sums: (m + 1, 4) occurrences of each next base after all contexts before one.
        starts: by order, counts of the contexts that are shorter than `depth` because their run begins there.
    """

    def __init__(self, words: NDArray[Any], depth: int, starts: Mapping[int, DeepCounts] | None = None) -> None:
        """Count words of `depth` + 1 bases, as many times as they are given."""
        self.depth, self.starts = depth, dict(starts or {})
        keys = (reversed_digits(words >> 2, depth) << np.uint64(2)) | (words & 3).astype(np.uint64)
        keys.sort()
        contexts = keys >> np.uint64(2)
        first = np.flatnonzero(np.append(True, contexts[1:] != contexts[:-1])[: len(contexts)])
        self.contexts = contexts[first].astype(np.uint32 if depth <= 16 else np.uint64)
        del contexts
        following = (keys & np.uint64(3)).astype(np.uint8)
        kind = np.uint32 if len(keys) < 1 << 32 else np.int64
        del keys
        self.sums = np.zeros((len(first) + 1, 4), kind)
        for base in range(4):
            total = np.cumsum(following == base, dtype=kind)
            self.sums[1:-1, base] = total[first[1:] - 1]
            self.sums[1:, base][-1:] = total[-1:]

    def rows(self, contexts: NDArray[Any], order: int) -> NDArray[Any]:
        """Counts (n, 4) of each next base after contexts (n,) of `order` bases, last base lowest."""
        shift = np.uint64(2 * (self.depth - order))
        low = reversed_digits(contexts, order) << shift
        # Neighbours in the list are looked up one after the other, which is several times as fast.
        sorting = np.argsort(low)
        low = low[sorting]
        kind = self.contexts.dtype
        first = np.searchsorted(self.contexts, low.astype(kind), "left")
        last = np.searchsorted(self.contexts, (low + ((np.uint64(1) << shift) - np.uint64(1))).astype(kind), "right")
        found = np.empty((len(low), 4), np.int64)
        found[sorting] = self.sums[last].astype(np.int64) - self.sums[first]
        return found + self.starts[order].rows(contexts, order) if order in self.starts else found
