"""Blocks of bases to be predicted under several contexts, all of them with the longest context before them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.dna.genome import Genome
from mamba_bio_audio.pipelines.spans import Span
from mamba_bio_audio.pipelines.windows import evenly_spaced


def target_blocks(spans: Sequence[Span], genome: Genome, *, size: int, context: int, count: int) -> list[Span]:
    """Up to `count` blocks of `size` bases, evenly spaced over the spans.

    A block has `context` bases before it in its record, also where these lie outside of the spans, and at least one
    known base.

    Raises:
        InputError: there is no such block; says how long the context may be.
    """
    blocks = []
    longest = 0
    for span in spans:
        longest = max(longest, span.end - size if span.end - span.start >= size else 0)
        first = max(span.start, context)
        # From the span's end, so that the block with the longest context is among them.
        starts = np.arange(span.end - size, first - 1, -size)[::-1]
        if len(starts):
            unknown = genome.count_unknown(span.record, starts, starts + size)
            blocks += [Span(span.record, int(start), int(start) + size) for start in starts[unknown < size]]
    if not blocks:
        raise InputError(
            f"no block of {size:,} bases of the split has {context:,} bases before it in its record; the longest "
            f"possible context is {longest:,}"
            if longest
            else f"the split has no stretch of {size:,} bases, a quarter of the shortest context; give a shorter one too"
        )
    return [blocks[i] for i in evenly_spaced(len(blocks), count)]
