"""Sampled recordings: WAV files that grow block by block and play at any time, FLAC at the end, an index by likelihood."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, ClassVar, NamedTuple

import numpy as np
import soundfile
from numpy.typing import NDArray

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.files import (
    MARKER,
    Maker,
    atomic_path,
    check_out,
    mark,
    put_in_place,
    read_json,
    write_json,
    write_text,
)
from mamba_bio_audio.pipelines.audio import wav
from mamba_bio_audio.pipelines.audio.files import open_file
from mamba_bio_audio.pipelines.audio.quantize import AudioCodec
from mamba_bio_audio.pipelines.corpus import Ids
from mamba_bio_audio.pipelines.sample_writer import Sampled, SampleRequest, SampleWriter

_BLOCK = 1 << 20
_WRITTEN = (".wav", ".flac")
# Meant as audio files, not as folders.
_NOT_WRITTEN = (".mp3", ".ogg", ".oga", ".opus", ".m4a", ".aac", ".wma", ".aif", ".aiff", ".aifc", ".au", ".caf")
# What lies in a folder of samples; the marker is written where they were made.
SAMPLE_FILES = (MARKER, "sample-[0-9]*.flac", "index.tsv", "samples.json")
MAKER = Maker("sample", SAMPLE_FILES)
# Settings that no longer matter once everything is written.
_HOW = ("batch_size", "device", "path")
# What notes of versions before a setting existed do not say, because it was always so.
_BEFORE = {"precision": "fp32"}


class Prompt(NamedTuple):
    """A recording that samples continue."""

    path: str
    levels: NDArray[np.uint8 | np.int16]
    scale: tuple[float, float]  # minimum and maximum of its samples, by which `sashimi` scales


def read_prompt(path: str, codec: AudioCodec, gain: float = 1.0) -> Prompt:
    """Any audio file as levels, mono, at the model's rate."""
    file = open_file(path)
    samples = file.num_samples(codec.sample_rate_hz)
    # The whole file: `sashimi` needs its range, and the model reads all of it.
    audio = np.concatenate(
        [file.read(start, min(start + _BLOCK, samples), codec.sample_rate_hz) for start in range(0, samples, _BLOCK)]
    ) * np.float32(gain)
    scale = (float(audio.min()), float(audio.max()))
    return Prompt(path, codec.encode(audio), scale)


