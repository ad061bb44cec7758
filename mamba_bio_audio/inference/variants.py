"""Log-likelihood ratios of variants: log p(alternative) - log p(reference), given all the context that is asked for.

A negative ratio means that the model finds the alternative less likely than the reference. It is a difference of two
sums of the same number of terms (`pipelines/dna/variants.py` says which bases are compared, and why), computed in fp32
with fp64 sums from states that are copied right before the variant (`forked.py`). On the reverse strand the same is done
with the reverse complement, so that the context is what lies to the right; the mean of both strands uses all of it.

What the number is not: a probability of disease, or a measure of effect. It says how usual a base is in its context to
this model.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.inference.forked import Change, log_ratios
from mamba_bio_audio.inference.streaming import Passes, passes_of
from mamba_bio_audio.pipelines.contract import Strand
from mamba_bio_audio.pipelines.dna.genome import Genome
from mamba_bio_audio.pipelines.dna.variants import StrandReader, Variant, check, find_record, place
from mamba_bio_audio.pipelines.dna.vcf import read_variants
from mamba_bio_audio.pipelines.domains import domain_of

# Chosen on constructed data (docs/results/variants.md).
WINDOW = 64
# Context where nothing is known of the training, and the least.
CONTEXT, LEAST_CONTEXT = 1024, 8
BATCH = {"cpu": 32, "cuda": 512}
STRANDS: dict[str, tuple[Literal["forward", "reverse"], ...]] = {
    "both": ("forward", "reverse"),
    "forward": ("forward",),
    "reverse": ("reverse",),
}
Context = int | Literal["all"]


class StrandScore(NamedTuple):
    """An allele on one strand.

    Attributes:
        ratio: log p(alternative) - log p(reference), nats.
        bases: bases that each allele was scored on.
        context: bases that were read before the variant.
    """

    ratio: float
    bases: int
    context: int


class VariantScore(NamedTuple):
    """An allele.

    Attributes:
        ratio: mean over the strands that were asked for, nats; None if one of them could not be scored.
        forward, reverse: the strands; None where not asked for, or not scored.
        why: why a strand was not scored (`pipelines.dna.variants.REASONS`); empty if all were.
    """

    ratio: float | None
    forward: StrandScore | None
    reverse: StrandScore | None
    why: str


class Scored(NamedTuple):
    """Alleles of one record on one strand.

    Attributes:
        ratio: float64 (n,), nan where not scored.
        bases, context: int64 (n,), 0 where not scored.
        why: reasons, empty where scored.
        streamed, windowed: bases read as context, and in windows.
    """

    ratio: NDArray[np.float64]
    bases: NDArray[np.int64]
    context: NDArray[np.int64]
    why: list[str]
    streamed: int
    windowed: int

    @classmethod
    def none(cls, why: Sequence[str]) -> Scored:
        """Alleles that have reasons, or are yet to be scored."""
        count = len(why)
        return cls(np.full(count, np.nan), np.zeros(count, np.int64), np.zeros(count, np.int64), [*why], 0, 0)

    def filled(self, at: NDArray[np.int64], own: Scored) -> Scored:
        """These alleles with the scores `own` of those at the places `at`."""
        for into, values in ((self.ratio, own.ratio), (self.bases, own.bases), (self.context, own.context)):
            into[at] = values
        for number, why in zip(at, own.why, strict=True):
            self.why[number] = why
        return self._replace(streamed=own.streamed, windowed=own.windowed)


class Scoring(NamedTuple):
    """How variants are scored.

    Attributes:
        window: W, bases that each allele is read for, from the first that differs.
        context: C: between C and 1.125 C bases are read before a variant; None: all from the record's start.
        batch: rows that are read at once; does not change results.
    """

    window: int
    context: int | None
    batch: int


def score_variants(
    model: Any,
    genome: Genome | str | os.PathLike[str],
    variants: Iterable[Variant | tuple[str, int, str, str]] | str | os.PathLike[str],
    *,
    context: Context | None = None,
    window: int = WINDOW,
    strand: Strand = "both",
    batch: int | None = None,
    precision: Literal["fp32", "bf16"] = "fp32",
    progress: Callable[[int], None] | None = None,
) -> list[VariantScore]:
    """Score variants against a genome; each is scored by itself, whatever else is in the list.

    >>> mba.score_variants(model, "genome.fa", [("chr1", 99_999, "A", "G")], context=65_536)    # doctest: +SKIP

    Args:
        model: language model of DNA (`mba.load`), on the device that is to be used.
        genome: FASTA or 2bit file, or `pipelines.dna.genome.Genome`.
        variants: (record, start, reference, alternative) of each, start counted from 0; or a VCF file, all alleles of which
            are scored in their order.
        context: bases read before each variant, 8 or more: between this number and 1.125 times it, fewer where the record
            begins; "all" reads from the record's start; None is the length that the model was trained at.
        window: bases over which the alleles are compared, from the first that differs.
        strand: "both" gives the mean of the two.
        batch: windows that are read at once; does not change results.
        precision: "bf16" is faster on a GPU and rounds to about 1e-2 nats; "fp32" agrees with reading each allele
            whole to 1e-4.
        progress: called with the number of bases read since the last call.

    Returns:
        One score for each variant, in the same order. A variant that cannot be scored has the reason in `why`.

    Raises:
        InputError: the genome cannot be read, an option is out of range, or the model carries no state of constant size.
    """
    if not hasattr(model, "model_config"):
        raise InputError(f"the model is {type(model).__name__}; pass one of mba.load")
    if isinstance(genome, str | os.PathLike):
        known = hasattr(model.config, "data")
        genome = domain_of(model.config.data.kind).genome(Path(genome)) if known else Genome(genome)
    given = read_variants(variants) if isinstance(variants, str | os.PathLike) else variants
    wanted = [_variant(number, one) for number, one in enumerate(given, start=1)]
    passes = passes_of(model, precision)
    passes = replace(passes, progress=progress)
    scoring = scoring_of(model, window, context, batch, passes.device)
    if strand not in STRANDS:
        raise InputError(f"strand is {strand!r}; choose one of {', '.join(STRANDS)}")
    records = {name: find_record(genome, name) for name in {variant.record for variant in wanted}}
    by_record: dict[str, list[int]] = {}
    why = [""] * len(wanted)
    for number, variant in enumerate(wanted):
        record = records[variant.record]
        why[number] = check(variant, genome, record)
        if record is not None and not why[number]:
            by_record.setdefault(record, []).append(number)
    strands: dict[str, list[StrandScore | None]] = {name: [None] * len(wanted) for name in ("forward", "reverse")}
    for record, numbers in by_record.items():
        for name in STRANDS[strand]:
            found = score_record(
                model,
                StrandReader(genome, record, reverse=name == "reverse"),
                [wanted[n] for n in numbers],
                scoring,
                passes,
            )
            for at, number in enumerate(numbers):
                if found.why[at]:
                    why[number] = why[number] or found.why[at]
                else:
                    score = float(found.ratio[at]), int(found.bases[at]), int(found.context[at])
                    strands[name][number] = StrandScore(*score)
    out = []
    for number in range(len(wanted)):
        own = [strands[name][number] for name in STRANDS[strand]]
        ratios = [score.ratio for score in own if score is not None]
        mean = sum(ratios) / len(ratios) if len(ratios) == len(own) else None
        out.append(VariantScore(mean, strands["forward"][number], strands["reverse"][number], why[number]))
    return out


def _variant(number: int, one: Any) -> Variant:
    """A variant as a caller gave it.

    Raises:
        InputError: it is none; text of four letters is none either.
    """
    kinds = (str, int | np.integer, str, str)
    if isinstance(one, tuple | list) and len(one) == 4 and all(map(isinstance, one, kinds)):
        return Variant(one[0], int(one[1]), one[2], one[3])
    raise InputError(
        f"variant {number:,} is {one!r}; give (record, start, reference, alternative), such as ('chr1', 99_999, 'A', 'G')"
    )


def scoring_of(model: Any, window: int, context: Context | None, batch: int | None, device: str) -> Scoring:
    """Checked options, with those that are None filled in.

    Raises:
        InputError: one of them is out of range.
    """
    if context is None:
        context = model.config.train.length if hasattr(model.config, "train") else CONTEXT
    for name, value in (("window", window), ("context", context), ("batch", 1 if batch is None else batch)):
        if not isinstance(value, int | np.integer) and (name, value) != ("context", "all"):
            raise InputError(f"{name} is {value!r}; give a whole number")
    if window < 1:
        raise InputError(f"window is {window}; choose 1 or more")
    if context != "all" and context < LEAST_CONTEXT:
        raise InputError(f"context is {context}; choose {LEAST_CONTEXT} bases or more, or all")
    if batch is not None and batch < 1:
        raise InputError(f"batch is {batch}; choose 1 or more")
    return Scoring(window, None if context == "all" else context, batch or BATCH.get(device, BATCH["cpu"]))


def score_record(
    model: Any, strand: StrandReader, variants: Sequence[Variant], scoring: Scoring, passes: Passes
) -> Scored:
    """Score variants of one record on one strand.

    Args:
        model: language model of DNA, on the device of `passes`.
        strand: the strand.
        variants: variants of that record that passed `check`, in any order.
        scoring: window, context and batch.
        passes: how the model is run.

    Raises:
        Stopped: `passes.stop` returned True.
    """
    placed = [place(variant, strand, scoring.window) for variant in variants]
    why = [found if isinstance(found, str) else "" for found in placed]
    # Sorting is stable, so that alleles of one place keep their order.
    scored = [(number, found) for number, found in enumerate(placed) if not isinstance(found, str)]
    scored.sort(key=lambda pair: pair[1].start)
    order = np.array([number for number, _ in scored], np.int64)
    codec = strand.genome.codec
    found = log_ratios(
        model,
        strand.read,
        [Change(*change) for _, change in scored],
        context=scoring.context,
        known=codec.base_ids,
        pad_id=codec.pad_id,
        batch=scoring.batch,
        passes=passes,
    )
    ratio = np.full(len(variants), np.nan)
    bases, context = np.zeros(len(variants), np.int64), np.zeros(len(variants), np.int64)
    ratio[order], context[order] = found.ratio, found.context
    bases[order] = [len(change.window) for _, change in scored]
    return Scored(ratio, bases, context, why, found.streamed, found.windowed)
