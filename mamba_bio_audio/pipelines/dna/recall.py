"""Trials of recall: a piece of real sequence that comes again, and the same stretch in which it does not.

    lead | A' | D | A          repeat: A' is A, A with substitutions, or its reverse complement
    lead | C  | D | A          control: the stretch as it is in the genome
    lead | F  | D | A          foreign control: F from elsewhere in the split, as out of place as A'

Of recall-bench 0.2.1 (its copy task): A of 256 bases, D of the distance, a stretch of the smallest power of two that holds
the distance, both pieces and 512 bases of lead. Draws depend on (seed, stretch, distance) alone, and variants of a trial
share everything else, so that differences between them are paired.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.dna.markov import GenomeLike
from mamba_bio_audio.pipelines.dna.tokenizer import A, DnaTokenizer, T
from mamba_bio_audio.pipelines.scores import RecallTrials
from mamba_bio_audio.pipelines.spans import Span, merge

PIECE = 256
_LEAD = 512
_MAX_UNKNOWN = 0.01
_TRIES = 200


def recall_trials(
    genome: GenomeLike,
    spans: Iterable[Span],
    distance: int,
    *,
    count: int,
    copies: Sequence[int] = (1,),
    mutated: float = 0.1,
    seed: int = 0,
) -> RecallTrials:
    """Draw stretches of the spans; see `Domain.recall_trials`.

    Raises:
        InputError: no span is long enough, or those that are have too many unknown bases.
    """
    before = PIECE * max(copies)
    context = 1 << (distance + before + PIECE + _LEAD - 1).bit_length()
    blocks = [span for span in merge(spans) if len(span) >= context]
    if not blocks:
        raise InputError(f"no stretch of the split has the {context:,} bases that a distance of {distance:,} takes")
    draws = np.random.default_rng([seed, context, distance])
    found: list[NDArray[np.uint8]] = []
    foreign: list[NDArray[np.uint8]] = []
    last = slice(context - PIECE, context)
    replaced = slice(context - PIECE - distance - before, context - PIECE - distance)
    for _ in range(count):
        for _ in range(_TRIES):
            whole, other = _draw(genome, blocks, draws, context), _draw(genome, blocks, draws, PIECE)
            known = (whole >= A) & (whole <= T)
            if known[last].all() and known[replaced].all() and (other <= T).all() and (~known).mean() < _MAX_UNKNOWN:
                break
        else:
            raise InputError(
                f"{_TRIES} draws of {context:,} bases of the split all had unknown bases in the pieces, or more than "
                f"{_MAX_UNKNOWN:.0%} of them; leave out the distance {distance:,}"
            )
        found.append(whole)
        foreign.append(other)
    whole, elsewhere = np.stack(found), np.stack(foreign)
    target, control = whole[:, last], whole[:, replaced]
    changing = np.random.default_rng([seed, context, distance, 1])
    changed = changing.random(target.shape) < mutated
    shifted = ((target - A + changing.integers(1, 4, target.shape)) % 4 + A).astype(np.uint8)
    backwards = np.stack([DnaTokenizer().reverse_complement(row) for row in target])

    def placed(piece: NDArray[np.uint8], times: int = 1) -> NDArray[np.uint8]:
        return np.concatenate([control[:, : before - times * PIECE], *[piece] * times], 1)

    variants = {
        "exact": placed(target),
        "mutated": placed(np.where(changed, shifted, target)),
        "reverse complement": placed(backwards),
        **{f"exact, {times} copies": placed(target, times) for times in copies if times > 1},
    }
    return RecallTrials(
        distance=distance,
        context=context,
        lead=whole[:, : replaced.start],
        pieces={"control": control, "foreign control": placed(elsewhere)} | variants,
        gap=whole[:, replaced.stop : last.start],
        target=target,
    )


def _draw(genome: GenomeLike, blocks: Sequence[Span], draws: np.random.Generator, size: int) -> NDArray[np.uint8]:
    """A stretch of any of the blocks, each as likely as the others."""
    block = blocks[int(draws.integers(len(blocks)))]
    start = block.start + int(draws.integers(len(block) - size + 1))
    return genome.fetch(block.record, start, start + size)
