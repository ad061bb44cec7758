"""Options that several commands share, and what they mean."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

Device = Literal["auto", "cpu", "cuda"]

SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a configuration key; repeatable."),
]
DeviceOption = Annotated[Device, typer.Option(help="Device to run on; auto uses the GPU if there is one.")]
QuietOption = Annotated[bool, typer.Option("--quiet", help="No progress.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Result as JSON on standard output.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace what is there.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
WhichOption = Annotated[
    Literal["best", "last", "ema", "best-samples"],
    typer.Option(help="Weights: best by validation, last, last moving average, or of audio best by generated samples."),
]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder, export, or Hugging Face Mamba folder.")]
