"""What `mba sample` reports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from mamba_bio_audio.jobs.contract import Result


class SampleResult(Result):
    """The samples and how they were drawn.

    Attributes:
        out: file or folder; None is standard output.
        length: symbols of each sample; None for an endless one on standard output.
        precision: of the matrices.
        path: how steps ran: steps, graph, numpy, persistent, split or together (`inference/paths.py`); None where none did.
        written: what was written, in words; None where nothing was, or to standard output.
        already_complete: the output was complete before; nothing was done.
        removed: measurements of samples that these replace, where these are not measured.
        stopped_by: name of the signal that ended it early.
        report: measurements beside the data of the run, as in OUT.report.json.
        settings: whether symbols were drawn as was fitted for the run, or why not, where it has fitted settings.
        bits: per symbol of the samples under the model at temperature 1, with guidance under the guided one, and of validation
            data under the model, where both are known.
        drift: a warning where these are far apart.
    """

    out: Path | None
    num_samples: int
    length: int | None
    precision: str = "fp32"
    path: str | None = None
    written: str | None = None
    already_complete: bool = False
    removed: list[Path] | None = None
    stopped_by: str | None = None
    report: dict[str, Any] | None = None
    settings: str | None = None
    bits: dict[str, Any] | None = None
    drift: str | None = None
    report_text: str = Field("", exclude=True)

    def text(self) -> str:
        """One line, followed by the measurements."""
        if self.already_complete:
            return f"{self.out}: already complete"
        if self.written is None:
            return ""
        return f"{self.out}: {self.written}" + (f"\n{self.report_text}" if self.report else "")

    def notes(self) -> str:
        """How symbols were drawn, whether they drift, how to continue, or why there is no comparison."""
        lines = [line for line in (self.settings, self.drift) if line]
        if self.removed:
            lines.append(f"removed {' and '.join(map(str, self.removed))}, of the samples that these replace")
        if self.stopped_by:
            how = "" if self.out is None or self.written else "; continue with the same command and --resume "
            lines.append(f"stopped by {self.stopped_by}{how}" + (f"(so far: {self.out}.part)" if how else ""))
        elif self.report and self.report["note"]:
            lines.append(f"not compared with the training data: {self.report['note']}")
        return "\n".join(lines)

    @property
    def exit_code(self) -> int:
        """130 after a signal."""
        return 130 if self.stopped_by else 0
