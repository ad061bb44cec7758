"""What is said of DNA beside a model's scores: which bases were scored, Markov baselines, equal examples of two classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.scores import (
    HEADER,
    ClassNotes,
    CopyBar,
    Found,
    LikelihoodNotes,
    Measured,
    Part,
    Score,
    Scored,
    Scores,
    SplitScores,
)

if TYPE_CHECKING:
    from mamba_bio_audio.pipelines.contract import Progress
    from mamba_bio_audio.pipelines.dna.markov import MarkovTable
    from mamba_bio_audio.pipelines.spans import Span

# The longest context of the copies beside a whole split.
_FAR = 1 << 20


class Markov(Found):
    """Interpolated Markov models of every order on the scored bases; order and smoothing are chosen on validation."""

    count: int = 0
    chosen_order: int
    smoothing: float | None = None
    best: Scores
    orders: list[Scores]


class CopyScores(Scores):
    """The copy model on the scored bases, where at most so many bases are read before each."""

    context: int


class GenomeScores(Scored):
    """Scores of one genome, and its own Markov models where it has bases in every split."""

    markov: Markov | None = None


class DnaNotes(LikelihoodNotes):
    """Which bases were scored, and what Markov models reach on them.

    Attributes:
        part: where not all windows were scored.
        unread: the scored bases that no training window holds, where training windows hold others of them.
        bases, unknown, first_of_record: of the split, or of the part.
        genomes: by file, where there are several.
        markov: fitted on the training split of all genomes.
        copies: the copy model on the Markov model, by context: the windows' length, and 2^20.
    """

    part: Part | None = None
    unread: Scored | None = None
    bases: int
    unknown: int
    first_of_record: int
    genomes: dict[str, GenomeScores]
    markov: Markov | None = None
    copies: list[CopyScores] = Field(default_factory=list)

    def text(self, found: SplitScores) -> str:
        """Tables of the model beside every order, and of every genome."""
        lines = [
            f"{found.split} split: {found.scored:,} of {self.bases:,} bases scored ({self.unknown:,} unknown, "
            f"{self.first_of_record:,} first of their record), windows of {found.length:,} (the model sees one base of "
            "context at the start of a window, Markov models always see all they need)"
        ]
        if self.part is not None:
            lines.append(self.part.line(self.bases, "base", "baselines"))
        lines += ["", HEADER, found.model.row(f"model ({found.weights})")]
        if self.unread is not None:
            lines.append(self.unread.model.row("  where training never read"))
            lines.append(f"  ({self.unread.scored:,} of the bases; training windows hold the others)")
        if self.markov is not None:
            for order, row in enumerate(self.markov.orders):
                mark = " (best on valid)" if order == self.markov.chosen_order else ""
                lines.append(row.row(f"Markov order {order}{mark}"))
            lines += [row.row(f"copies within {row.context:,}") for row in self.copies]
            ratio = _perplexity(found.model) / _perplexity(self.markov.best) - 1
            lines.append("")
            lines.append(
                f"The model's perplexity is {abs(ratio):.2%} {'below' if ratio < 0 else 'above'} the best Markov baseline"
                + ("." if ratio < 0 else ": it has learnt less than a table of k-mers.")
            )
            if self.markov.chosen_order == len(self.markov.orders) - 1:
                lines.append("That is the highest order tried; a higher one may be better.")
        if self.genomes:
            lines += ["", f"{'perplexity by genome':<40}{'model':>9}{'order 1':>10}{'order 3':>10}{'best':>10}"]
            for name, genome in self.genomes.items():
                own = genome.markov
                columns = [own.orders[1], own.orders[3], own.best] if own else []
                cells = "".join(f"{column.perplexity:>10.4f}" for column in columns)
                lines.append(f"{name:<40}{genome.model.perplexity:>9.4f}{cells}")
        return "\n".join(lines)


class DnaClassNotes(ClassNotes):
    """How far equal examples of several classes bound the accuracy (`class_duplicates.label_conflicts`)."""

    stranded: ClassVar[bool] = True
    label_conflicts: dict[str, Any] = Field(default_factory=dict)

    def text(self, split: str) -> str:
        """The highest possible accuracy."""
        from mamba_bio_audio.pipelines.dna.classes import conflict_text

        return conflict_text(self.label_conflicts, split) or ""


def _perplexity(scores: Scores) -> float:
    return float("nan") if scores.perplexity is None else scores.perplexity


def check_markov(data: Any) -> None:
    """Refuse splits that no Markov model can be fitted and chosen on."""
    if not (data.corpus.spans("train") and data.corpus.spans("valid")):
        raise InputError(
            "the Markov baselines are fitted on the training split and chosen on the validation split, and one of them "
            "is empty; give intervals for both, or --no-baselines"
        )


def beside_likelihood(data: Any, found: Measured, score: Score, progress: Progress | None = None) -> DnaNotes:
    """Counts of the scored bases, scores by genome and, where asked for, Markov models; see `Domain.beside_likelihood`."""
    genome = data.corpus.genome
    windows = data.corpus.evaluation_windows(found.split)
    counts = {"bases": windows.symbols, "unknown": windows.unknown, "first_of_record": windows.first_of_record}
    notes: dict[str, Any] = {}
    part = _part(data, found)
    if part is not None:
        bases = sum(map(len, part))
        counts = {"bases": bases, "unknown": bases - found.scored, "first_of_record": 0}
        notes["part"] = Part(
            max_bases=found.max_symbols or 0,
            windows=len(data.evaluation_dataset(found.split, found.max_symbols)),
            of_windows=len(windows.windows),
            of_bases=windows.symbols,
        )
    # Published window rules let training read bases of other splits; both figures are given then.
    unread = data.corpus.unread_windows(found.split, found.trained_length, part) if found.split != "train" else None
    if unread is not None:
        notes["unread"] = score(data.dataset(unread), "batches of what training never read")
    names = genome.genomes if len(genome.genomes) > 1 else []
    genomes: dict[str, dict[str, Any]] = {
        names[group]: dict(scored) for group, scored in found.groups.items() if len(names) > 1
    }
    if found.yardsticks:
        from mamba_bio_audio.pipelines.dna.copies import fit_copies
        from mamba_bio_audio.pipelines.dna.markov import markov_table

        spans = {split: data.corpus.spans(split) for split in ("train", "valid", found.split)}
        scored = part if part is not None else spans[found.split]
        told = None if progress is None else _counting(progress, "Markov baselines, bases")
        fitted = markov_table(genome, spans["train"], spans["valid"], scored, progress=told)
        notes["markov"] = _markov(fitted)
        assert notes["markov"].count == found.scored
        told = None if progress is None else _counting(progress, "copies, bases")
        contexts = sorted({min(data.length, _FAR), _FAR})
        sums = fit_copies(genome, fitted, spans["valid"], contexts).score(genome, scored, progress=told)
        notes["copies"] = [
            CopyScores(context=context, **dict(Scores.of(nats / found.scored))) for context, nats in sums.items()
        ]
        own = [_by_genome(genome, spans) for spans in (spans["train"], spans["valid"], scored)] if genomes else []
        for done, (name, row) in enumerate(genomes.items(), start=1):
            parts = [spans.get(name, []) for spans in own]
            if all(parts):
                row["markov"] = _markov(markov_table(genome, *parts))
                assert row["markov"].count == row["scored"]
            if progress is not None:
                progress("Markov baselines, genomes", done, len(genomes))
    return DnaNotes(**counts, **notes, genomes={name: GenomeScores(**row) for name, row in genomes.items()})


def copy_bar(data: Any, contexts: Sequence[int], progress: Progress | None = None) -> CopyBar:
    """Copies on the best Markov model, all of it fitted on training and chosen on validation.

    Raises:
        InputError: one of the two splits is empty, or a context is longer than what copies are sought in.
    """
    from mamba_bio_audio.pipelines.dna.copies import LONGEST_CONTEXT, fit_copies
    from mamba_bio_audio.pipelines.dna.markov import markov_table

    check_markov(data)
    if max(contexts) > LONGEST_CONTEXT:
        raise InputError(
            f"the copy model seeks copies within {LONGEST_CONTEXT:,} bases, not {max(contexts):,}; give less, or --no-baselines"
        )
    genome, (train, valid) = data.corpus.genome, map(data.corpus.spans, ("train", "valid"))
    told = None if progress is None else _counting(progress, "Markov baselines, bases")
    fitted = markov_table(genome, train, valid, [], progress=told)
    model = fit_copies(genome, fitted, valid, contexts)
    return CopyBar(f"copies on Markov order {fitted.order}", model.nats_of_block)


def _counting(progress: Progress, what: str) -> Any:
    return lambda done, total: progress(what, done, total)


def _part(data: Any, found: Measured) -> list[Span] | None:
    """What the windows of a part score, all but their first base, which is context; None where all are scored."""
    from mamba_bio_audio.pipelines.spans import Span, merge

    dataset = data.evaluation_dataset(found.split, found.max_symbols)
    if len(dataset) == len(data.corpus.evaluation_windows(found.split).windows):
        return None
    return merge(Span(span.record, span.start + 1, span.end) for span in dataset.windows)


def _by_genome(genome: Any, spans: Sequence[Span]) -> Mapping[str, list[Span]]:
    """Spans of each genome file."""
    found: dict[str, list[Span]] = {}
    for span in spans:
        found.setdefault(genome.genomes[genome.genome_of(span.record)], []).append(span)
    return found


def _markov(fitted: MarkovTable) -> Markov:
    orders = [Scores.of(float(nats)) for nats in fitted.test.nats_per_base]
    return Markov(
        count=fitted.test.count,
        chosen_order=fitted.order,
        smoothing=fitted.smoothing,
        best=orders[fitted.order],
        orders=orders,
    )
