"""`mba sample`: new sequences from a trained model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from mamba_bio_audio.cli.options import DebugOption, DeviceOption, ForceOption, QuietOption, RunArgument, WhichOption
from mamba_bio_audio.errors import InputError
from mamba_bio_audio.files import unfinished
from mamba_bio_audio.jobs.common import counter, resolve_device, standard_output
from mamba_bio_audio.text import show


def sample(
    run: RunArgument,
    length: Annotated[int, typer.Option(min=1, help="Bases or audio samples each, without the prompt.")],
    num_samples: Annotated[int, typer.Option(min=1, help="Samples.")] = 1,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="FASTA file (default, or -: standard output); audio: FILE.wav, FILE.flac, or a folder."
        ),
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="What comes before: bases, or an audio file.")] = None,
    temperature: Annotated[float, typer.Option(min=0.0, help="Divides the logits; 0 takes the likeliest.")] = 1.0,
    top_k: Annotated[int | None, typer.Option(min=1, help="Keep the k likeliest symbols.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Keep the likeliest symbols up to this sum.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the draws.")] = 0,
    which: WhichOption = "best",
    batch_size: Annotated[int, typer.Option(min=1, help="Samples made at a time; does not change them.")] = 16,
    device: DeviceOption = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted sampling into --out.")] = False,
    report: Annotated[
        bool, typer.Option(help="Of DNA: measured beside the training data, into OUT.report.json.")
    ] = True,
    quiet: QuietOption = False,
    force: ForceOption = False,
    debug: DebugOption = False,
) -> None:
    """Sample DNA as FASTA, audio as WAV or FLAC: recurrent, in constant memory, streamed to disk and resumable."""
    out = standard_output(out)
    if resume and force:
        raise InputError("--resume continues a sampling and --force replaces it; give one of them")
    if out is not None and out.is_dir() and not (out / "samples.json").exists():
        raise InputError(
            f"{out} is a folder; give a file, or for several samples of audio a folder that is not there yet"
        )
    part = None if out is None else unfinished(out)
    complete = out is not None and part is not None and resume and out.exists() and not part.exists()
    if out is not None and out.exists() and not (force or resume):
        raise InputError(f"{out} exists; choose another --out, or replace it with --force")
    if out is not None and not out.parent.is_dir():
        raise InputError(f"{out}: there is no folder {out.parent}")
    resolved = resolve_device(device)

    from mamba_bio_audio.jobs import sample as workflow
    from mamba_bio_audio.jobs.sample_report import check_report

    if report and out is not None and not out.is_dir() and not complete:
        check_report(out)
    with counter("sampling", "symbols", quiet) as progress:
        settings: dict[str, Any] = {
            "length": length,
            "num_samples": num_samples,
            "which": which,
            "device": resolved,
            "prompt": prompt,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "seed": seed,
            "batch_size": batch_size,
            "resume": resume,
            "force": force,
            "progress": progress,
        }
        stopped_by = workflow.sample(run, out, **settings)
    if stopped_by:
        again = f"; continue with the same command and --resume (so far: {part})" if out is not None else ""
        show(f"stopped by {stopped_by}{again}", file=sys.stderr)
        raise typer.Exit(130)
    if complete:
        show(f"{out}: already complete")
        return
    if out is not None:
        what = _what(out)
        made = "sample" if what == "bases" else "clip"
        show(f"{out}: {num_samples:,} {made}{'s' * (num_samples != 1)} of {length:,} {what}")
        if report and what == "bases":
            _report(run, out, quiet)


def _report(run: Path, out: Path, quiet: bool) -> None:
    """Measure DNA samples beside the training data."""
    from mamba_bio_audio.jobs.sample_report import report_on_samples
    from mamba_bio_audio.pipelines.dna.samples import describe_samples

    with counter("comparing", "bases", quiet) as progress:
        result = report_on_samples(run, out, progress=progress)
    show(describe_samples(result))
    if result["note"]:
        show(f"not compared with the training data: {result['note']}", file=sys.stderr)


def _what(out: Path) -> str:
    """What was written: bases, or audio with its duration and the rate of its making."""
    import json

    notes = [path for path in (out / "samples.json", out.with_name(f"{out.name}.json")) if path.is_file()]
    if not notes:
        return "bases"
    note = json.loads(notes[0].read_text(encoding="utf-8"))
    rate = note["samples_per_second"]
    speed = "" if rate is None else f"; {rate:,.0f} samples/s, {rate / note['sample_rate_hz']:.3g} times real time"
    return f"samples ({note['which']} weights, {note['quantizer']}){speed}"
