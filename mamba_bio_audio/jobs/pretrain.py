"""`mba pretrain`: train a language model; also everything that it shares with `mba classify`."""

from __future__ import annotations

import math
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, field_validator

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.jobs.contract import Cli, Device, DryRun, Force, Options, Overrides, Result, Resume
from mamba_bio_audio.run.outcomes import OUT_OF_TIME, Estimate, Trained

if TYPE_CHECKING:
    from mamba_bio_audio.run.begin import Session
    from mamba_bio_audio.run.config import RunConfig

COMMAND = "pretrain"
PANEL = "Train"


class TrainOptions(Options):
    """Options of a command that trains."""

    recipe: Annotated[str, Cli(argument=True)] = Field(
        description="Recipe name (mba configs lists them), or YAML file."
    )
    overrides: Overrides = ()
    out: Path | None = Field(None, description="Run folder; default runs/<name>.")
    seed: int | None = Field(None, ge=0, description="Override the recipe's seed.")
    device: Device = "auto"
    resume: Resume = False
    force: Force = False
    dry_run: DryRun = False
    max_time: Annotated[str | None, Cli(metavar="TIME")] = Field(
        None,
        description="Save and end after so long (1500 is seconds; 25m, 1.5h), counted from the start of the command; "
        "--resume goes on.",
    )

    @field_validator("max_time")
    @classmethod
    def _time(cls, text: str | None) -> str | None:
        if text is not None and not (re.fullmatch(r"\d+(\.\d*)?[smh]?", text) and _seconds(text) > 0):
            raise ValueError(f"got {text!r}; write seconds, minutes or hours above 0, for example 1500, 25m or 1.5h")
        return text

    def config(self) -> RunConfig:
        """The validated recipe."""
        from mamba_bio_audio.run.pretrained import configure

        overrides = [*self.overrides, *([] if self.seed is None else [f"seed={self.seed}"])]
        return configure(self.recipe, overrides, run_of=self._folder if self.resume else None)

    def session(self) -> Session:
        """How this command trains, and until when."""
        from mamba_bio_audio.jobs.common import resolve_device
        from mamba_bio_audio.run.begin import Session
        from mamba_bio_audio.run.recipes import recipe_files

        inputs = tuple(recipe_files(self.recipe))
        device = resolve_device(self.device)
        until = None if self.max_time is None else time.monotonic() + _seconds(self.max_time)
        return Session(device, self.resume, self.force, self.quiet, None, tuple(sys.argv[1:]), inputs, deadline=until)

    def folder(self, config: RunConfig) -> Path:
        """The run folder."""
        return self._folder(str(config.name))

    def _folder(self, name: str) -> Path:
        return self.out or Path("runs") / name


class PretrainOptions(TrainOptions):
    """Options of `mba pretrain`."""


def _seconds(text: str) -> float:
    """Seconds of a time such as 90, 90s, 25m or 1.5h."""
    return float(text.rstrip("smh")) * {"m": 60, "h": 3600}.get(text[-1], 1)


class TrainResult(Trained, Result):
    """How a training ended."""

    def text(self) -> str:
        """A summary, and what to do next."""
        lines = []
        if self.stopped_by:
            lines.append(
                f"stopped by {self.stopped_by} after step {self.step:,} of {self.steps:,}; everything is saved. "
                f"Continue with the same command and --resume"
            )
            if not self.best_step:
                lines.append("not validated so far: until it is, commands that read the run need --which last")
        lines += self.scores()
        speed = "" if math.isnan(self.tokens_per_second) else f"{self.tokens_per_second:,.0f} {self.unit}s/s; "
        lines.append(f"{speed}run folder {self.run}")
        if not self.stopped_by:
            lines.append(f"next: mba evaluate {self.run}{self.more()}")
        return "\n".join(lines)

    def scores(self) -> list[str]:
        """Lines on how good the model is."""
        raise NotImplementedError

    def more(self) -> str:
        """Commands to try after `mba evaluate`."""
        return ""

    @property
    def silent(self) -> bool:
        """Of several processes that train together, only the first one reports."""
        from mamba_bio_audio.training.parallel import is_main_process

        return not is_main_process()

    @property
    def exit_code(self) -> int:
        """130 where a signal stopped the training; that its time was up is no failure."""
        return 130 if self.stopped_by not in (None, OUT_OF_TIME) else 0


