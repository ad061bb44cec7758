"""`mba demo`: the whole job on packaged data."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from mamba_bio_audio.cli.demo_audio import demo_audio
from mamba_bio_audio.cli.options import DebugOption, DeviceOption, QuietOption, SetOption
from mamba_bio_audio.jobs.common import counter, counters, resolve_device
from mamba_bio_audio.text import show

RECIPE = "dna/demo"


def demo(
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Run folder, default runs/demo or runs/demo-audio; an earlier demo is replaced."),
    ] = None,
    audio: Annotated[bool, typer.Option("--audio", help="Synthetic melodies instead of genomes.")] = False,
    overrides: SetOption = None,
    device: DeviceOption = "auto",
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Pretrain, evaluate and sample on five packaged genome slices; offline, two to three minutes on two cores.

    With --audio: the same on synthetic melodies, ending in a playable file and a spectrogram.
    """
    resolved = resolve_device(device)
    if audio:
        demo_audio(out or Path("runs/demo-audio"), overrides or [], resolved, quiet)
        return
    out = out or Path("runs/demo")
    start = time.perf_counter()

    from mamba_bio_audio.evaluation.figures import training_curve
    from mamba_bio_audio.files import check_out, write_json
    from mamba_bio_audio.jobs.evaluate import describe_evaluation, evaluate
    from mamba_bio_audio.jobs.pretrain import pretrain, run_maker
    from mamba_bio_audio.jobs.sample import sample
    from mamba_bio_audio.run.config import load_config

    config = load_config(RECIPE, overrides or [])
    # An earlier demo is replaced, and nothing else.
    check_out(out, run_maker("demo"), [], force=True)

    def say(text: str) -> None:
        show(text, file=sys.stderr, flush=True)

    say("1/4  pretraining on five packaged genome slices")
    summary = pretrain(config, out, device=resolved, force=True, quiet=quiet, arguments=["demo"], command="demo")
    if summary["stopped_by"]:
        say(f"stopped by {summary['stopped_by']}; saved in {out}")
        raise typer.Exit(130)
    say("2/4  evaluating held-out blocks beside Markov baselines")
    with counters(quiet) as steps:
        result = evaluate(out, device=resolved, progress=steps)
    write_json(out / "evaluate-test.json", result | {"pictures": ["curve.png"]})
    show(describe_evaluation(result))
    say("3/4  sampling three sequences of 600 bases")
    with counter("sampling", "bases", quiet) as progress:
        stopped = sample(out, out / "samples.fa", length=600, num_samples=3, device=resolved, progress=progress)
    if stopped:
        raise typer.Exit(130)
    show(f"\nsamples ({out / 'samples.fa'}), the first 60 bases of each:")
    records = (out / "samples.fa").read_text().split(">")[1:]
    for record in records:
        header, first = record.splitlines()[:2]
        show(f"  {header.split()[0]}  {first[:60]}")
    say("4/4  drawing the curves")
    training_curve(out, result, out / "curve.png")
    show(f"\npicture: {out / 'curve.png'}    finished in {time.perf_counter() - start:.0f} s")
    show(
        "\nTry next:\n"
        "  mba prepare genome YOUR.fa --out data/yours        any FASTA, plain or BGZF\n"
        "  mba pretrain dna/tiny --set data.path=data/yours   minutes on a CPU\n"
        "  mba configs                                        the paper's seven sizes\n"
        f"  mba sample {out} --length 1000 --prompt ACGTACGT\n"
        f"  mba report {out}    one page about this run"
    )
