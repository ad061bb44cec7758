"""What `mba evaluate --metrics sampling` does: how the run's samples should be drawn, kept in the run folder."""

from __future__ import annotations

import datetime
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.files import write_json
from mamba_bio_audio.jobs.evaluate_kept import keep
from mamba_bio_audio.jobs.evaluate_results import Kept
from mamba_bio_audio.run.sampling import SETTINGS_NAME

if TYPE_CHECKING:
    from mamba_bio_audio.jobs.evaluate import EvaluateOptions, Opened
    from mamba_bio_audio.pipelines.contract import Progress

# Validation symbols that the temperature is fitted on.
_SYMBOLS = {"cpu": 1 << 17, "cuda": 1 << 20}
_EACH = 4


class SamplingResult(Kept):
    """Fitted temperature, top-p and min-p, and what they were chosen from.

    Attributes:
        likelihood_temperature: the best by validation likelihood alone.
        likelihood: bits per validation symbol by temperature.
        valid_bits: the same at temperature 1.
        length, each: of the generated pieces: symbols, and how many per cell.
        recorded: 5 %, median and 95 % of validation recordings by measure; empty where only the likelihood was looked at.
        grid: a row per cell: distance from recordings and its parts, medians, share inside, bits at temperature 1.
        seconds: what it took: likelihood, generating, measuring.
    """

    run: str
    which: str
    weights_sha256: str
    temperature: float
    top_p: float | None
    min_p: float | None = None
    likelihood_temperature: float
    likelihood: dict[str, float]
    likelihood_symbols: int
    valid_bits: float
    length: int | None = None
    each: int | None = None
    seed: int
    recorded: dict[str, list[float]] = Field(default_factory=dict)
    grid: list[dict[str, Any]] = Field(default_factory=list)
    seconds: dict[str, float]
    device: str
    made: str

    def text(self) -> str:
        """The table of the grid, the choice, and what it cost."""
        lines = [
            f"by the likelihood of {self.likelihood_symbols:,} validation symbols: temperature "
            f"{self.likelihood_temperature:g} ({min(self.likelihood.values()):.4f} bits or fewer, instead of "
            f"{self.valid_bits:.4f} at temperature 1)"
        ]
        if self.grid:
            names = list(self.recorded)
            lines += [
                "",
                f"{self.each} pieces of {self.length:,} per cell; medians, and in brackets the distance from recordings",
            ]
            lines.append(
                f"{'T':>6}{'top-p':>7}{'min-p':>7}{'distance':>10}{'inside':>8}{'bits':>7}"
                + "".join(f"{n:>16}" for n in names)
            )
            for row in self.grid:
                own = (row["temperature"], row["top_p"], row.get("min_p", 0.0))
                chosen = own == (self.temperature, self.top_p or 1.0, self.min_p or 0.0)
                cells = "".join(f"{row['values'][name]:>8.2f} ({row['parts'][name]:.2f})" for name in names)
                lines.append(
                    f"{own[0]:>6g}{own[1]:>7g}{own[2]:>7g}{row['distance']:>10.3f}{row['inside']:>8.0%}"
                    f"{row['bits']:>7.3f}{cells}" + ("  <" if chosen else "")
                )
            low, middle, high = ("".join(f"{self.recorded[name][i]:>10.2f}      " for name in names) for i in range(3))
            lines += [
                f"{'recorded:  5 %':<45}{low}",
                f"{'        median':<45}{middle}",
                f"{'          95 %':<45}{high}",
            ]
        cost = ", ".join(f"{what} {seconds:.0f} s" for what, seconds in self.seconds.items())
        cuts = (("top-p", self.top_p), ("min-p", self.min_p))
        cut = "".join(f", {name} {value:g}" for name, value in cuts if value is not None)
        lines += ["", f"fitted: temperature {self.temperature:g}{cut} ({cost} on {self.device})"]
        if beyond := untried(self.temperature, self.top_p, self.min_p, self.grid):
            lines.append(
                f"That lies at the edge of the grid: not tried, and perhaps better, are {beyond}. Give some to mba sample, "
                "which measures its samples; a model that needs them is best trained longer."
            )
        if not self.not_kept:
            lines.append(f"kept as {Path(self.run) / SETTINGS_NAME}; mba sample draws so unless told otherwise")
        return "\n".join(lines)


