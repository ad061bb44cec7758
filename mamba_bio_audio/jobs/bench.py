"""`mba bench`: how fast this machine runs operations, training steps and generation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.jobs.contract import Cli, Device, Options, Result

COMMAND = "bench"
PANEL = "Measure"


class BenchOptions(Options):
    """Options of `mba bench`."""

    what: Annotated[Literal["kernels", "train", "sample"], Cli(argument=True)] = Field(
        description="What to time: operations, training steps, or generation."
    )
    out: Path | None = Field(
        None, description="CSV file to write, or - for standard output; by default bench-WHAT-DEVICE.csv."
    )
    case: list[str] = Field(
        default_factory=list,
        description="What to measure instead of the usual rows, repeatable: scan:8,8192,2048 (operation and B,L,D; "
        "operations are scan, scan-slow, scan-lti, scan-complex, scan-complex-lti, conv, norm, mixer), 16x256:128,1024 "
        "(model and B,L of a training step, a third number is the chunk of streaming; audio/sc09@small:16,16000, "
        "16x256+s4d:128,1024), 12x128:64,bf16 (model, rows and precision of generation).",
    )
    graph: bool = Field(False, description="Of train: record steps as CUDA graphs, as train.cuda_graph does.")
    peer: Literal["mamba", "mamba2"] = Field(
        "mamba", description="Of train: which layer of mamba_ssm stands beside a language model."
    )
    memory: float | None = Field(
        None, gt=0, description="Of train: GiB of the GPU that may be taken, by which layers choose what they keep."
    )
    seconds: float = Field(3.0, ge=0.01, description="Time to spend on each row, in seconds.")
    device: Device = "auto"

    @model_validator(mode="after")
    def _of_train(self) -> BenchOptions:
        if self.what != "train" and (self.graph or self.peer != "mamba" or self.memory is not None):
            raise ValueError("--graph, --peer and --memory are options of mba bench train")
        return self


class BenchResult(Result):
    """The measurements.

    Attributes:
        rows: as they stand in the CSV file.
        file: that file; None for standard output.
    """

    rows: list[dict[str, Any]]
    file: Path | None

    def text(self) -> str:
        """A table and the file's name; the CSV itself where it goes to standard output."""
        from mamba_bio_audio.run.timing import csv_text

        if self.file is None:
            return csv_text(self.rows).rstrip("\n")
        return "\n".join([*map(_line, self.rows), f"written: {self.file}"])

    def to_json(self) -> Any:
        """The rows alone."""
        return self.rows


def run(options: BenchOptions) -> BenchResult:
    """Time operations, training steps or generation, beside mamba_ssm where it is installed; CSV and a table."""
    from mamba_bio_audio.files import begins_with, check_file
    from mamba_bio_audio.jobs.common import counters, resolve_device, standard_output
    from mamba_bio_audio.run.speed import BENCHMARKS
    from mamba_bio_audio.run.timing import write_rows

    device = resolve_device(options.device)
    if options.memory is not None and device == "cpu":
        raise InputError("--memory is of the GPU, and this runs on the CPU; leave it out")
    file = standard_output(options.out or Path(f"bench-{options.what}-{device}.csv"))
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        # A table of an earlier call is replaced, and nothing else.
        check_file(file, "bench", begins_with("benchmark,"), force=True)
    benchmark = BENCHMARKS[options.what]
    given: dict[str, Any] = (
        {"graph": options.graph, "peer": options.peer, "memory": options.memory} if options.what == "train" else {}
    )
    if options.case:
        given["cases"] = [benchmark.case(text) for text in options.case]
    rows: list[dict[str, Any]] = []
    with counters(options.quiet) as progress:
        for row in benchmark.rows(device, seconds=options.seconds, **given):
            rows.append(row)
            progress("rows measured", len(rows), None)
            if file is not None:
                write_rows(file, rows)
    return BenchResult(rows=rows, file=file)


def _line(row: dict[str, Any]) -> str:
    if row["benchmark"] == "sample":
        return sample_line(row)
    text = f"{row['benchmark']:<15} {row['mode']:<10} {row['shape']:<42} {row['ms_p50']:>9} ms"
    for key, unit in (
        ("limit_ms", "ms at the rate of a copy"),
        ("special_limit_ms", "ms of special functions"),
        ("mtokens_per_s", "M tokens/s"),
        ("peak_gib", "GiB"),
        ("streaming_limit", "of whole steps' speed at best"),
        ("host_us", "us of the host"),
        ("call_us", "us a call"),
    ):
        if row.get(key) and row[key] != "0.00":
            text += f"  {row[key]} {unit}"
    text += f"  {row['ratio']}x the peer's speed" if row["ratio"] else ""
    return text + (f", {row['call_ratio']}x by whole calls" if row.get("call_ratio") else "")


def sample_line(row: dict[str, Any]) -> str:
    """A row of generation in words."""
    text = (
        f"{row['benchmark']:<7} {row['shape']:<28} {row['dtype']:<9} {row['path']:<11} {row['us_per_step']:>9} us/step"
    )
    for key, words in (
        ("limit_us", "us at the rate of a copy"),
        ("tokens_per_s", "symbols/s"),
        ("recording_s", "s to record"),
        ("start_s", "s to start"),
    ):
        if row.get(key):
            text += f"  {row[key]} {words}"
    return text + (f"  {row['ratio']}x the peer's speed" if row["ratio"] else "")
