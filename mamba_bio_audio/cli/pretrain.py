"""`mba pretrain`: from a recipe to a run folder."""

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


def pretrain(
    recipe: Annotated[str, typer.Argument(help="Recipe name (mba configs lists them) or YAML file.")],
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
    """Pretrain a language model."""
    from mamba_bio_audio.run.config import load_config
    from mamba_bio_audio.run.recipes import recipe_files

    config = load_config(recipe, [*(overrides or []), *([] if seed is None else [f"seed={seed}"])])
    if config.head is not None:
        raise InputError(f"recipe {recipe} has a head: train it with mba classify")
    inputs = recipe_files(recipe)
    run = out or Path("runs") / str(config.name)
    resolved_device = resolve_device(device)

    from mamba_bio_audio.jobs import pretrain as workflow
    from mamba_bio_audio.training.parallel import is_main_process

    if dry_run:
        result = workflow.dry_run(config, run, device=resolved_device, resume=resume, force=force, inputs=inputs)
        if as_json:
            show(to_json(result))
        else:
            show(workflow.describe_dry_run(result), end="")
        return
    summary = workflow.pretrain(
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
    if summary["valid_nats"] is not None:
        lines.append(
            f"best validation at step {summary['best_step']:,}: {summary['valid_nats']:.4f} nats, "
            f"{summary['valid_bits']:.4f} bits per {summary['unit']}, perplexity {summary['valid_perplexity']:.4f}"
        )
    if summary["best_samples_step"]:
        lines.append(f"samples closest to recordings at step {summary['best_samples_step']:,}: --which best-samples")
    speed = summary["tokens_per_second"]
    lines.append(("" if math.isnan(speed) else f"{speed:,.0f} {summary['unit']}s/s; ") + f"run folder {summary['run']}")
    if not summary["stopped_by"]:
        length = "1000" if summary["unit"] == "base" else "16000 --out sample.wav"
        lines.append(f"next: mba evaluate {summary['run']}   mba sample {summary['run']} --length {length}")
    return "\n".join(lines)
