"""What is said of audio beside a model's scores: the quantiser, scores by recording, simple predictors on the same samples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from mamba_bio_audio.pipelines.scores import LikelihoodNotes, Measured, Part, Scored, SplitScores

if TYPE_CHECKING:
    from mamba_bio_audio.pipelines.contract import Progress


class AudioNotes(LikelihoodNotes):
    """How samples became levels, and what simple predictors reach on the scored ones.

    Attributes:
        quantizer: its description; bits of two quantisers do not compare.
        part: where not all windows were scored.
        recordings: by file, where there are several but not many.
        yardsticks: bits per sample, see `pipelines/audio/yardsticks.py`.
        tuned: order, window and half-life, in samples, of the linear prediction that validation chose.
        tuned_edges: those of the three that are the largest or smallest tried.
        yardsticks_left_out: which are missing, and why.
    """

    quantizer: str
    sample_rate_hz: int
    part: Part | None = None
    recordings: dict[str, Scored] | None = None
    yardsticks: dict[str, float] = Field(default_factory=dict)
    tuned: dict[str, int] | None = None
    tuned_edges: list[str] = Field(default_factory=list)
    yardsticks_left_out: str | None = None

    def text(self, found: SplitScores) -> str:
        """Bits per sample of the model, of every yardstick and of every recording."""
        rows = {f"model ({found.weights})": found.model.bits, **self.yardsticks}
        lines = [
            f"{found.split} split: {found.scored:,} samples at {self.sample_rate_hz:,} Hz scored once, windows of "
            f"{found.length:,} (for the model each starts without context, for the yardsticks it does not)"
        ]
        if self.part is not None:
            lines.append(self.part.line(found.scored, "sample", "yardsticks"))
        lines += ["", f"{'bits per sample':<28}{self.quantizer}"]
        lines += [f"{name:<28}{bits:>9.4f}" for name, bits in rows.items()]
        if self.tuned is not None:
            lines.append(self._tuned())
        if self.yardsticks_left_out is not None:
            lines.append(self.yardsticks_left_out)
        best = min(self.yardsticks.items(), key=lambda row: row[1], default=None)
        if best is not None and found.model.bits is not None:
            gain = best[1] - found.model.bits
            verdict = "." if gain > 0 else ": it has learnt less than that."
            lines += ["", f"The model is {abs(gain):.4f} bits {'below' if gain > 0 else 'above'} {best[0]}{verdict}"]
        if self.recordings is not None:
            lines += ["", *(f"{name:<40}{row.model.bits:>9.4f}" for name, row in self.recordings.items())]
        return "\n".join(lines)

    def _tuned(self) -> str:
        assert self.tuned is not None
        order, window, half_life = (f"{value:,}" for value in self.tuned.values())
        told = f"LPC, tuned: order {order}, window {window}, half-life {half_life} samples, chosen on validation"
        names = " and ".join(self.tuned_edges).replace("_", "-")
        return told + f"; {names} at the edge of what was tried" * bool(names)


def beside_likelihood(data: Any, found: Measured, progress: Progress | None = None) -> AudioNotes:
    """The quantiser, scores by recording and, where asked for, the yardsticks; see `Domain.beside_likelihood`."""
    notes: dict[str, Any] = {"quantizer": data.codec.description, "sample_rate_hz": data.codec.sample_rate_hz}
    scored = data.evaluation_dataset(found.split, found.max_symbols).windows
    whole = data.corpus.evaluation_windows(found.split)
    part = None
    if len(scored) < len(whole.windows):
        part = [scored[at] for at in range(len(scored))]
        notes["part"] = Part(
            max_bases=found.max_symbols or 0,
            windows=len(scored),
            of_windows=len(whole.windows),
            of_bases=whole.symbols,
        )
    names = data.corpus.groups
    if len(names) > 1:
        notes["recordings"] = {names[group]: scores for group, scores in found.groups.items()}
    if found.yardsticks:
        from mamba_bio_audio.pipelines.audio.yardsticks import left_out, yardsticks

        bars = yardsticks(data, found.split, part)
        assert bars.samples == found.scored
        notes |= {"yardsticks": bars.bits, "tuned": bars.tuned._asdict(), "tuned_edges": bars.edges}
        if reason := left_out(data.codec):
            notes["yardsticks_left_out"] = reason
    return AudioNotes(**notes)
