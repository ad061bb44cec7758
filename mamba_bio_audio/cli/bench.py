"""`mba bench`: how fast this machine runs operations, training steps and generation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from mamba_bio_audio.cli.options import DebugOption, DeviceOption, JsonOption, QuietOption
from mamba_bio_audio.files import to_json
from mamba_bio_audio.jobs.common import resolve_device
from mamba_bio_audio.text import show


def bench(
    what: Annotated[Literal["kernels", "train", "sample"], typer.Argument(help="What to time.")],
    out: Annotated[Path | None, typer.Option("--out", help="CSV to write; default bench-<what>-<device>.csv.")] = None,
    seconds: Annotated[float, typer.Option(min=0.01, help="Time for each row.")] = 3.0,
    device: DeviceOption = "auto",
    quiet: QuietOption = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Time operations, training steps or generation, beside mamba_ssm where it is installed; CSV and a table."""
    resolved = resolve_device(device)

    from mamba_bio_audio.jobs.bench import bench as run

    file = out or Path(f"bench-{what}-{resolved}.csv")
    progress = None if quiet or as_json else lambda row: show(_line(row))
    rows = run(what, file, device=resolved, seconds=seconds, progress=progress)
    show(to_json(rows) if as_json else f"written: {file}")


def _line(row: dict[str, Any]) -> str:
    text = f"{row['benchmark']:<15} {row['mode']:<10} {row['shape']:<42} {row['ms_p50']:>9} ms"
    for key, unit in (("mtokens_per_s", "M tokens/s"), ("us_per_step", "us/step"), ("peak_gib", "GiB")):
        if row.get(key) and row[key] != "0.00":
            text += f"  {row[key]} {unit}"
    return text + (f"  {row['ratio']}x the peer's speed" if row["ratio"] else "")
