"""Compares sampled DNA with the genome that the model was trained on.

    GC                  share of G and C
    CpG o/e             count(CG) x bases / (count(C) x count(G)); 0.2 to 0.25 in vertebrates, whose CpG are methylated
    low complexity      share of 64-base windows whose DUST score (Morgulis et al. 2006) is above 2:
                        sum over triplets c (c - 1) / 2, divided by triplets - 1
    divergence          Jensen-Shannon between the shares of canonical 6-mers, in bits: 0 equal, 1 disjoint
    longest match       longest stretch that is base for base in the training data

What it answers: whether composition and short words are right, whether a long sample drifts or falls into repeats (the
table along the sequence), and whether it recites its training data. It says nothing about genes or function.

Divergence and matches depend on the amount of sequence: a slice of a few hundred bases of the very same genome is about
half a bit from the whole. So held-out sequence of the same amount stands beside all samples, and beside each slice of
them: a slice that is further from the training data than its held-out slice has drifted.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.dna.kmers import canonical_columns, count_kmers
from mamba_bio_audio.pipelines.dna.markov import GenomeLike
from mamba_bio_audio.pipelines.dna.matches import Query, longest_matches
from mamba_bio_audio.pipelines.spans import Span, merge, size_of

K = 6
_DUST_BASES = 64
_DUST_LIMIT = 2.0
_PIECE_BASES = 1 << 20
_A, _C, _G, _T = 7, 8, 9, 10
_COLUMN = canonical_columns(K)
Rows = Sequence[NDArray[np.uint8]]


def sample_report(
    samples: Rows,
    genome: GenomeLike | None = None,
    train: Sequence[Span] = (),
    valid: Sequence[Span] = (),
    *,
    bins: int = 8,
    reference_bases: int | None = 1 << 26,
    progress: Callable[[int, int | None], None] | None = None,
) -> dict[str, Any]:
    """All of these measures for samples, and for training and validation data where given (JSON-able).

    Args:
        samples: token ids, one or more bases each.
        genome: reader of token ids; None leaves out every comparison.
        train, valid: spans of the splits.
        bins: parts that a sample is divided into, along the sequence.
        reference_bases: at most so many training bases are read, in evenly spaced pieces of up to 2^20; None is all.
            The longest match is then one in these.
        progress: called with (bases read, None) while matches are searched.
    """
    if not samples or not all(len(row) for row in samples):
        raise InputError("there are no bases in the samples")
    bases = sum(map(len, samples))
    result: dict[str, Any] = {"samples": len(samples), "bases": bases, "own": composition(samples)}
    parts = [(len(row) * i // bins, len(row) * (i + 1) // bins) for row in samples for i in range(bins)]
    queries = [Query(number // bins, start, end) for number, (start, end) in enumerate(parts)]
    slices = {}
    for i in range(bins):
        if pieces := [samples[q.sequence][q.start : q.end] for q in queries[i::bins] if q.end > q.start]:
            slices[i] = pieces
    along: list[dict[str, Any]] = [
        {"from": i / bins, "to": (i + 1) / bins, **composition(pieces)} for i, pieces in slices.items()
    ]
    result["along"] = along
    if genome is None or not train:
        return result

    chosen = _evenly(sorted(merge(train)), reference_bases)
    spectrum = np.zeros(int(_COLUMN.max()) + 1, np.int64)
    total = _Counts()
    for record, start, end in chosen:
        tokens = genome.fetch(record, start, end)
        spectrum += count_kmers(tokens, K, _COLUMN)
        total.add(tokens)
    result["train"] = {"bases": size_of(chosen), **total.result()}
    result["train"]["of"] = size_of(merge(train))
    own = spectrum_of(samples)
    result["own"]["divergence"] = divergence(own, spectrum)
    result["spectra"] = {"own": own.tolist(), "train": spectrum.tolist()}
    for part, pieces in zip(along, slices.values(), strict=True):
        part["divergence"] = divergence(spectrum_of(pieces), spectrum)

    # Held-out sequence of the size of all samples, and of the size of each slice.
    spans = sorted(merge(valid))
    held_out = _held_out(genome, spans, [query.end - query.start for query in queries])
    groups = [_held_out(genome, spans, [len(row) for row in samples]), *(held_out[i::bins] for i in slices)]
    beside = [list(chain.from_iterable(group)) for group in groups]
    sequences, asked, first = [*samples], [*queries], [len(queries)]
    for rows in beside:
        asked += [Query(len(sequences) + i, 0, len(row)) for i, row in enumerate(rows)]
        sequences += rows
        first.append(len(asked))
    lengths, match = longest_matches(sequences, asked, genome, chosen, locate=len(queries), progress=progress)
    result["own"]["longest_match"] = max(lengths[: len(queries)])
    for part, i in zip(along, slices, strict=True):
        part["longest_match"] = max(lengths[i : len(queries) : bins])
    if match.bases:
        result["match"] = match._asdict()
    for part, rows, low, high in zip([result, *along], beside, first, first[1:], strict=False):
        if rows:
            part["valid"] = composition(rows) | {
                "bases": sum(map(len, rows)),
                "divergence": divergence(spectrum_of(rows), spectrum),
                "longest_match": max(lengths[low:high]),
            }
    if beside[0]:
        result["spectra"]["valid"] = spectrum_of(beside[0]).tolist()
    result["chance_match"] = math.log(2 * bases * result["train"]["bases"], 4)
    return result


def composition(rows: Rows) -> dict[str, float | None]:
    """GC, CpG o/e and low complexity of sequences together; None where there is nothing to divide by."""
    counts = _Counts()
    for row in rows:
        counts.add(row)
    return counts.result()


class _Counts:
    """Counts from which the composition is computed."""

    def __init__(self) -> None:
        self.bases = np.zeros(256, np.int64)
        self.cpg = 0
        self.windows = self.low = 0

    def add(self, tokens: NDArray[np.uint8]) -> None:
        self.bases += np.bincount(tokens, minlength=256)
        self.cpg += int(((tokens[:-1] == _C) & (tokens[1:] == _G)).sum())
        scores = dust_scores(tokens)
        self.windows += len(scores)
        self.low += int((scores > _DUST_LIMIT).sum())

    def result(self) -> dict[str, float | None]:
        a, c, g, t = (int(self.bases[base]) for base in (_A, _C, _G, _T))
        known = a + c + g + t
        return {
            "gc": (c + g) / known if known else None,
            "cpg": self.cpg * known / (c * g) if c and g else None,
            "low_complexity": self.low / self.windows if self.windows else None,
        }


def dust_scores(tokens: NDArray[np.uint8]) -> NDArray[np.float64]:
    """DUST score of every whole 64-base window, end to end; windows with an unknown base are left out."""
    count = len(tokens) // _DUST_BASES
    windows = tokens[: count * _DUST_BASES].reshape(count, _DUST_BASES)
    rows = windows[((windows >= _A) & (windows <= _T)).all(1)].astype(np.int64) - _A
    triplets = rows[:, :-2] * 16 + rows[:, 1:-1] * 4 + rows[:, 2:]
    numbers = triplets + 64 * np.arange(len(rows))[:, None]
    counts = np.bincount(numbers.ravel(), minlength=64 * len(rows)).reshape(len(rows), 64)
    return (counts * (counts - 1) / 2).sum(1) / (triplets.shape[1] - 1)


def spectrum_of(rows: Rows) -> NDArray[np.int64]:
    """Counts of the canonical 6-mers of sequences."""
    counts = np.zeros(int(_COLUMN.max()) + 1, np.int64)
    for row in rows:
        for start in range(0, len(row), _PIECE_BASES):
            counts += count_kmers(row[start : start + _PIECE_BASES + K - 1], K, _COLUMN)
    return counts


def divergence(a: NDArray[np.int64], b: NDArray[np.int64]) -> float | None:
    """Jensen-Shannon divergence of two spectra in bits; None where one is empty."""
    if not a.sum() or not b.sum():
        return None
    p, q = a / a.sum(), b / b.sum()
    middle = (p + q) / 2

    def relative(x: NDArray[np.float64]) -> float:
        there = x > 0
        return float((x[there] * np.log2(x[there] / middle[there])).sum())

    return max(0.0, (relative(p) + relative(q)) / 2)


def _evenly(spans: Sequence[Span], bases: int | None) -> list[Span]:
    """The spans in pieces of up to 2^20, thinned evenly to about `bases`."""
    total = size_of(spans)
    if bases is None or total <= bases:
        return list(spans)
    pieces = [
        Span(record, low, min(low + _PIECE_BASES, end))
        for record, start, end in spans
        for low in range(start, end, _PIECE_BASES)
    ]
    wanted = max(1, round(len(pieces) * bases / total))
    return [pieces[i * len(pieces) // wanted] for i in range(wanted)]


def _held_out(genome: GenomeLike, spans: Sequence[Span], lengths: Sequence[int]) -> list[list[NDArray[np.uint8]]]:
    """For each length as many validation bases, from evenly spread places.

    They are one piece where the span at the place is long enough; else that span and those after it, up to the whole split.
    """
    found = []
    ends = np.cumsum(list(map(len, spans)))
    for number, length in enumerate(lengths if spans else ()):
        place = int(ends[-1]) * number // len(lengths)
        first = int(np.searchsorted(ends, place, "right"))
        pieces: list[NDArray[np.uint8]] = []
        missing = length
        for index in range(first, first + len(spans)):
            if not missing:
                break
            record, low, end = spans[index % len(spans)]
            if index == first:
                low = min(end - (int(ends[first]) - place), max(low, end - length))
            pieces.append(genome.fetch(record, low, min(low + missing, end)))
            missing -= len(pieces[-1])
        found.append(pieces)
    return found


def kmer_spectra(report: dict[str, Any]) -> bytes:
    """Shares of 6-mers in samples, and in as much validation sequence, against those in training sequence, as a PNG.

    Args:
        report: of `sample_report`, with spectra.
    """
    from matplotlib.figure import Figure

    spectra = {name: np.array(counts) / max(1, sum(counts)) for name, counts in report["spectra"].items()}
    shown = [(name, title) for name, title in (("own", "samples"), ("valid", "validation")) if name in spectra]
    figure = Figure(figsize=(5.2 * len(shown), 4.6), layout="constrained")
    for axes, (name, title) in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        both = (spectra[name] > 0) & (spectra["train"] > 0)
        axes.loglog(spectra["train"][both], spectra[name][both], ".", markersize=3, alpha=0.5)
        ends = [spectra["train"][both].min(), spectra["train"][both].max()] if both.any() else [1e-4, 1e-3]
        axes.loglog(ends, ends, color="black", linewidth=0.8)
        divergence = report["own" if name == "own" else "valid"]["divergence"]
        axes.set(
            xlabel="share of each 6-mer, training", ylabel=f"share, {title}", title=f"divergence {divergence:.4f} bits"
        )
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, format="png")
    return buffer.getvalue()


def describe_samples(result: dict[str, Any]) -> str:
    """The report for people."""
    lines = [f"{result['samples']:,} sample{'s' * (result['samples'] != 1)}, {result['bases']:,} bases", ""]
    lines.append(f"{'':<22}{'GC':>8}{'CpG o/e':>9}{'low compl.':>12}{'divergence':>12}{'longest match':>15}")
    for key, name in (("own", "samples"), ("valid", "validation"), ("train", "train")):
        if key in result:
            lines.append(_line(name, result[key]))
    lines += ["", "along the sequence" + ", each slice above as many validation bases" * ("valid" in result)]
    for row in result["along"]:
        lines.append(_line(f"{row['from']:.1%} to {row['to']:.1%}", row))
        if "valid" in row:
            lines.append(_line("  validation", row["valid"]))
    if "train" in result:
        lines.append("")
        lines.append(
            f"Divergence and matches are to {result['train']['bases']:,} of {result['train']['of']:,} training bases; "
            f"by chance alone about {result['chance_match']:.0f} bases would match."
        )
    if "match" in result:
        match = result["match"]
        lines.append(
            f"The longest match, {match['bases']:,} bases, is sample {match['sequence']} from {match['position']:,}: "
            f"{match['record']}:[{match['start']:,}, {match['start'] + match['bases']:,}) {match['strand']}"
        )
    return "\n".join(lines)


def _line(name: str, row: dict[str, Any]) -> str:
    def cell(key: str, form: str, width: int) -> str:
        value = row.get(key)
        return f"{'' if value is None else format(value, form):>{width}}"

    return (
        f"{name:<22}{cell('gc', '.3f', 8)}{cell('cpg', '.3f', 9)}{cell('low_complexity', '.2%', 12)}"
        f"{cell('divergence', '.4f', 12)}{cell('longest_match', ',', 15)}"
    )
