"""What `mba evaluate --metrics sampling` does: how the run's samples should be drawn, kept in the run folder."""

from __future__ import annotations

import datetime
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from pydantic import Field

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.files import write_json
from mamba_bio_audio.jobs.evaluate_kept import keep
from mamba_bio_audio.jobs.evaluate_results import Kept
from mamba_bio_audio.run.sampling import SETTINGS_NAME, in_words

if TYPE_CHECKING:
    from mamba_bio_audio.evaluation.sampling import Cell
    from mamba_bio_audio.jobs.evaluate import EvaluateOptions, Opened
    from mamba_bio_audio.pipelines.contract import Matcher, Progress

# Validation symbols that the temperature is fitted on.
_SYMBOLS = {"cpu": 1 << 17, "cuda": 1 << 20}
# Pieces of each cell; more rows cost a GPU hardly more time.
_EACH = {"cpu": 4, "cuda": 8}
# The pieces of the grid are shorter than those of the finalists, two from each of so many pairs of neighbours, with so many
# times as many pieces.
_SHORTER = 0.25
_INTERVALS, _AGAIN = {"cpu": 2, "cuda": 4}, {"cpu": 5, "cuda": 8}
# Of how many pieces the best may be kept; the grid is compared by the best of half of its own. What is worse by no more than
# this share inside, and takes fewer pieces, is taken. The best of more than a fifth of the pieces would be hardly any of them.
_BEST_OF, _FEWEST, _WORSE = (1, 2, 4, 8), 5, 0.02


class SamplingResult(Kept):
    """Fitted settings, and what they were chosen from.

    Attributes:
        likelihood_temperature: the best by validation likelihood alone.
        likelihood: bits per validation symbol by temperature.
        valid_bits: the same at temperature 1.
        usual_bits: per symbol of pieces drawn so, the median; from which the best of several strays least.
        length: symbols of a piece of the finalists.
        recorded: 5 %, median and 95 % of held-out recordings by measure; empty where only the likelihood was looked at.
        grid: a row per cell: length and number of pieces that were measured, distance from recordings and its parts, medians,
            shares inside, usual bits, bits at temperature 1 of what is kept; with best of several the mean over all ways to
            group the pieces.
        finalists: the same for cells between the nearest and other, longer pieces, each drawn once, as the best of two, of
            four and, where there are 40 pieces, of eight.
        seconds: what it took: likelihood, generating, measuring.
    """

    run: str
    which: str
    weights_sha256: str
    temperature: float
    top_p: float | None
    min_p: float | None = None
    hold: float | None = None
    best_of: int = 1
    usual_bits: float | None = None
    likelihood_temperature: float
    likelihood: dict[str, float]
    likelihood_symbols: int
    valid_bits: float
    length: int | None = None
    seed: int
    recorded: dict[str, list[float]] = Field(default_factory=dict)
    grid: list[dict[str, Any]] = Field(default_factory=list)
    finalists: list[dict[str, Any]] = Field(default_factory=list)
    seconds: dict[str, float]
    device: str
    made: str

    def text(self) -> str:
        """The tables, the choice, and what it cost."""
        lines = [
            f"by the likelihood of {self.likelihood_symbols:,} validation symbols: temperature "
            f"{self.likelihood_temperature:g} ({min(self.likelihood.values()):.4f} bits or fewer, instead of "
            f"{self.valid_bits:.4f} at temperature 1)"
        ]
        if self.grid:
            lines += [
                "",
                f"pieces of {self.grid[0]['length']:,}; medians of their seconds, and in brackets how many whole pieces are "
                "inside the 5 to 95 % of recorded ones",
                *self._table(self.grid),
                "",
                f"finalists: pieces of {self.length:,}, other random numbers",
                *self._table(self.finalists),
            ]
            for number, share in enumerate(("recorded:  5 %", "median", "95 %")):
                values = "".join(f"{found[number]:>9.2f}       " for found in self.recorded.values())
                lines.append(f"{share:>14}{'':<41}{values}")
        cost = ", ".join(f"{what} {seconds:.0f} s" for what, seconds in self.seconds.items())
        lines += ["", f"fitted: {in_words(self.to_json())} ({cost} on {self.device})"]
        if beyond := untried(self.temperature, self.top_p, self.min_p, self.grid):
            lines.append(
                f"That lies at the edge of the grid: not tried, and perhaps better, are {beyond}. Give some to mba sample, "
                "which measures its samples; a model that needs them is best trained longer."
            )
        tried = [float(temperature) for temperature in self.likelihood]
        if not self.grid and self.temperature in (min(tried), max(tried)):
            lines.append(
                f"That is the edge of what was tried, {min(tried):g} to {max(tried):g}: the model is far from what it was "
                "trained on; train it longer."
            )
        if not self.not_kept:
            lines.append(f"kept as {Path(self.run) / SETTINGS_NAME}; mba sample draws so unless told otherwise")
        return "\n".join(lines)

    def _table(self, rows: Sequence[Mapping[str, Any]]) -> list[str]:
        names = list(self.recorded)
        lines = [
            f"{'T':>6}{'top-p':>7}{'min-p':>7}{'hold':>6}{'best of':>9}{'distance':>10}{'bits':>7}   "
            + "".join(f"{name:>16}" for name in names)
        ]
        own = (self.temperature, self.top_p or 1.0, self.min_p or 0.0, self.hold or 0.0, self.best_of)
        for row in rows:
            settings = tuple(row[name] for name in ("temperature", "top_p", "min_p", "hold", "best_of"))
            cells = "".join(f"{row['values'][name]:>9.2f} ({row['inside'][name]:>4.0%})" for name in names)
            lines.append(
                "".join(f"{value:>{width}g}" for value, width in zip(settings, (6, 7, 7, 6, 9), strict=True))
                + f"{row['distance']:>10.3f}{row['bits']:>7.3f}   {cells}"
                + ("  <" if rows is self.finalists and settings == own else "")
            )
        return lines


