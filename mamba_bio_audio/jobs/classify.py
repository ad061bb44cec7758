"""Training of a classifier: as any training, and the accuracy of what came of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.jobs.evaluate import evaluate
from mamba_bio_audio.jobs.pretrain import pretrain
from mamba_bio_audio.run.config import RunConfig


def classify(config: RunConfig, run: Path, *, device: str, **options: Any) -> dict[str, Any]:
    """Train into the run folder `run` and return a summary (JSON-able), with the accuracy of the best weights.

    Args:
        config: with a head.
        run: folder; must be new or empty unless `resume` or `force`.
        device: "cpu" or "cuda".
        options: as of `jobs.pretrain.pretrain`.
    """
    if config.head is None:
        raise InputError("the configuration has no head; add a section head, or use mba pretrain")
    summary = pretrain(config, run, device=device, **options)
    accuracy = None
    if summary["stopped_by"] is None:
        # On validation: the test split is for one `mba evaluate` at the end.
        result = evaluate(Path(summary["run"]), split="valid", device=device, baselines=False)
        accuracy = result["model"]["accuracy"]
    return summary | {"valid_accuracy": accuracy}
