"""What `mba evaluate --metrics sc09` and `sc09-judge` find: typed, as text and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mamba_bio_audio.jobs.contract import Result
from mamba_bio_audio.jobs.evaluate_results import Kept
from mamba_bio_audio.pipelines.audio.speech_commands import DIGITS
from mamba_bio_audio.pipelines.scores import Found

# Gu & Dao 2023, table 4: NLL in bits, FID, IS, mIS, AM.
PUBLISHED = {
    "SampleRNN 35.0M": (2.042, 8.96, 1.71, 3.02, 1.76),
    "WaveNet 4.2M": (1.925, 5.08, 2.27, 5.80, 1.47),
    "SaShiMi 5.8M": (1.873, 1.99, 5.13, 42.57, 0.74),
    "WaveGAN 19.1M": (None, 2.03, 4.90, 36.10, 0.80),
    "DiffWave + SaShiMi 23.0M": (None, 1.42, 5.94, 69.17, 0.59),
    "Mamba 6.1M": (1.852, 0.94, 6.26, 88.54, 0.52),
    "Mamba 24.3M": (1.860, 0.67, 7.33, 144.9, 0.36),
    "train": (None, 0.00, 8.56, 292.5, 0.16),
    "test": (None, 0.02, 8.33, 257.6, 0.19),
}
JUDGE_SCORES = ("FID", "IS", "mIS", "AM", "NDB")


class JudgeNote(Found):
    """What is kept of a judge or recogniser (`evaluation.digits.load_judge`): its data, its training, how well it does.

    Attributes:
        false_clips, refused: of a recogniser; the share of impostors of test clips that it refuses, by kind.
    """

    data: list[str]
    splits: str | None
    kind: str
    epochs: int
    batch_size: int
    lr: float
    weight_decay: float
    augment: bool
    seed: int
    false_clips: int | None = None
    parameters: int
    accuracy: dict[str, float]
    clips: dict[str, int]
    refused: dict[str, float] | None = None
    history: list[dict[str, Any]]
    cached: str
    environment: dict[str, Any]


class JudgeResult(Result):
    """Judge and recogniser of a run's recordings."""

    judge: JudgeNote
    recogniser: JudgeNote

    def text(self) -> str:
        """How well each does, and where it is kept."""
        lines = []
        for name, note in (("judge", self.judge), ("recogniser", self.recogniser)):
            right = ", ".join(f"{split} {share:.1%} of {note.clips[split]:,}" for split, share in note.accuracy.items())
            lines.append(
                f"{name}: {note.kind}, {note.parameters:,} parameters, {note.epochs} epochs; correct clips: {right}"
            )
            if note.refused is not None:
                lines.append(f"{name}: refused as no digit: {_shares(note.refused)} of impostors of test clips")
            lines.append(f"{name}: kept in {note.cached}; to ask it: mba predict {note.cached} FILE...")
        return "\n".join(lines)


def _shares(values: Mapping[str, float | None]) -> str:
    return ", ".join(f"{name} -" if share is None else f"{name} {share:.1%}" for name, share in values.items())


class EqualN(Found):
    """FID of equally many clips."""

    n: int
    generated: float
    test: float


class Recognised(Found):
    """Share of each set of clips that the recogniser accepts as a single digit."""

    recogniser: JudgeNote
    limits: dict[str, float]
    threshold: float
    shares: dict[str, float]
    judge_agrees: dict[str, float | None]


class Nearest(Found):
    """Median distance of clips to the nearest training clip."""

    generated_median: float
    test_median: float


class OfClass(Found):
    """How often clips are the digit that was asked for (`evaluation.digits.asked_for`)."""

    digit: str
    n: int
    named: float
    recognised: float
    both: float
    heard: list[int]


