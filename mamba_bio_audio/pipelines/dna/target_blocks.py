"""Blocks of bases to be predicted under several contexts, all of them with the longest context before them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.coverage import Coverage
from mamba_bio_audio.pipelines.dna.genome import Genome
from mamba_bio_audio.pipelines.dna.tokenizer import A, C, G, T
from mamba_bio_audio.pipelines.scores import Stratum, TargetBlocks
from mamba_bio_audio.pipelines.spans import Span
from mamba_bio_audio.pipelines.windows import evenly_spaced


def open_blocks(data: Any, split: str, *, size: int, context: int, count: int) -> TargetBlocks:
    """Target blocks of a split with their strata; see `Domain.target_blocks`."""
    genome, spans = data.corpus.genome, data.corpus.spans(split)
    blocks = target_blocks(spans, genome, size=size, context=context, count=count)
    ids = np.stack([genome.fetch(*block) for block in blocks])
    known = (ids >= A) & (ids <= T)
    lower = np.stack([genome.lower_case(*block) for block in blocks])
    gc = ((ids == C) | (ids == G)).sum(1) / known.sum(1)
    coverage = Coverage(spans)
    inside = sum(int(coverage.count(block.record, block.start - context, block.start)) for block in blocks)
    return TargetBlocks(
        count=len(blocks),
        size=size,
        windows=lambda some, before: np.stack([genome.fetch(b.record, b.start - before, b.end) for b in blocks[some]]),
        strata=strata(known, lower, gc, [block.record for block in blocks]),
        inside=inside / (len(blocks) * context),
    )


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
            f"possible context is {longest:,}; give shorter contexts"
            if longest
            else f"the split has no stretch of {size:,} bases, a quarter of the shortest context; add a shorter one"
        )
    return [blocks[i] for i in evenly_spaced(len(blocks), count)]


def strata(
    known: NDArray[np.bool_], lower: NDArray[np.bool_], gc: NDArray[np.float64], records: Sequence[str]
) -> list[Stratum]:
    """Subsets of the target bases by repeat masking, GC content and record.

    Args:
        known: (blocks, K) mask of A, C, G and T.
        lower: (blocks, K) mask of lower-case bases: interspersed and tandem repeats in a soft-masked genome.
        gc: (blocks,) share of G and C among the known bases of the block.
        records: record name of each block.
    """
    parts = [Stratum("all", "all", known)]
    if lower.any() and not lower.all():
        parts += [
            Stratum("case", "lower case (soft-masked)", known & lower),
            Stratum("case", "upper case", known & ~lower),
        ]
    edges = (0.0, 0.35, 0.40, 0.45, 0.50, 1.0 + 1e-9)
    for low, high in itertools.pairwise(edges):
        inside = (gc >= low) & (gc < high)
        parts.append(Stratum("gc", f"GC {low:.0%} to {min(high, 1):.0%}", known & inside[:, None]))
    names = np.array(records)
    if len(set(records)) > 1:
        parts += [Stratum("record", name, known & (names == name)[:, None]) for name in dict.fromkeys(records)]
    return [part for part in parts if part.members.any()]
