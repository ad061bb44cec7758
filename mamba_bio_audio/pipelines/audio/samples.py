"""Compares sampled sound with held-out recordings, second by second (`measures.py` says by what).

Held-out recordings go through the same quantiser and the same 16 bits, and are cut into pieces as long as those of the
samples: up to ten seconds, and one second. A value is inside where it lies in the 5 to 95 % range of held-out pieces of its
length. Of the held-out pieces themselves not all lie inside by all measures at once, and how many do stands beside.

A sample can lie inside and be no music: nothing is compared that lasts longer than a few frames.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mamba_bio_audio.pipelines.audio.measures import (
    CLICK_LIMIT,
    JUDGED,
    Sound,
    analyse,
    click_limit,
    measure,
)
from mamba_bio_audio.pipelines.audio.quantize import AudioCodec
from mamba_bio_audio.pipelines.audio.yardsticks import Levels
from mamba_bio_audio.pipelines.contract import Match, Matcher
from mamba_bio_audio.pipelines.corpus import Corpus
from mamba_bio_audio.pipelines.spans import Span

LONGEST_S = 10.0
HELD_OUT = ("valid", "test")
_MOST_PIECES = 64
_LOW, _HIGH = 5, 95
_UNSURE = 0.1
_SEAM_S, _SEAM_LEVEL_S = 0.005, 0.25
Values = dict[str, NDArray[np.float64]]
Told = Callable[[int, int | None], None]


class Sample(NamedTuple):
    """Sampled sound.

    Attributes:
        name: of its file.
        levels: (n,), without the prompt.
        prompt: levels of what it continues, where that is known.
    """

    name: str
    levels: Levels
    prompt: Levels | None = None


def held_out(corpus: Corpus, length: int, splits: Sequence[str] = HELD_OUT) -> list[Levels]:
    """The levels of `held_out_spans`."""
    return [corpus.fetch(span) for span in held_out_spans(corpus, length, splits)]


def held_out_spans(corpus: Corpus, length: int, splits: Sequence[str] = HELD_OUT) -> list[Span]:
    """Up to 64 pieces of recordings that were not trained on, evenly spread, each of `length` levels.

    They overlap where there would be few. Of recordings that are all shorter, such as clips of words, whole ones are taken.
    """
    spans = [span for split in splits for span in corpus.spans(split)]
    hop = max(1, length // 8)
    pieces = [
        Span(record, low, low + length) for record, start, end in spans for low in range(start, end - length + 1, hop)
    ]
    pieces = pieces or spans
    count = min(_MOST_PIECES, len(pieces))
    return [pieces[number * len(pieces) // count] for number in range(count)]


def piece_lengths(samples: int, rate_hz: int) -> list[int]:
    """Lengths of the pieces that sounds of so many samples are cut into: one second where there are two, and up to ten."""
    whole = min(samples, round(LONGEST_S * rate_hz))
    return [rate_hz, whole] if whole >= 2 * rate_hz else [whole]


def measured_pieces(sounds: Sequence[Sound], length: int, limit: float) -> Values:
    """Every measure of every whole piece of sounds, in order; of a sound that is shorter, of all of it."""
    found: list[dict[str, float]] = []
    for sound in sounds:
        size = min(length, len(sound.audio))
        found += [measure(sound, low, low + size, limit) for low in range(0, len(sound.audio) - size + 1, size)]
    return {name: np.array([values[name] for values in found]) for name in found[0]}


def ranges_of(values: Values) -> dict[str, list[float]]:
    """5 %, median and 95 % of each measure."""
    return {name: np.percentile(column, (_LOW, 50, _HIGH)).tolist() for name, column in values.items()}


def inside(values: Values, ranges: Mapping[str, Sequence[float]]) -> dict[str, NDArray[np.bool_]]:
    """Which pieces lie within the range of each measure."""
    # Rates are multiples of what one event makes, and must not leave by rounding.
    return {
        name: (column >= ranges[name][0] - 1e-9) & (column <= ranges[name][2] + 1e-9) for name, column in values.items()
    }


def safely(values: Values, ranges: Mapping[str, Sequence[float]]) -> dict[str, NDArray[np.float64]]:
    """How probably pieces lie within the ranges, were the ends of these uncertain by a tenth of the range (Gaussian).

    Of pieces that are counted as inside, some lie there only just, and the next ones will not. Nothing happens less than never.
    """
    from scipy.special import ndtr

    found = {}
    for name, within in inside(values, ranges).items():
        (low, _, high), column = ranges[name], values[name]
        unsure = _UNSURE * (high - low)
        if unsure == 0:
            found[name] = within.astype(np.float64)
            continue
        found[name] = ndtr((high - column) / unsure)
        if low != 0:
            found[name] *= ndtr((column - low) / unsure)
    return found


def all_judged(within: Mapping[str, NDArray[np.bool_]]) -> NDArray[np.bool_]:
    """Which pieces lie within the ranges of level, flatness, clicks, onsets and entropy."""
    return np.logical_and.reduce([within[name] for name in JUDGED])


def sample_report(
    samples: Sequence[Sample],
    codec: AudioCodec,
    corpus: Corpus | None = None,
    *,
    progress: Told | None = None,
) -> dict[str, Any]:
    """All of these measures for samples, and for held-out recordings where there are some (JSON-able).

    Args:
        samples: one or more levels of each.
        codec: the quantiser.
        corpus: of the run; None leaves out every comparison.
        progress: called with (samples of sound analysed, None).
    """
    done = 0

    def analysed(levels: Levels) -> Sound:
        nonlocal done
        done += len(levels)
        if progress is not None:
            progress(done, None)
        return analyse(levels, codec)

    rate = codec.sample_rate_hz
    lengths = piece_lengths(min(len(sample.levels) for sample in samples), rate)
    recorded = [] if corpus is None else [analysed(levels) for levels in held_out(corpus, lengths[-1])]
    limit = click_limit(recorded) if recorded else CLICK_LIMIT
    rows: list[dict[str, Any]] = []
    for sample in samples:
        # Piece by piece, as recordings are, so that memory does not depend on the length.
        wholes = range(0, len(sample.levels) - lengths[-1] + 1, lengths[-1])
        parts: list[list[Values]] = [[] for _ in lengths]
        for low in wholes:
            sound = analysed(sample.levels[low : low + lengths[-1]])
            for part, length in zip(parts, lengths, strict=True):
                part.append(measured_pieces([sound], length, limit))
        rows.append(
            {"file": sample.name, "seconds": len(sample.levels) / rate, "pieces": [_joined(part) for part in parts]}
        )
    result: dict[str, Any] = {
        "samples": len(samples),
        "quantizer": codec.description,
        "sample_rate_hz": rate,
        "click_limit": limit,
        "left_out_s": max(len(sample.levels) % lengths[-1] for sample in samples) / rate,
        "own": {},
        "pieces": [],
    }
    for number, length in enumerate(lengths):
        own = _joined([row["pieces"][number] for row in rows])
        whole: dict[str, Any] = {"seconds": length / rate, "count": len(own["level"]), "own": ranges_of(own)}
        ranges = None
        if recorded:
            theirs = measured_pieces(recorded, length, limit)
            ranges = ranges_of(theirs)
            within, themselves = inside(own, ranges), inside(theirs, ranges)
            whole |= {
                "held_out": ranges,
                "inside": {name: int(column.sum()) for name, column in within.items()},
                "inside_all": int(all_judged(within).sum()),
                "held_out_pieces": len(theirs["level"]),
                "held_out_inside": {name: float(column.mean()) for name, column in themselves.items()},
                "held_out_inside_all": float(all_judged(themselves).mean()),
            }
        result["pieces"].append(whole)
        for row in rows:
            row["pieces"][number] = _shown(row["pieces"][number], length / rate, ranges)
    result["own"] = {name: middle for name, (_, middle, _) in result["pieces"][0]["own"].items()}
    if prompted := [sample for sample in samples if sample.prompt is not None]:
        joined = [(sample.prompt[-rate:], sample.levels[:rate]) for sample in prompted]  # type: ignore[index]
        seams = _seams([(analyse(np.concatenate(both), codec), len(both[0])) for both in joined])
        result["seam"] = {"own": {name: _rounded(column) for name, column in seams.items()}}
        if places := [(sound, at) for sound in recorded for at in range(rate, len(sound.audio) - rate // 4, rate)]:
            result["seam"]["held_out"] = ranges_of(_seams(places))
    result["rows"] = rows
    return result


def _joined(parts: Sequence[Values]) -> Values:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _shown(values: Values, seconds: float, ranges: Mapping[str, Sequence[float]] | None) -> dict[str, Any]:
    """The pieces of a sample for the report: values by measure, and which of the five are outside in each."""
    outside = None
    if ranges is not None:
        within = inside(values, ranges)
        outside = [[name for name in JUDGED if not within[name][piece]] for piece in range(len(values["level"]))]
    return {
        "seconds": seconds,
        "values": {name: _rounded(column) for name, column in values.items()},
        "outside": outside,
    }


def _seams(places: Sequence[tuple[Sound, int]]) -> Values:
    """What is heard where one sound is followed by another: largest error of prediction, and change of level in dB."""
    found: dict[str, list[float]] = {"error": [], "level": []}
    for sound, at in places:
        around = round(_SEAM_LEVEL_S * sound.rate_hz)
        before, after = (
            np.square(part).mean() + 1e-12
            for part in (sound.audio[max(0, at - around) : at], sound.audio[at : at + around])
        )
        found["error"].append(float(np.abs(sound.errors[at : at + round(_SEAM_S * sound.rate_hz)]).max()))
        found["level"].append(float(10 * np.log10(after / before)))
    return {name: np.array(column) for name, column in found.items()}


def _rounded(column: NDArray[np.float64]) -> list[float]:
    return [float(f"{value:.5g}") for value in column]


class SoundMatcher(Matcher):
    """Distance of generated pieces from held-out recordings, per second, and how many whole pieces lie inside.

    For each measure that samples are judged by: the Wasserstein distance between the values of generated and of recorded
    seconds, in units of the 5 to 95 % range of the recorded ones; what lies more than a range outside counts as a range
    outside, so that one piece that turned to noise does not hide the others. The distance is the sum. 0.05 is about what two
    halves of one set of recordings have; 1 is outside.

    Args:
        corpus: of the run.
        codec: the quantiser.
        length: levels of each generated piece.
    """

    def __init__(self, corpus: Corpus, codec: AudioCodec, length: int) -> None:
        self.codec, self.length = codec, length
        sounds = [analyse(levels, codec) for levels in held_out(corpus, length)]
        self.limit = click_limit(sounds)
        self.piece = piece_lengths(length, codec.sample_rate_hz)[0]
        self.recorded = measured_pieces(sounds, self.piece, self.limit)
        self.ranges = ranges_of(self.recorded)
        self.whole_ranges = ranges_of(measured_pieces(sounds, length, self.limit))

    def measure(self, sample: Levels) -> tuple[Values, Values]:
        """The measures of its seconds, and of the whole."""
        sound = analyse(sample, self.codec)
        return measured_pieces([sound], self.piece, self.limit), measured_pieces([sound], self.length, self.limit)

    def match(self, measured: Sequence[tuple[Values, Values]], weights: Sequence[float] | None = None) -> Match:
        """Distances, medians and how many pieces lie inside."""
        from scipy.stats import wasserstein_distance

        # What is never kept has no median, and a distance takes no weights without a sum.
        shares = np.full(len(measured), 1 / len(measured)) if weights is None else np.asarray(weights)
        own, wholes = (_joined(parts) for parts in zip(*measured, strict=True))
        of_seconds = shares.repeat([len(seconds["level"]) for seconds, _ in measured])
        distances = {}
        for name in JUDGED:
            low, _, high = self.ranges[name]
            # Where recordings hardly vary, what a listener hardly hears is the unit.
            unit = max(high - low, 0.5)
            both = (values[name].clip(low - unit, high + unit) for values in (own, self.recorded))
            distances[name] = float(wasserstein_distance(*both, u_weights=of_seconds) / unit)
        within, surely = inside(wholes, self.whole_ranges), safely(wholes, self.whole_ranges)
        return Match(
            sum(distances.values()),
            distances,
            {name: float(np.quantile(own[name], 0.5, weights=of_seconds, method="inverted_cdf")) for name in JUDGED},
            {name: float(within[name] @ shares) for name in JUDGED},
            {name: float(surely[name] @ shares) for name in JUDGED},
        )

    def recorded_values(self) -> dict[str, list[float]]:
        """5 %, median and 95 % of seconds of held-out recordings."""
        return {name: self.ranges[name] for name in JUDGED}


def describe_samples(report: Mapping[str, Any]) -> str:
    """The report for people."""
    count, pieces = report["samples"], report["pieces"]
    lines = [f"{count:,} recording{'s' * (count != 1)}, {report['quantizer']}"]
    for part in pieces:
        lines += ["", f"pieces of {part['seconds']:g} s: {part['count']:,}"]
        if "held_out" in part:
            lines[-1] += f" beside {part['held_out_pieces']:,} of held-out recordings"
            lines.append(
                f"{'':<18}{'held out: 5 %':>14}{'median':>9}{'95 %':>9}{'inside':>8}{'samples: median':>18}{'inside':>14}"
            )
            for name in part["own"]:
                low, middle, high = part["held_out"][name]
                # Reports of earlier versions do not have it.
                share = part.get("held_out_inside", {}).get(name)
                theirs = "" if share is None else f"{share:.0%}"
                verdict = f"{part['inside'][name]:,} of {part['count']:,}"
                own = part["own"][name][1]
                lines.append(
                    f"{_title(name):<18}{low:>14.2f}{middle:>9.2f}{high:>9.2f}{theirs:>8}{own:>18.2f}{verdict:>14}"
                )
            lines.append(
                f"inside by all of {', '.join(JUDGED)}: {part['inside_all']:,} of {part['count']:,} "
                f"(of the held-out pieces themselves {part['held_out_inside_all']:.0%})"
            )
        else:
            lines += [f"{_title(name):<18}{own[1]:>9.2f}" for name, own in part["own"].items()]
    if "seam" in report:
        seam = report["seam"]
        lines += [
            "",
            "where the prompt ends (largest error of prediction in 5 ms, in running scales; change of level in dB)",
        ]
        for name, values in seam["own"].items():
            text = f"{name:<18}{np.median(values):>9.2f}"
            if "held_out" in seam:
                low, _, high = seam["held_out"][name]
                text += f"   within recordings {low:.2f} to {high:.2f}"
            lines.append(text)
    if report["left_out_s"]:
        lines += [
            "",
            f"Not measured: up to {report['left_out_s']:.3g} s at the end of a recording, less than a whole piece.",
        ]
    lines += ["", f"A click is an error of prediction beyond {report['click_limit']:.1f} running scales."]
    return "\n".join(lines)


def _title(name: str) -> str:
    unit = JUDGED.get(name) or ("dB" if name.startswith("octave") else "share")
    return f"{name}, {unit}"


def picture(report: Mapping[str, Any]) -> bytes:
    """Each measure over time, a line a sample, on the range of held-out recordings; the octaves beside, as a PNG."""
    from matplotlib.figure import Figure

    part = report["pieces"][0]
    names = [name for name in part["own"] if not name.startswith("octave")]
    octaves = [name for name in part["own"] if name.startswith("octave")]
    figure = Figure(figsize=(14, 5.6), layout="constrained")
    panels = figure.subplots(2, 4).ravel()
    for axes, name in zip(panels, names, strict=False):
        for row in report["rows"]:
            values = row["pieces"][0]["values"][name]
            axes.plot((np.arange(len(values)) + 0.5) * part["seconds"], values, marker=".", linewidth=0.8, alpha=0.6)
        if "held_out" in part:
            low, middle, high = part["held_out"][name]
            axes.axhspan(low, high, color="black", alpha=0.1, linewidth=0)
            axes.axhline(middle, color="black", linewidth=0.8, linestyle="--")
        axes.set(title=_title(name), xlabel="s")
    axes = panels[len(names)]
    centres = [float(name.split()[1]) for name in octaves]
    if "held_out" in part:
        ranges = np.array([part["held_out"][name] for name in octaves])
        axes.fill_between(centres, ranges[:, 0], ranges[:, 2], color="black", alpha=0.1, linewidth=0)
        axes.plot(centres, ranges[:, 1], color="black", linewidth=0.8, linestyle="--")
    for row in report["rows"]:
        axes.semilogx(
            centres, [np.median(row["pieces"][0]["values"][name]) for name in octaves], linewidth=0.8, alpha=0.6
        )
    axes.set(title="octaves, dB", xlabel="Hz")
    for axes in panels[len(names) + 1 :]:
        axes.set_axis_off()
    figure.suptitle(
        "Each line a sample; grey: 5 to 95 % of held-out recordings, dashed: their median", fontsize="medium"
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=90, format="png")
    return buffer.getvalue()