class DigitsResult(Kept):
    """Scores of generated digits beside recordings, impostors and silence; how far they compare with published ones."""

    run: str
    which: str
    weights_sha256: str | None = None
    protocol: str
    temperature: float | None = None
    top_p: float | None = None
    guidance: float | None = None
    generated: int
    scored: int
    seed: int
    judge: JudgeNote
    quantizer: str
    test_bits: float
    rows: dict[str, dict[str, int | float | None]]
    intervals: dict[str, tuple[float | None, float | None]]
    FID_at_equal_n: EqualN
    recognised: Recognised
    nearest_training_clip: Nearest
    by_class: dict[str, list[OfClass]] | None = None
    files: list[dict[str, Any]]
    split_source: str
    comparable: bool
    not_comparable_because: list[str]
    environment: dict[str, Any]

    def text(self) -> str:
        """Tables for people."""
        right = self.judge.accuracy
        named = (("temperature", self.temperature), ("top-p", self.top_p), ("guidance", self.guidance))
        drawn = "".join(f", {name} {value:g}" for name, value in named if value is not None)
        lines = [
            f"{self.scored:,} of {self.generated:,} samples, protocol {self.protocol}{drawn}, {self.which} weights; "
            f"test {self.test_bits:.4f} bits per sample ({self.quantizer})",
            f"judge: {self.judge.kind}, {right['valid']:.1%} correct on validation clips, {right['test']:.1%} on test "
            f"clips ({self.split_source})",
            "",
            f"{'':<28}{'n':>8}" + "".join(f"{name:>11}" for name in JUDGE_SCORES) + f"{'recognised':>12}",
        ]
        for name, row in self.rows.items():
            share = self.recognised.shares[name]
            cells = "".join(f"{row[score]:>11.4g}" for score in JUDGE_SCORES)
            lines.append(f"{name:<28}{row['n']:>8,}{cells}{share:>12.1%}")
        spans = {name: self.intervals[name] for name in JUDGE_SCORES if name in self.intervals}
        shown = ", ".join(f"{name} {low:.4g} to {high:.4g}" for name, (low, high) in spans.items())
        equal, near, recognised = self.FID_at_equal_n, self.nearest_training_clip, self.recognised
        recogniser = recognised.recogniser
        lines += [
            "",
            f"generated, 95 % intervals: {shown}",
            f"FID at n = {equal.n:,}: generated {equal.generated:.4g}, test {equal.test:.4g}",
            f"median distance to the nearest training clip: generated {near.generated_median:.4g}, "
            f"test {near.test_median:.4g} (far smaller: copies)",
            f"recognised: one digit has a probability above {recognised.threshold:.3f}, which is at least one half and lets "
            f"at most 5 % of each kind of impostor of test clips pass ({', '.join(recognised.limits)})",
            f"of these the judge names the same digit for {_shares(recognised.judge_agrees)}",
            f"recogniser: the judge's network with a class for no digit, {recogniser.accuracy['valid']:.1%} correct on "
            f"validation clips, {recogniser.accuracy['test']:.1%} on test clips; refused {_shares(recogniser.refused or {})}",
            *([] if self.by_class is None else _by_class(self.by_class)),
            "",
            "published (Gu & Dao 2023, table 4), not comparable: " + "; ".join(self.not_comparable_because),
            f"{'':<28}{'bits':>8}" + "".join(f"{name:>10}" for name in JUDGE_SCORES[:4]),
        ]
        for name, (bits, *values) in PUBLISHED.items():
            cells = "".join("-".rjust(10) if value is None else f"{value:>10.4g}" for value in values)
            lines.append(f"{name:<28}" + ("-".rjust(8) if bits is None else f"{bits:>8.4g}") + cells)
        return "\n".join(lines)


def _by_class(found: Mapping[str, Sequence[OfClass]]) -> list[str]:
    """How often clips are the digit that was asked for: a table, and what the judge heard instead."""
    generated, test = found["generated"], {row.digit: row for row in found["test"]}
    lines = [
        "",
        f"{'asked for':<12}{'n':>7}{'named':>9}{'recognised':>12}{'both':>9}{'test clips: both':>19}  heard most",
    ]
    for row in generated:
        other = f"{test[row.digit].both:>19.1%}" if row.digit in test else f"{'-':>19}"
        most = sorted(((count, word) for count, word in zip(row.heard, DIGITS, strict=True) if count), reverse=True)[:3]
        lines.append(
            f"{row.digit:<12}{row.n:>7,}{row.named:>9.1%}{row.recognised:>12.1%}{row.both:>9.1%}{other}  "
            + ", ".join(f"{word} {count:,}" for count, word in most)
        )
    count = sum(row.n for row in generated)
    means = [sum(getattr(row, name) * row.n for row in generated) / count for name in ("named", "recognised", "both")]
    tested = sum(row.both * row.n for row in test.values()) / max(1, sum(row.n for row in test.values()))
    lines.append(f"{'all':<12}{count:>7,}{means[0]:>9.1%}{means[1]:>12.1%}{means[2]:>9.1%}{tested:>19.1%}")
    return lines
