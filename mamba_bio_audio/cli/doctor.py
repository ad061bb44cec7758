"""`mba doctor`: what works on this machine."""

from __future__ import annotations

from typing import Any

import typer

from mamba_bio_audio.cli.options import DebugOption, JsonOption
from mamba_bio_audio.files import to_json
from mamba_bio_audio.text import show


def doctor(as_json: JsonOption = False, debug: DebugOption = False) -> None:
    """Versions, devices, C compiler, the live kernel path, and a numerical self-test of every operation."""
    from mamba_bio_audio.jobs import doctor as job

    result: dict[str, Any] = job.diagnose()
    show(to_json(result) if as_json else job.describe(result))
    if not all(test["passed"] for test in result["self_test"]):
        raise typer.Exit(1)
