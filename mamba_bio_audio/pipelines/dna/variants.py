"""Variants: what they replace, whether they can be scored, and how far both alleles are read on a strand.

Two alleles are compared over the same number of bases. From the first base in which they differ, the reference is read
for W bases; so is the alternative, which takes as many bases of the reference behind the variant as it needs to come to W.
Reading both up to the same place of the genome instead would compare sums of different numbers of terms, each about
-1.3 nats: every insertion would look harmful and every deletion harmless, whatever it does.

The window of both alleles ends before the end of the record, and before the first unknown base (N) of either. On the
reverse strand all of this holds for the reverse complement: the window lies to the left of the variant.

Coordinates are 0-based half-open, as everywhere within the library; in VCF the same positions count from 1.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.dna.genome import Genome
from mamba_bio_audio.pipelines.dna.tokenizer import A, DnaTokenizer, T
from mamba_bio_audio.text import printable

# Why an allele is not scored, as in the column MBA_WHY.
REASONS = {
    "no_alternative": "ALT is missing (.)",
    "overlapping_deletion": "ALT is *: another record deletes the base",
    "symbolic": "ALT is symbolic, such as <DEL>",
    "breakend": "ALT is a breakend",
    "unknown_base": "REF or ALT has a letter other than A, C, G and T",
    "not_a_variant": "ALT equals REF",
    "unknown_contig": "the genome has no such record",
    "outside_record": "the variant is not within the record",
    "reference_mismatch": "REF is not what the genome has there",
    "longer_than_window": "the allele is longer than the window",
    "first_base": "nothing stands before the variant on this strand",
    "no_room": "the record, or a stretch of N, leaves less room behind the variant than the allele is long",
}
_PIECE = 1 << 20


class Variant(NamedTuple):
    """One alternative allele.

    Attributes:
        record: name of the record, or an alias (`chr1`, `1`, `NC_000001.11`).
        start: first base of `reference`, 0-based.
        reference: bases that are replaced.
        alternative: bases that replace them, or another ALT of VCF, which is not scored.
    """

    record: str
    start: int
    reference: str
    alternative: str


class Placed(NamedTuple):
    """A variant on one strand of its record, ready to be read.

    Attributes:
        start: first base in which the alleles differ, 0-based on the strand.
        window: ids (n,) of the alternative allele from there on.
    """

    start: int
    window: NDArray[np.uint8]


class StrandReader:
    """One strand of a record, read in pieces that are kept for the next read.

    Args:
        genome: the genome.
        record: a record's own name.
        reverse: read the reverse complement.
    """

    def __init__(self, genome: Genome, record: str, *, reverse: bool) -> None:
        self.genome, self.record, self.reverse = genome, record, reverse
        self.length = genome.records[record]
        self._low = 0
        self._piece = np.zeros(0, np.uint8)

    def read(self, low: int, high: int) -> NDArray[np.uint8]:
        """Ids of the bases [low, high) of the strand."""
        if not self._low <= low <= high <= self._low + len(self._piece):
            begin, end = low, min(self.length, max(high, low + _PIECE))
            if self.reverse:
                ids = self.genome.fetch(self.record, self.length - end, self.length - begin)
                self._piece = self.genome.codec.reverse_complement(ids)
            else:
                self._piece = self.genome.fetch(self.record, begin, end)
            self._low = begin
        return self._piece[low - self._low : high - self._low]


def why_not(alternative: str) -> str:
    """Why an ALT of VCF cannot be scored, whatever stands around it; empty if it can."""
    if alternative in (".", ""):
        return "no_alternative"
    if alternative == "*":
        return "overlapping_deletion"
    if alternative.startswith("<"):
        return "symbolic"
    if "[" in alternative or "]" in alternative or alternative.startswith(".") or alternative.endswith("."):
        return "breakend"
    return ""


def find_record(genome: Genome, name: str) -> str | None:
    """The record of a genome that a VCF file means by a name, which may be an alias; None if there is none."""
    try:
        return genome.resolve(name)
    except InputError:
        return None


def check(variant: Variant, genome: Genome, record: str | None) -> str:
    """Why a variant cannot be scored on either strand; empty if it can.

    Args:
        variant: the variant.
        genome: where it should fit.
        record: the record's own name there; None if there is no such record.
    """
    if reason := why_not(variant.alternative):
        return reason
    if record is None:
        return "unknown_contig"
    reference, alternative = variant.reference.upper(), variant.alternative.upper()
    if set(reference + alternative) - set("ACGT"):
        return "unknown_base"
    if reference == alternative:
        return "not_a_variant"
    end = variant.start + len(reference)
    if variant.start < 0 or end > genome.records[record]:
        return "outside_record"
    if genome.codec.decode(genome.fetch(record, variant.start, end)) != reference:
        return "reference_mismatch"
    return ""


def explain(variant: Variant, genome: Genome, reason: str) -> str:
    """What a reason of `REASONS` means for one variant, for people."""
    if reason == "unknown_contig":
        try:
            genome.resolve(variant.record)
        except InputError as error:
            return str(error)
    size = genome.records[genome.resolve(variant.record)] if reason in ("outside_record", "reference_mismatch") else 0
    if reason == "outside_record":
        return f"{variant.record} has {size:,} bases"
    if reason == "reference_mismatch":
        end = variant.start + len(variant.reference)
        there = genome.codec.decode(genome.fetch(genome.resolve(variant.record), variant.start, end))
        return f"REF is {shortened(variant.reference)}, but the genome has {shortened(there)}; is it another assembly?"
    return REASONS[reason]


def shortened(allele: str) -> str:
    """An allele as messages show it."""
    return printable(allele if len(allele) <= 20 else f"{allele[:12]}... ({len(allele):,} bases)")


def place(variant: Variant, strand: StrandReader, window: int) -> Placed | str:
    """Lay out a variant that passed `check` on a strand, or say why it cannot be scored there.

    Args:
        variant: the variant.
        strand: a strand of its record.
        window: W, the most bases that each allele is read for.
    """
    codec: DnaTokenizer = strand.genome.codec
    old, new = codec.encode(variant.reference), codec.encode(variant.alternative)
    start = variant.start
    if strand.reverse:
        start = strand.length - start - len(old)
        old, new = codec.reverse_complement(old), codec.reverse_complement(new)
    shared = min(len(old), len(new))
    same = int(np.argmin(np.append(old[:shared] == new[:shared], False)))
    start, old, new = start + same, old[same:], new[same:]
    longest = max(len(old), len(new))
    if longest > window:
        return "longer_than_window"
    if start == 0:
        return "first_base"
    behind = start + len(old)
    reference = strand.read(start, min(start + window, strand.length))
    rest = strand.read(behind, min(behind + window - len(new), strand.length))
    alternative = np.concatenate([new, rest])
    bases = min(_known(reference), _known(alternative))
    if bases < longest:
        return "no_room"
    return Placed(start, alternative[:bases])


def _known(ids: NDArray[np.uint8]) -> int:
    """Number of bases before the first unknown one."""
    unknown = (ids < A) | (ids > T)
    return int(np.argmax(unknown)) if unknown.any() else len(ids)


def saturation(genome: Genome, record: str, start: int, end: int) -> list[Variant]:
    """All three substitutions of every known base of [start, end), in order."""
    letters = genome.codec.decode(genome.fetch(record, start, end))
    return [
        Variant(record, start + at, letter, other)
        for at, letter in enumerate(letters)
        if letter in "ACGT"
        for other in "ACGT"
        if other != letter
    ]