def untried(
    temperature: float, top_p: float | None, min_p: float | None, grid: Sequence[Mapping[str, Any]]
) -> str | None:
    """What lies beyond the edges of a grid where the chosen settings lie at one; None elsewhere, and without a grid."""
    if not grid:
        return None
    shares, least = {row["top_p"] for row in grid}, {row.get("min_p", 0.0) for row in grid}
    alike = (row for row in grid if (row["top_p"], row.get("min_p", 0.0)) == (top_p or 1.0, min_p or 0.0))
    temperatures = sorted({row["temperature"] for row in alike})
    beyond = []
    # Nearer to the first or the last than to its neighbour.
    if temperature < sum(temperatures[:2]) / 2:
        beyond.append(f"temperatures below {temperature:g}")
    elif temperature > sum(temperatures[-2:]) / 2:
        beyond.append(f"temperatures above {temperature:g}")
    if top_p == min(shares):
        beyond.append(f"top-p below {top_p:g}")
    if min_p is not None and min_p == max(least):
        beyond.append(f"min-p above {min_p:g}")
    return " and ".join(beyond) or None


def fit_sampling(opened: Opened, options: EvaluateOptions, progress: Progress) -> SamplingResult:
    """Fit temperature, top-p, min-p, hold and best-of on validation data, and keep them in the run folder.

    Args:
        opened: the run.
        options: `length` of each generated piece, `num_samples` per cell of the grid, `seed`.
        progress: called with (what, done, in all).
    """
    from mamba_bio_audio.evaluation import sampling
    from mamba_bio_audio.run import saved

    opened.need_language_model("--metrics sampling")
    model, data, seed = opened.model, opened.data, options.seed
    each = options.num_samples or _EACH[opened.device]
    if not (options.run / "config.yaml").exists():
        raise InputError(
            f"{options.run}: not a run folder; fitted settings are kept in the folder that mba pretrain wrote"
        )
    model.to(opened.device)
    data.corpus.check_evaluation("valid")
    begun = time.perf_counter()
    found = sampling.calibrate(
        model,
        data.evaluation_dataloader("valid", max_tokens=max(data.length, _SYMBOLS[opened.device])),
        model.codec.sample_ids,
        progress=lambda done, total: progress("scoring batches", done, total),
    )
    seconds = {"likelihood": time.perf_counter() - begun}
    values: dict[str, Any] = {"temperature": found.temperature, "top_p": None}
    if (matcher := opened.domain.matcher(data.corpus, options.length)) is not None:
        shorter = opened.domain.matcher(data.corpus, max(1, round(_SHORTER * matcher.length)))
        assert shorter is not None
        seconds |= {"generating": 0.0, "measuring": 0.0}
        trial = _Trial(model, seed, seconds, progress)
        # On a CPU hold is slow, so it is not tried there.
        holds = sampling.HOLDS if opened.device == "cuda" and trial.valid_nats is not None else (0.0,)
        grid = trial.rows(shorter, sampling.grid(found.temperature, holds), 0, each, (max(1, each // 2),))
        tried = {sampling.Cell(**{name: row[name] for name in sampling.Cell._fields}): row["distance"] for row in grid}
        cells = sampling.nearest(tried, _INTERVALS[opened.device])
        again = _AGAIN[opened.device] * each
        finalists = trial.rows(matcher, cells, each, again, [k for k in _BEST_OF if _FEWEST * k <= again])
        best = _best(finalists)
        values |= {
            **sampling.Cell(**{name: best[name] for name in sampling.Cell._fields}).options,
            "best_of": best["best_of"],
            "usual_bits": best["usual_bits"],
            "length": matcher.length,
            "recorded": matcher.recorded_values(),
            "grid": grid,
            "finalists": finalists,
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


def _best(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The row with most pieces safely inside by the measure by which fewest are; of nearly equals what makes fewest pieces."""

    def inside(row: Mapping[str, Any]) -> tuple[float, float, float]:
        shares = row["safely"].values()
        return min(shares), sum(shares), -row["distance"]

    most, *_ = max(map(inside, rows))
    return max((row for row in rows if inside(row)[0] >= most - _WORSE), key=lambda row: (-row["best_of"], inside(row)))


class _Trial:
    """Generates and measures pieces of a run.

    Attributes:
        valid_nats: as `mba sample` knows them, or None.
    """

    def __init__(self, model: Any, seed: int, seconds: dict[str, float], progress: Progress) -> None:
        self.model, self.seed, self.seconds, self.progress = model, seed, seconds, progress
        self.valid_nats: float | None = model.manifest.get("result", {}).get("valid_nats")

    def rows(
        self, matcher: Matcher, cells: Sequence[Cell], first: int, each: int, best_of: Iterable[int]
    ) -> list[dict[str, Any]]:
        """A row of the tables for each cell and each of `best_of`.

        Args:
            matcher: compares pieces with recordings.
            cells: ways to draw.
            first, each: row of the first piece of each cell, and how many there are.
            best_of: of how many pieces the best is kept, one after the other.
        """
        from mamba_bio_audio.evaluation import sampling
        from mamba_bio_audio.inference.best import chances, stray

        began = time.perf_counter()
        length = matcher.length
        made, along = sampling.pieces(
            self.model,
            cells,
            length=length,
            each=each,
            seed=self.seed,
            first=first,
            valid_nats=self.valid_nats,
            progress=lambda done, total: self.progress("generating steps", done, total),
        )
        self.seconds["generating"] += time.perf_counter() - began
        began = time.perf_counter()
        rows = []
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for number, (cell, pieces, own) in enumerate(zip(cells, made, along, strict=True)):
                measured = list(pool.map(matcher.measure, pieces))
                nats = -own.sum(1) / length
                usual = float(median(nats))
                for k in best_of:
                    kept = chances(stray(own, length, usual), k)
                    match = matcher.match(measured, kept.tolist())
                    rows.append(
                        {
                            **cell._asdict(),
                            "best_of": k,
                            "usual_bits": round(sampling.bits(usual), 3),
                            "length": length,
                            "pieces": each,
                            **match._asdict(),
                            "bits": sampling.bits(float(nats @ kept)),
                        }
                    )
                self.progress("comparing cells", number + 1, len(cells))
        self.seconds["measuring"] += time.perf_counter() - began
        return rows
