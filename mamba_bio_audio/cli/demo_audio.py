"""`mba demo --audio`: the whole job on synthetic tones."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import typer

from mamba_bio_audio.jobs.common import counter, counters
from mamba_bio_audio.text import show

RECIPE = "audio/tiny"
_RATE_HZ = 8000


def demo_audio(out: Path, overrides: Sequence[str], device: str, quiet: bool) -> None:
    """Write synthetic melodies, pretrain, evaluate beside yardsticks, sample two seconds, draw them."""
    start = time.perf_counter()

    import soundfile

    from mamba_bio_audio.files import Maker, check_out, new_folder, write_json
    from mamba_bio_audio.jobs.evaluate import describe_evaluation, evaluate
    from mamba_bio_audio.jobs.pretrain import pretrain, run_maker
    from mamba_bio_audio.jobs.sample import sample
    from mamba_bio_audio.pipelines.audio.figures import spectrograms
    from mamba_bio_audio.pipelines.synthetic.tones import write_melodies
    from mamba_bio_audio.run.config import load_config

    # An earlier demo is replaced, and nothing else.
    check_out(out, run_maker("demo"), [], force=True)
    data = out.with_name(f"{out.name}-synthetic-tones")

    def say(text: str) -> None:
        show(text, file=sys.stderr, flush=True)

    say(f"1/4  writing synthetic melodies to {data}, and pretraining on them")
    with new_folder(data, Maker("demo --audio"), force=True) as folder:
        write_melodies(folder, rate_hz=_RATE_HZ)
    config = load_config(RECIPE, [f"data.path={data}", f"data.sample_rate_hz={_RATE_HZ}", *overrides])
    summary = pretrain(
        config, out, device=device, force=True, quiet=quiet, arguments=["demo", "--audio"], command="demo"
    )
    if summary["stopped_by"]:
        say(f"stopped by {summary['stopped_by']}; saved in {out}")
        raise typer.Exit(130)
    say("2/4  evaluating held-out melodies beside yardsticks")
    with counters(quiet) as steps:
        result = evaluate(out, device=device, progress=steps)
    write_json(out / "evaluate-test.json", result | {"pictures": ["spectrogram.png"]})
    show(describe_evaluation(result))
    say("3/4  sampling two seconds, one sample at a time")
    made = out / "sample.wav"
    with counter("sampling", "samples", quiet) as progress:
        stopped = sample(out, made, length=2 * _RATE_HZ, device=device, force=True, progress=progress)
    if stopped:
        raise typer.Exit(130)
    say("4/4  drawing it")
    audio, rate = soundfile.read(made)
    real, _ = soundfile.read(sorted(data.glob("*.wav"))[-1], frames=len(audio))
    picture = out / "spectrogram.png"
    spectrograms([("synthetic melody, held out", real), ("sampled by the model", audio)], rate, picture)
    show(f"\nlisten: {made}    look: {picture}    finished in {time.perf_counter() - start:.0f} s")
    show("The training data are synthetic tones: this shows that everything works, not what a model of music can do.")
    show(
        "\nTry next:\n"
        "  mba prepare audio RECORDINGS --out data/yours        any WAV, FLAC, OGG or MP3 files\n"
        "  mba pretrain audio/tiny --set data.path=data/yours   minutes on a CPU\n"
        f"  mba sample {out} --length 16000 --prompt CLIP.wav --out next.wav"
    )