class ClipWriter(SampleWriter):
    """New samples only, without the prompt.

    Standard output: one recording as WAV, whose header gives no length if it is endless. One recording: a .wav or .flac
    file, with OUT.json beside it. Several, or a target without these suffixes: a folder with FLAC files by row,
    `index.tsv` in rising order of log-likelihood, and `samples.json`.
    """

    suffix: ClassVar[str] = "wav"
    symbol_bytes: ClassVar[int] = wav.SAMPLE_BYTES
    most: ClassVar[int | None] = wav.MAX_SAMPLES

    def __init__(self, request: SampleRequest) -> None:
        if request.out is None and sys.stdout is not None and sys.stdout.isatty():
            raise InputError(
                "a terminal cannot play WAV; pipe it (| aplay), or give --out FILE.wav, FILE.flac or a folder"
            )
        if request.prompt_file is not None:
            raise InputError("--prompt-file is for DNA; give the recording that samples continue as --prompt")
        self.request, self.out = request, request.out or Path("-")
        if request.classes:
            self.num_samples, self.classes = request.num_samples, request.classes
        self.codec = AudioCodec.of(request.config)
        self.rate_hz = self.codec.sample_rate_hz
        suffix = self.out.suffix.lower()
        self.single = request.out is None or suffix in _WRITTEN
        if request.out is None and request.num_samples > 1:
            raise InputError(
                f"standard output takes one recording; give --out and a folder for {request.num_samples:,} of them"
            )
        if self.single and request.num_samples > 1:
            raise InputError(f"{self.out}: one file holds one sample; give a folder for {request.num_samples:,}")
        if suffix in _NOT_WRITTEN:
            raise InputError(f"{self.out}: samples are written as .wav or .flac")
        if not self.single and self.out.is_file():
            raise InputError(f"{self.out} is a file, but neither .wav nor .flac; give one of these, or a folder")
        if request.length is not None and request.length > wav.MAX_SAMPLES:
            raise InputError(f"--length {request.length:,}: a WAV file holds up to {wav.MAX_SAMPLES:,} samples")
        self.note = self.out.with_name(f"{self.out.name}.json") if self.single else self.out / "samples.json"
        given = None if request.prompt is None else read_prompt(request.prompt, self.codec, request.config.gain)
        self.scale = (-1.0, 1.0) if given is None or self.codec.variant == "standard" else given.scale
        self.start = {"prompt": None if given is None else given.levels.astype(np.int64)}
        self.settings = {
            "prompt_samples": 0 if given is None else len(given.levels),
            "prompt_sha256": None if given is None else _prompt_hash(given.levels, self.scale),
        }

    def encode(self, tokens: Ids) -> bytes:
        """16-bit PCM."""
        audio, (low, high) = self.codec.decode(tokens).astype(np.float64), self.scale
        # `sashimi` levels lie in the range of the item; a prompt says which that is.
        return wav.pcm(audio if self.scale == (-1.0, 1.0) else (audio + 1) / 2 * (high - low) + low)

    def header(self, symbols: int | None) -> bytes:
        """Of a WAV file, so that one whose writer was killed plays to its last block."""
        return wav.header(symbols, self.codec.sample_rate_hz)

    def check_target(self, *, replace: bool) -> None:
        """Only a file with a note of ours beside it, or a folder of samples, is replaced."""
        if not self.single:
            inputs: list[Path | str] = [
                self.request.run,
                *([] if self.request.prompt is None else [self.request.prompt]),
            ]
            check_out(self.out, MAKER, inputs, force=True)
            return
        if self.note.exists() and not replace:
            raise InputError(
                f"{self.note} exists, and would be replaced; choose another --out, or replace it with --force"
            )
        ours = "log_likelihood" in _read_note(self.note)
        if self.out.exists() and not ours:
            raise InputError(
                f"{self.out}: not made by mba sample ({self.note.name} is missing or does not describe samples), so it is not "
                "replaced; choose another --out, or move the file away"
            )
        if os.path.lexists(self.note) and not ours:
            raise InputError(
                f"{self.note}: does not describe samples, and would be replaced; choose another --out, or move the file away"
            )

    def check_complete(self, settings: Mapping[str, Any]) -> None:
        """The note tells the settings."""
        remedy = "choose another --out, or replace it with --force"
        if not self.note.is_file():
            raise InputError(f"{self.out}: complete, but without {self.note}, which says how it was sampled; {remedy}")
        try:
            made = read_json(self.note)
            if not isinstance(made, dict) or not made.keys() & settings.keys():
                raise ValueError("no settings of samples")
        except ValueError as error:
            raise InputError(f"{self.note}: damaged ({error}); {remedy}") from None
        made = _BEFORE | made
        different = [key for key in settings if key in made and key not in _HOW and made[key] != settings[key]]
        if different:
            changes = ", ".join(f"{key} {made[key]}, not {settings[key]}" for key in different)
            raise InputError(f"{self.out}: complete, but sampled with {changes}; {remedy}")

    def finish(self, sampled: Sampled, work: Path) -> str:
        """The file and its note, or the folder."""
        described: dict[str, Any] = dict(sampled.settings) | {
            "run": str(self.request.run),
            "which": sampled.which,
            "quantizer": self.codec.description,
            "sample_rate_hz": self.codec.sample_rate_hz,
            "scale": list(self.scale),
            "samples_per_second": sampled.symbols_per_second,
            "environment": dict(sampled.environment),
        }
        if self.single:
            # First the note, by which the file is known as ours if this is killed in between.
            write_json(self.note, described | {"log_likelihood": sampled.log_likelihood[0]})
            _finish(sampled.rows[0], self.out)
        else:
            self._finish_folder(sampled, work / "whole", described)
        rate, count = sampled.symbols_per_second, self.request.num_samples
        speed = (
            "" if rate is None else f"; {rate:,.0f} samples/s, {rate / self.codec.sample_rate_hz:.3g} times real time"
        )
        return (
            f"{count:,} clip{'s' * (count != 1)} of {sampled.length:,} samples ({sampled.which} weights, "
            f"{self.codec.description}){speed}"
        )

    def stream(self, blocks: Iterable[Any], to: IO[str]) -> Iterator[Any]:
        """WAV, to be played while it is made."""
        to.buffer.write(self.header(self.request.length))  # type: ignore[attr-defined]
        for block in blocks:
            to.buffer.write(self.encode(block.tokens[0].numpy()))  # type: ignore[attr-defined]
            to.buffer.flush()  # type: ignore[attr-defined]
            yield block

    def _finish_folder(self, sampled: Sampled, whole: Path, described: Mapping[str, Any]) -> None:
        shutil.rmtree(whole, ignore_errors=True)
        whole.mkdir()
        names = [f"sample-{row:05d}.flac" for row in range(len(sampled.rows))]
        for path, name in zip(sampled.rows, names, strict=True):
            _finish(path, whole / name)
        write_text(whole / "index.tsv", index_text(sampled.log_likelihood, sampled.length, names, self.classes))
        write_json(whole / "samples.json", dict(described) | {"log_likelihood": list(sampled.log_likelihood)})
        mark(whole, MAKER)
        put_in_place(whole, self.out, MAKER)


def _read_note(note: Path) -> dict[str, Any]:
    try:
        value = read_json(note)
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _prompt_hash(levels: NDArray[np.uint8 | np.int16], scale: tuple[float, float]) -> str:
    """SHA-256 of a prompt as the model reads it, and of the range that its levels lie in."""
    return hashlib.sha256(levels.tobytes() + np.array(scale).tobytes()).hexdigest()


def index_text(nats: Sequence[float], length: int, names: Sequence[str], classes: Sequence[str] = ()) -> str:
    """The table of samples, the least likely first, as published protocols sort them."""
    lines = ["rank\tfile\trow\tlog_likelihood_nats\tbits_per_sample" + ("\tclass" if classes else "")]
    for rank, row in enumerate(sorted(range(len(nats)), key=lambda row: (nats[row], row))):
        bits = -nats[row] / math.log(2) / length
        of_class = f"\t{classes[row]}" if classes else ""
        lines.append(f"{rank}\t{names[row]}\t{row}\t{nats[row]:.9g}\t{bits:.6g}{of_class}")
    return "\n".join(lines) + "\n"


def _finish(source: Path, target: Path) -> None:
    """A finished WAV to where it belongs, as WAV or, block by block, as FLAC."""
    with atomic_path(target) as temporary:
        if target.suffix.lower() == ".wav":
            shutil.copyfile(source, temporary)
            return
        with (
            soundfile.SoundFile(source) as read,
            soundfile.SoundFile(temporary, "w", read.samplerate, 1, "PCM_16", format="FLAC") as write,
        ):
            for block in read.blocks(_BLOCK, dtype="int16"):
                write.write(block)
