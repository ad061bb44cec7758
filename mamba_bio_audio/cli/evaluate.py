"""`mba evaluate`: held-out likelihood beside baselines."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

import typer

from mamba_bio_audio.cli.options import (
    DebugOption,
    DeviceOption,
    JsonOption,
    QuietOption,
    RunArgument,
    SetOption,
    WhichOption,
)
from mamba_bio_audio.errors import InputError
from mamba_bio_audio.jobs.common import counter, counters, resolve_device
from mamba_bio_audio.text import show


def evaluate(
    run: RunArgument,
    split: Annotated[Literal["train", "valid", "test"], typer.Option(help="Which bases are scored.")] = "test",
    which: WhichOption = "best",
    length: Annotated[int | None, typer.Option(min=1, help="Window; default the training length.")] = None,
    context: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,...",
            help="Score the same bases under each of these contexts, by stratum and by position, instead.",
        ),
    ] = None,
    blocks: Annotated[int, typer.Option(min=1, help="With --context: blocks of target bases.")] = 256,
    out: Annotated[
        Path | None, typer.Option(help="With --context: folder for tables and picture; default RUN.")
    ] = None,
    baselines: Annotated[
        bool, typer.Option(help="Fit Markov baselines of orders 0 to 12; for a classifier, on k-mers.")
    ] = True,
    strand: Annotated[
        Literal["both", "forward", "reverse"], typer.Option(help="Strands that a classifier reads; both averages.")
    ] = "both",
    metrics: Annotated[
        Literal["likelihood", "sc09", "sc09-judge"],
        typer.Option(
            help="sc09: generate spoken digits and have a judge score them (FID, IS, mIS, AM, NDB). sc09-judge: only train "
            "that judge and the recogniser, or show those kept."
        ),
    ] = "likelihood",
    num_samples: Annotated[
        int | None, typer.Option(min=4, help="With sc09: clips; default 2048, 10240 for the paper's protocol.")
    ] = None,
    protocol: Annotated[
        Literal["plain", "paper"], typer.Option(help="With sc09: all samples, or the published selection.")
    ] = "plain",
    judge: Annotated[
        Literal["small", "resnext"] | None, typer.Option(help="With sc09: default resnext on a GPU, small on a CPU.")
    ] = None,
    judge_epochs: Annotated[
        int | None, typer.Option(min=1, help="With sc09 and sc09-judge: of the training of judge and recogniser.")
    ] = None,
    max_bases: Annotated[
        int | None,
        typer.Option(
            min=1, help="Score at most so many bases (samples of audio), in windows evenly spread over the split."
        ),
    ] = None,
    overrides: SetOption = None,
    device: DeviceOption = "auto",
    quiet: QuietOption = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Score each base of a split once, beside Markov baselines; or a classifier's accuracy, beside one on k-mers."""
    resolved = resolve_device(device)

    from mamba_bio_audio.files import to_json, write_json
    from mamba_bio_audio.jobs import evaluate as workflow

    if max_bases is not None and (metrics != "likelihood" or context is not None):
        raise InputError("--max-bases goes with the likelihood of whole windows; --context has --blocks instead")
    if metrics == "sc09-judge":
        from mamba_bio_audio.jobs import sc09

        with counters(quiet) as steps:
            notes = sc09.prepare_judge(
                run, device=resolved, kind=judge, epochs=judge_epochs, overrides=overrides or [], progress=steps
            )
        show(to_json(notes) if as_json else sc09.describe_judge(notes))
        return
    if metrics == "sc09":
        from mamba_bio_audio.jobs import sc09

        with counters(quiet) as steps:
            result = sc09.evaluate_sc09(
                run,
                which=which,
                device=resolved,
                kind=judge,
                epochs=judge_epochs,
                protocol=protocol,
                num_samples=num_samples,
                overrides=overrides or [],
                progress=steps,
            )
        show(to_json(result) if as_json else sc09.describe_sc09(result))
        return
    if context is not None:
        from mamba_bio_audio.jobs import context as at_length

        contexts = _numbers(context)
        with counter("evaluating", "batches", quiet) as progress:
            result = at_length.evaluate_context(
                run,
                contexts,
                split=split,
                which=which,
                device=resolved,
                blocks=blocks,
                overrides=overrides or [],
                progress=progress,
            )
        paths = at_length.write_context(result, out or run)
        show(to_json(result) if as_json else at_length.describe_context(result))
        if not quiet and not as_json:
            show("\nwritten: " + ", ".join(str(path) for path in paths))
        return
    with counters(quiet) as steps:
        result = workflow.evaluate(
            run,
            split=split,
            which=which,
            device=resolved,
            baselines=baselines,
            length=length,
            strand=strand,
            overrides=overrides or [],
            max_bases=max_bases,
            progress=steps,
        )
    if result.get("task") == "classification":
        from mamba_bio_audio.jobs.evaluate_classes import describe, write_evaluation

        own = not overrides and length is None and which == "best" and (run / "config.yaml").exists()
        result = write_evaluation(run, result) if own else {k: v for k, v in result.items() if k != "predictions"}
        show(to_json(result) if as_json else describe(result))
        return
    own = baselines and not overrides and length is None and max_bases is None and which == "best"
    if own and (run / "config.yaml").exists():
        write_json(run / f"evaluate-{split}.json", result)
    if not math.isfinite(result["model"]["nats"]):
        raise RuntimeError(f"the model's likelihood is {result['model']['nats']}; its weights are not usable")
    show(to_json(result) if as_json else workflow.describe_evaluation(result))


def _numbers(text: str) -> list[int]:
    """Whole numbers from `1024,16384`."""
    try:
        return [int(part.replace("_", "")) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--context {text}: write whole numbers with commas between, for example 1024,16384") from None
