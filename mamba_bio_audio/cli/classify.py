"""`mba classify`: train a classifier."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from mamba_bio_audio.cli.options import DebugOption, DeviceOption, ForceOption, JsonOption, QuietOption, SetOption
from mamba_bio_audio.errors import InputError
from mamba_bio_audio.files import to_json
from mamba_bio_audio.jobs.common import resolve_device
from mamba_bio_audio.text import show


def classify(
    recipe: Annotated[str, typer.Argument(help="Recipe name (mba configs lists them) or YAML file, with a head.")],
    overrides: SetOption = None,
    out: Annotated[Path | None, typer.Option("--out", help="Run folder; default runs/<name>.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Overrides the recipe's seed.")] = None,
    device: DeviceOption = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run from its last checkpoint.")] = False,
    force: ForceOption = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show configuration, size, memory and time; train and write nothing.")
    ] = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Train a classifier of sequences, from scratch or on a pretrained model (head.pretrained=RUN)."""
    from mamba_bio_audio.run.config import load_config
    from mamba_bio_audio.run.recipes import recipe_files

    config = load_config(recipe, [*(overrides or []), *([] if seed is None else [f"seed={seed}"])])
    if config.head is None:
        raise InputError(
            f"recipe {recipe} has no head: train a language model with mba pretrain, or add a section head"
        )
    inputs = recipe_files(recipe)
    run = out or Path("runs") / str(config.name)
    resolved_device = resolve_device(device)

    from mamba_bio_audio.jobs import classify as workflow
    from mamba_bio_audio.jobs import pretrain
    from mamba_bio_audio.training.parallel import is_main_process

    if dry_run:
        result = pretrain.dry_run(config, run, device=resolved_device, resume=resume, force=force, inputs=inputs)
        show(to_json(result) if as_json else pretrain.describe_dry_run(result), end="\n" if as_json else "")
        return
    summary = workflow.classify(
        config,
        run,
        device=resolved_device,
        resume=resume,
        force=force,
        quiet=quiet,
        arguments=sys.argv[1:],
        inputs=inputs,
    )
    if is_main_process():
        show(to_json(summary) if as_json else _text(summary))
    if summary["stopped_by"]:
        raise typer.Exit(130)


def _text(summary: dict[str, Any]) -> str:
    lines = []
    if summary["stopped_by"]:
        lines.append(
            f"stopped by {summary['stopped_by']} after step {summary['step']:,} of {summary['steps']:,}, all saved; "
            f"continue with the same command and --resume"
        )
    if summary["ended_by_patience"]:
        lines.append(f"ended by train.patience at step {summary['step']:,} of {summary['steps']:,}")
    if summary["valid_nats"] is not None:
        lines.append(f"best validation at step {summary['best_step']:,}: {summary['valid_nats']:.4f} nats per sequence")
    if summary["valid_accuracy"] is not None:
        row = summary["valid_accuracy"]
        lines.append(
            f"validation accuracy {row['value']:.1%} ({row['low']:.1%} to {row['high']:.1%} over {row['groups']:,} loci)"
        )
    speed = summary["tokens_per_second"]
    lines.append(("" if math.isnan(speed) else f"{speed:,.0f} {summary['unit']}s/s; ") + f"run folder {summary['run']}")
    if not summary["stopped_by"]:
        lines.append(f"next: mba evaluate {summary['run']}")
    return "\n".join(lines)