def untried(
    temperature: float, top_p: float | None, min_p: float | None, grid: Sequence[Mapping[str, Any]]
) -> str | None:
    """What lies beyond the edges of a grid where the chosen cell lies at one; None elsewhere, and without a grid."""
    if not grid:
        return None
    temperatures, shares = ({row[name] for row in grid} for name in ("temperature", "top_p"))
    least = {row.get("min_p", 0.0) for row in grid}
    beyond = []
    if temperature in (min(temperatures), max(temperatures)):
        beyond.append(f"temperatures {'below' if temperature == min(temperatures) else 'above'} {temperature:g}")
    if top_p == min(shares):
        beyond.append(f"top-p below {top_p:g}")
    if min_p is not None and min_p == max(least):
        beyond.append(f"min-p above {min_p:g}")
    return " and ".join(beyond) or None


def fit_sampling(opened: Opened, options: EvaluateOptions, progress: Progress) -> SamplingResult:
    """Fit temperature, top-p and min-p on validation data, and keep them in the run folder.

    Args:
        opened: the run.
        options: `length` of each generated piece, `num_samples` per cell of the grid, `seed`.
        progress: called with (what, done, in all).
    """
    from mamba_bio_audio.evaluation import sampling
    from mamba_bio_audio.run import saved

    opened.need_language_model("--metrics sampling")
    model, data, each, seed = opened.model, opened.data, options.num_samples or _EACH, options.seed
    if not (options.run / "config.yaml").exists():
        raise InputError(
            f"{options.run}: not a run folder; fitted settings are kept in the folder that mba pretrain wrote"
        )
    model.to(opened.device)
    data.corpus.check_evaluation("valid")
    allowed = model.codec.sample_ids
    clock = [time.perf_counter()]
    found = sampling.calibrate(
        model,
        data.evaluation_dataloader("valid", max_tokens=max(data.length, _SYMBOLS[opened.device])),
        allowed,
        progress=lambda done, total: progress("scoring batches", done, total),
    )
    clock.append(time.perf_counter())
    values: dict[str, Any] = {"temperature": found.temperature, "top_p": None}
    seconds = {"likelihood": clock[1] - clock[0]}
    if (matcher := opened.domain.matcher(data.corpus, options.length)) is not None:
        cells = sampling.grid(found.temperature)
        made, nats = sampling.pieces(
            model,
            cells,
            start=[model.codec.start_id],
            allowed=allowed,
            length=matcher.length,
            each=each,
            seed=seed,
            progress=lambda done, total: progress("generating steps", done, total),
        )
        clock.append(time.perf_counter())
        matches = []
        for number, samples in enumerate(made):
            matches.append(matcher.match(samples))
            progress("comparing cells", number + 1, len(cells))
        best = min(range(len(cells)), key=lambda number: matches[number].distance)
        seconds |= {"generating": clock[2] - clock[1], "measuring": time.perf_counter() - clock[2]}
        values |= {
            **cells[best].options,
            "length": matcher.length,
            "each": each,
            "recorded": matcher.recorded_values(),
            "grid": [
                {**cell._asdict(), **match._asdict(), "bits": sampling.bits(own)}
                for cell, match, own in zip(cells, matches, nats, strict=True)
            ],
        }
    result = SamplingResult(
        run=str(options.run),
        which=saved.describe_which(opened.config, options.which),
        weights_sha256=opened.asked()["weights_sha256"],
        likelihood_temperature=found.temperature,
        likelihood={f"{temperature:g}": sampling.bits(nats) for temperature, nats in found.nats.items()},
        likelihood_symbols=found.symbols,
        valid_bits=sampling.bits(found.nats[1.0]),
        seed=seed,
        seconds=seconds,
        device=opened.device,
        made=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **values,
    )
    return keep(options.run, result, lambda: write_json(options.run / SETTINGS_NAME, result.to_json()))
