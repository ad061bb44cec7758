"""Samples of audio as a report shows them: waveform, spectrogram and a player of each."""

from __future__ import annotations

import csv
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import soundfile

from mamba_bio_audio.errors import InputError, as_written
from mamba_bio_audio.files import inside
from mamba_bio_audio.pipelines.audio.figures import spectrograms
from mamba_bio_audio.pipelines.contract import Clip, SampleView

SHOWN = 6
_LONGEST_S = 20.0


def find_samples(run: Path) -> Path | None:
    """Where a run folder keeps samples: a folder or file that `mba sample` wrote, or the clips that the judge heard."""
    for place in (run / "samples", run / "sample.flac", run / "sample.wav", *sorted(run.glob("sc09/samples-*"))):
        if place.is_file() or (place / "samples.json").exists():
            inside(run, place.relative_to(run) / ("samples.json" if place.is_dir() else ""))
            return place
    return None


def view(samples: Path) -> SampleView:
    """The first samples by number, not the best ones; each cut to 20 seconds.

    Args:
        samples: folder with `samples.json`, or one audio file.

    Raises:
        InputError: neither of them.
    """
    with as_written(samples, "sample again"):
        if samples.is_dir():
            note = _note(inside(samples, "samples.json"))
            with inside(samples, "index.tsv").open(newline="", encoding="utf-8") as file:
                rows = sorted(csv.DictReader(file, delimiter="\t"), key=lambda row: int(row["row"]))
            named = [
                (
                    f"{row['file']}: {row['bits_per_sample']} bits per sample, rank {row['rank']}",
                    inside(samples, row["file"]),
                )
                for row in rows[:SHOWN]
            ]
            text = f"The first {len(named)} of {len(rows):,} by number, not selected"
        else:
            beside = inside(samples.parent, f"{samples.name}.json")
            note = _note(beside) if beside.exists() else {}
            named, text = [(samples.name, samples)], "One sample"
        if note:
            text += (
                f"; {note['which']} weights, {note['quantizer']}, temperature {note['temperature']:g}, seed {note['seed']}"
                + (f", continuing {note['prompt']}" if note["prompt"] else "")
            )
    return SampleView(f"{samples}. {text}.", clips=[_clip(title, path) for title, path in named])


def _note(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read ({error}); sample again") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: must hold a JSON object; sample again")
    return value


def _clip(title: str, path: Path) -> Clip:
    try:
        with soundfile.SoundFile(path) as file:
            rate = file.samplerate
            audio = file.read(round(_LONGEST_S * rate), dtype="float32", always_2d=True).mean(1)
    except soundfile.SoundFileError as error:
        raise InputError(f"{path}: not readable as audio ({error})") from None
    sound = io.BytesIO()
    soundfile.write(sound, audio, rate, format="FLAC", subtype="PCM_16")
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "clip.png"
        spectrograms([(path.name, audio)], rate, picture)
        png = picture.read_bytes()
    return Clip(title, png, sound.getvalue())
