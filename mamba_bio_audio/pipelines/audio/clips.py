"""Samples of audio as a report shows them: waveform, spectrogram and a player of each."""

from __future__ import annotations

import csv
import io
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray
from scipy.signal import resample_poly

from mamba_bio_audio.errors import InputError, as_written
from mamba_bio_audio.files import inside
from mamba_bio_audio.pipelines.audio.clip_writer import read_prompt
from mamba_bio_audio.pipelines.audio.figures import spectrograms
from mamba_bio_audio.pipelines.audio.measures import heard, levels_of
from mamba_bio_audio.pipelines.audio.quantize import AudioCodec
from mamba_bio_audio.pipelines.audio.samples import Sample, held_out_spans
from mamba_bio_audio.pipelines.audio.yardsticks import Levels
from mamba_bio_audio.pipelines.contract import Clip, SampleView
from mamba_bio_audio.pipelines.corpus import Corpus

SHOWN = 6
_LONGEST_S = 20.0
_LEAST_PLAYED_HZ = 3000
_BLOCK = 1 << 20


def find_samples(run: Path) -> Path | None:
    """Where a run folder keeps samples: a folder or file that `mba sample` wrote, or the clips that the judge heard."""
    for place in (run / "samples", run / "sample.flac", run / "sample.wav", *sorted(run.glob("sc09/samples-*"))):
        if place.is_file() or (place / "samples.json").exists():
            inside(run, place.relative_to(run) / ("samples.json" if place.is_dir() else ""))
            return place
    return None


def view(samples: Path, corpus: Corpus | None = None) -> SampleView:
    """The first samples by number, not the best ones, beside a held-out recording; each cut to 20 seconds.

    Args:
        samples: folder with `samples.json`, or one audio file.
        corpus: of the run; None shows no recording.

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
    clips = [_clip(title, path) for title, path in named]
    if corpus is not None:
        with _opened(named[0][1]) as file:
            clips.insert(0, _recorded(corpus, file.frames / file.samplerate))
    return SampleView(f"{samples}. {text}.", clips=clips)


def read_samples(samples: Path, codec: AudioCodec, gain: float) -> list[Sample]:
    """Every sample of a folder by number, or of one file.

    Args:
        samples: folder or file that `mba sample` wrote.
        codec: of the model.
        gain: by which the model's recordings are multiplied.

    Raises:
        InputError: not readable, or not audio at the codec's rate.
    """
    folder, name = (samples, "samples.json") if samples.is_dir() else (samples.parent, f"{samples.name}.json")
    beside = inside(folder, name)
    note = _note(beside) if beside.exists() else {}
    paths = [samples]
    if samples.is_dir():
        paths = [inside(samples, path.name) for path in sorted(samples.glob("sample-*.flac"))]
    sizes = note.get("prompt_samples") if note.get("keep_prompt") else 0
    prompts: list[Levels | None] = [None]
    # In the variant `sashimi` prompt and continuation are scaled by themselves.
    if not sizes and codec.variant == "standard" and (given := note.get("prompt")):
        # Where they are still there.
        names = note.get("prompt_files") or [given]
        prompts = [read_prompt(name, codec, gain).levels if Path(name).is_file() else None for name in names]
    found: list[Sample] = []
    for row, path in enumerate(paths):
        with _opened(path) as file:
            if file.samplerate != codec.sample_rate_hz:
                raise InputError(f"{path}: {file.samplerate:,} Hz, but the model has {codec.sample_rate_hz:,} Hz")
            blocks = file.blocks(_BLOCK, dtype="float64", always_2d=True)
            levels = np.concatenate([levels_of(block.mean(1), codec) for block in blocks] or [np.zeros(0, np.uint8)])
        kept = sizes[row * len(sizes) // len(paths)] if isinstance(sizes, list) else sizes or 0
        prompt = levels[:kept] if kept else prompts[row * len(prompts) // len(paths)]
        found.append(Sample(path.name, levels[kept:], prompt))
    if not found or not all(len(sample.levels) for sample in found):
        raise InputError(f"{samples}: no sound in it; sample again")
    return found


def _note(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read ({error}); sample again") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: must hold a JSON object; sample again")
    return value


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with soundfile.SoundFile(path) as file:
            yield file
    except soundfile.SoundFileError as error:
        raise InputError(f"{path}: not readable as audio ({error})") from None


def _clip(title: str, path: Path) -> Clip:
    with _opened(path) as file:
        rate = file.samplerate
        audio = file.read(round(_LONGEST_S * rate), dtype="float32", always_2d=True).mean(1)
    return _shown(title, path.name, audio, rate)


def _recorded(corpus: Corpus, seconds: float) -> Clip:
    """The middle one of the held-out pieces of so many seconds, as the model hears it."""
    rate = corpus.codec.sample_rate_hz
    spans = held_out_spans(corpus, max(1, round(min(seconds, _LONGEST_S) * rate)))
    span = spans[len(spans) // 2]
    title = f"held out, not sampled: {span.record}, from {span.start / rate:.1f} to {span.end / rate:.1f} s"
    return _shown(title, span.record, heard(corpus.fetch(span), corpus.codec)[: round(_LONGEST_S * rate)], rate)


def _shown(title: str, name: str, audio: NDArray[np.floating], rate: int) -> Clip:
    sound = io.BytesIO()
    # Browsers play nothing below 3,000 Hz.
    more = -(-_LEAST_PLAYED_HZ // rate)
    played = audio if more == 1 else resample_poly(audio, more, 1)
    soundfile.write(sound, played, more * rate, format="FLAC", subtype="PCM_16")
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "clip.png"
        spectrograms([(name, audio)], rate, picture)
        png = picture.read_bytes()
    return Clip(title, png, sound.getvalue())