class PretrainResult(TrainResult):
    """How the training of a language model ended."""

    def scores(self) -> list[str]:
        """Best validation loss, and the step with the best samples of audio."""
        lines = []
        if self.valid_nats is not None:
            lines.append(
                f"best validation at step {self.best_step:,}: {self.valid_nats:.4f} nats, "
                f"{self.valid_bits:.4f} bits per {self.unit}, perplexity {self.valid_perplexity:.4f}"
                + ("" if self.answers_right is None else f", {self.answers_right:.2%} of the answers right")
            )
        if self.best_samples_step:
            lines.append(f"samples closest to recordings at step {self.best_samples_step:,}: --which best-samples")
        return lines

    def more(self) -> str:
        """Sampling."""
        return f"   mba sample {self.run} {self.first_sample}" if self.first_sample else ""


class DryRunResult(Estimate, Result):
    """Resources that a training run would need."""

    def text(self) -> str:
        """The resolved configuration as YAML, the data, and the estimate."""
        from mamba_bio_audio.pipelines.domains import domain_of
        from mamba_bio_audio.plain_yaml import dump
        from mamba_bio_audio.text import table

        described = domain_of(self.config["data"]["kind"]).describe(self.data)
        return f"{dump(self.config)}\n{table(described)}\n{table(self._rows())}"

    def _trained(self) -> str:
        rest = self.trained < self.parameters
        return f", of which {self.trained:,} are trained ({self.trained / self.parameters:.2%})" if rest else ""

    def _rows(self) -> list[tuple[str, str]]:
        from mamba_bio_audio.training.progress import duration

        train, memory = self.config["train"], self.memory_bytes
        rows = [
            ("device", f"{self.device}, {self.precision}"),
            ("parameters", f"{self.parameters:,}" + self._trained()),
            (
                "tokens per step",
                f"{self.tokens_per_step:,} = {self.accumulate} x micro-batch of {self.micro_batch} "
                f"x length {train['length']:,}" + _devices_text(train),
            ),
            ("total tokens", f"{self.tokens:,}"),
        ]
        rows += [
            (
                f"at length {stage['length']:,}",
                f"steps {stage['start'] + 1:,} to {stage['stop']:,}, {stage['sequences_per_step']:,} sequences each: "
                f"{stage['epochs']:.4g} epochs of {stage['windows']:,} windows",
            )
            for stage in self.length_stages
        ]
        if self.stream_chunk_chosen:
            chunk = train["stream_chunk"]
            fits = "none needed: whole sequences fit" if chunk is None else f"{chunk:,}, the largest that fits"
            rows.append(("stream chunk", fits))
        rows.append(("memory", "unknown on this system" if memory is None else f"about {memory / 2**30:.2f} GiB"))
        time = f"about {self.seconds_per_step:.3g} s per step, {duration(self.seconds)} in total, without validation"
        return [*rows, ("time", time)]


def _devices_text(train: dict[str, Any]) -> str:
    devices, parts = train["devices"] * train["nodes"], train["sequence_parallel"]
    if devices == 1:
        return ""
    return f" x {devices} devices" if parts == 1 else f" x {devices // parts} groups of {parts} devices"


def estimate(config: RunConfig, run: Path | None, session: Session) -> DryRunResult:
    """What a training of `config` into `run` would take."""
    from mamba_bio_audio.run.dry_run import dry_run

    return DryRunResult(**dict(dry_run(config, run, session)))


def run(options: PretrainOptions) -> PretrainResult | DryRunResult:
    """Pretrain a language model."""
    config = options.config()
    if config.head is not None:
        raise InputError(f"recipe {options.recipe} has a head: train it with mba classify")
    session, folder = options.session(), options.folder(config)
    if options.dry_run:
        return estimate(config, folder, session)
    from mamba_bio_audio.run.train import train

    return PretrainResult(**dict(train(config, folder, session)))
