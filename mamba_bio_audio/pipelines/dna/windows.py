"""The windows that score each base of a split once."""

from collections.abc import Iterable
from dataclasses import dataclass

from mamba_bio_audio.pipelines.dna.genome import Genome
from mamba_bio_audio.pipelines.spans import Span, merge, size_of
from mamba_bio_audio.pipelines.windows import EvaluationWindows, tile


@dataclass(frozen=True)
class GenomeWindows(EvaluationWindows):
    """Windows that score each base of a union of spans once.

    Attributes:
        windows: their targets are exactly the bases of the union that have a base before them.
        symbols: bases in the union.
        first_of_record: bases of the union without a predecessor, which cannot be scored.
        unknown: bases that have a predecessor but are not A, C, G or T, which are not scored.
        scored: all the others.
    """

    first_of_record: int
    unknown: int

    @property
    def scored(self) -> int:
        """Bases that are scored: symbols - first_of_record - unknown."""
        return self.symbols - self.first_of_record - self.unknown


def evaluation_windows(spans: Iterable[Span], genome: Genome, length: int) -> GenomeWindows:
    """Windows that score each base of the union of spans once.

    A union span [a, b) with a > 0 is read from a - 1: that base is context only. The base before a target in
    the same window and all earlier ones are its context; nothing is carried from window to window.
    """
    union = merge(spans)
    first = sum(span.start == 0 for span in union)
    wider = [Span(span.record, max(span.start - 1, 0), span.end) for span in union]
    unknown = sum(int(genome.count_unknown(span.record, max(span.start, 1), span.end)) for span in union)
    return GenomeWindows(tile(wider, length), size_of(union), first, unknown)
