"""What `mba evaluate --recall` finds."""

from __future__ import annotations

from pydantic import Field

from mamba_bio_audio.jobs.evaluate_results import Interval, Kept
from mamba_bio_audio.pipelines.scores import Found


class RecallRow(Found):
    """One variant at one distance: mean nats per symbol of the last piece, and what it gains, by trial.

    Attributes:
        gain: nats per symbol less than where the piece did not come before.
        gain_over_foreign: less than where a piece from elsewhere stands in its place.
        bar_nats, bar_gain, bar_gain_over_foreign: the same of the model that copies, where it was asked for.
    """

    distance: int
    context: int
    variant: str
    trials: int
    nats: float
    control_nats: float
    gain: Interval
    gain_over_foreign: Interval
    bar_nats: float | None = None
    bar_gain: Interval | None = None
    bar_gain_over_foreign: Interval | None = None


class RecallResult(Kept):
    """What is gained on real pieces that come again after a distance.

    Attributes:
        piece: symbols that come again.
        mutated: share of substituted symbols in the variant of that name.
        not_measured: by distance, why it was left out.
        bar: name of the model that copies; empty where there is none.
    """

    run: str = ""
    which: str = "best"
    weights_sha256: str | None = None
    split: str
    unit: str
    piece: int
    mutated: float
    seed: int
    trained_length: int
    overrides: tuple[str, ...] = ()
    bar: str = ""
    recall: list[RecallRow]
    not_measured: dict[str, str] = Field(default_factory=dict)
    pictures: tuple[str, ...] = ()

    def text(self) -> str:
        """A table: a line for each variant at each distance."""
        lines = [
            f"{self.split} split: {self.piece} {self.unit}s come again after a distance; gain on the second copy in nats per "
            f"{self.unit}, 95 % interval over {self.recall[0].trials:,} trials",
            f"mutated: {self.mutated:.0%} of the first copy substituted; foreign: a piece from elsewhere in its place; the "
            f"model was trained at {self.trained_length:,}",
            "",
            f"{'distance':>10}  {'variant':<20}{'nats':>8}  {'gain over the control':<30}{'over a foreign piece':<30}"
            + (self.bar and f"gain of {self.bar}"),
        ]
        for row in self.recall:
            bar = "" if row.bar_gain is None else _signed(row.bar_gain)
            lines.append(
                f"{row.distance:>10,}  {row.variant:<20}{row.nats:>8.4f}  {_signed(row.gain):<30}"
                f"{_signed(row.gain_over_foreign):<30}{bar}".rstrip()
            )
        lines += [f"{distance:>10}  not measured: {reason}" for distance, reason in self.not_measured.items()]
        if self.written:
            lines += ["", "written: " + ", ".join(map(str, self.written))]
        return "\n".join(lines)


def _signed(gain: Interval) -> str:
    return f"{gain.value:+.4f}" + ("" if gain.groups < 2 else f" ({gain.low:+.4f} to {gain.high:+.4f})")
