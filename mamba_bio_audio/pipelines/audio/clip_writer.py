"""Sampled recordings: WAV files that grow block by block and play at any time, FLAC at the end, an index by likelihood."""

from __future__ import annotations

import hashlib
import math
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np
import soundfile
from numpy.typing import NDArray

from mamba_bio_audio.errors import InputError, OtherSettings
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
from mamba_bio_audio.pipelines.audio.files import FORMATS, list_files, open_file, probe, refuse_inside
from mamba_bio_audio.pipelines.audio.quantize import AudioCodec
from mamba_bio_audio.pipelines.corpus import Ids
from mamba_bio_audio.pipelines.sample_writer import Sampled, SampleRequest, SampleWriter
from mamba_bio_audio.text import printable

_BLOCK = 1 << 20
_WRITTEN = (".wav", ".flac")
# Meant as audio files, not as folders.
_NOT_WRITTEN = {*FORMATS, ".m4a", ".aac", ".wma"} - {*_WRITTEN}
# What lies in a folder of samples; the marker is written where they were made.
SAMPLE_FILES = (MARKER, "sample-[0-9]*.flac", "index.tsv", "samples.json")
MAKER = Maker("sample", SAMPLE_FILES)
# Settings that no longer matter once everything is written.
_HOW = ("batch_size", "device", "path")
# What notes of versions before a setting existed do not say, because it was always so.
_BEFORE = {
    **{"precision": "fp32", "keep_prompt": False, "guidance": 0.0, "min_p": None, "hold": 0.0},
    **{"best_of": 1, "usual_bits": None},
}
# Letters of a prompt's name in the names of its samples.
_NAME_LETTERS = 40


@dataclass(frozen=True)
class Prompt:
    """A recording that samples continue, as levels; read in slices as `streaming.Row`.

    Attributes:
        path: of the recording.
        levels: (P,), mono, at the model's rate.
        scale: minimum and maximum of its samples, by which `sashimi` scales.
    """

    path: str
    levels: NDArray[np.uint8 | np.int16]
    scale: tuple[float, float] = (-1.0, 1.0)

    def __len__(self) -> int:
        return len(self.levels)

    def __getitem__(self, piece: slice) -> Ids:
        return self.levels[piece]

    @property
    def sha256(self) -> str:
        """Of the levels and, with `sashimi`, of the range that they lie in."""
        return hashlib.sha256(self.levels.tobytes() + np.array(self.scale).tobytes()).hexdigest()

    @property
    def label(self) -> str:
        """Its name without what not every system takes in the name of a file."""
        return re.sub(r"[^A-Za-z0-9_-]+", "_", Path(self.path).stem)[:_NAME_LETTERS]


def read_prompt(path: str, codec: AudioCodec, gain: float = 1.0) -> Prompt:
    """Any audio file as levels, mono, at the model's rate."""
    file = open_file(path)
    samples = file.num_samples(codec.sample_rate_hz)
    # The whole file: `sashimi` needs its range, and the model reads all of it.
    audio = np.concatenate(
        [file.read(start, min(start + _BLOCK, samples), codec.sample_rate_hz) for start in range(0, samples, _BLOCK)]
    ) * np.float32(gain)
    prompt = Prompt(path, codec.encode(audio))
    return prompt if codec.variant == "standard" else replace(prompt, scale=(float(audio.min()), float(audio.max())))


def prompt_paths(given: Sequence[str]) -> list[str]:
    """Audio files; a folder stands for the recordings in it and below it, in natural order of their names.

    Raises:
        InputError: a folder has none.
    """
    paths: list[str] = []
    for path in given:
        try:
            paths += [inside for inside, _ in list_files(path)] if os.path.isdir(path) else [path]
        except InputError as error:
            raise InputError(f"--prompt {str(error).removeprefix('data.path: ')}") from None
    return paths


class ClipWriter(SampleWriter):
    """New samples, with `keep_prompt` behind the prompt as the model heard it: mono, at its rate, quantised.

    Standard output: one recording as WAV, whose header gives no length if it is endless. One recording: a .wav or .flac
    file, with OUT.json beside it. Several, or a target without these suffixes: a folder with FLAC files by row,
    `index.tsv` in rising order of log-likelihood, and `samples.json`. Rows of one prompt follow each other, and where there
    are several, names and index say which it is.
    """

    suffix: ClassVar[str] = "wav"
    symbol_bytes: ClassVar[int] = wav.SAMPLE_BYTES

    def __init__(self, request: SampleRequest) -> None:
        if request.out is None and sys.stdout is not None and sys.stdout.isatty():
            raise InputError(
                "a terminal cannot play WAV; pipe it (| aplay), or give --out FILE.wav, FILE.flac or a folder"
            )
        if request.prompt_file is not None:
            raise InputError(
                "--prompt-file is for DNA; give the recordings that samples continue, or a folder, as --prompt"
            )
        self.request, self.out = request, request.out or Path("-")
        self.codec = AudioCodec.of(request.config)
        suffix = self.out.suffix.lower()
        if suffix in _NOT_WRITTEN:
            raise InputError(f"{self.out}: samples are written as .wav or .flac")
        self.single = request.out is None or suffix in _WRITTEN
        if not self.single and self.out.is_file():
            raise InputError(f"{self.out} is a file, but neither .wav nor .flac; give one of these, or a folder")
        paths = prompt_paths(request.prompts)
        if request.out is not None:
            refuse_inside(request.out, request.prompts)
        count = self.num_samples = request.num_samples * max(1, len(paths))
        self.classes = tuple(request.classes) * max(1, len(paths))
        if request.out is None and count > 1:
            raise InputError(f"standard output takes one recording; give --out and a folder for {count:,} of them")
        if self.single and count > 1:
            raise InputError(f"{self.out}: one file holds one sample; give a folder for {count:,}")
        self.prompts = [read_prompt(path, self.codec, request.config.gain) for path in paths]
        kept = max((len(self.kept(row)) for row in range(0, count, request.num_samples)), default=0)
        self.most = wav.MAX_SAMPLES - kept
        if (request.length or 1) > self.most:
            behind = f" behind {kept:,} of a prompt" if kept else ""
            asked = "an endless sample" if request.length is None else f"{request.length:,} samples"
            raise InputError(
                f"{asked} asked for, but a WAV file holds up to {wav.MAX_SAMPLES:,}; choose at most {self.most:,}{behind}"
            )
        self.note = self.out.with_name(f"{self.out.name}.json") if self.single else self.out / "samples.json"
        sizes, hashes = [len(one) for one in self.prompts], [one.sha256 for one in self.prompts]
        self.start: dict[str, Any] = {"prompt": self.prompts[0].levels.astype(np.int64) if self.prompts else None}
        if self.prompts and count > 1:
            # An object of several rows is read once.
            self.start = {"prompt": [self._prompt(row) for row in range(count)]}
        self.settings = {"prompt_samples": sum(sizes), "prompt_sha256": hashes[0] if hashes else None}
        if len(self.prompts) > 1:
            self.settings = {"prompt_samples": sizes, "prompt_sha256": hashes, "prompt_files": paths}

    @property
    def remarks(self) -> list[str]:
        """What is wrong with the sound of prompts, but for those that `data.gain` changes."""
        if self.request.config.gain != 1:
            return []
        findings = {one.path: probe(one.path).health["findings"] for one in self.prompts}
        return [f"--prompt {path}: {'; '.join(found)}" for path, found in findings.items() if found]

    def _prompt(self, row: int) -> Prompt:
        return self.prompts[row // self.request.num_samples]

    def kept(self, row: int) -> Any:
        """The levels of a prompt that is kept."""
        return self._prompt(row).levels if self.request.keep_prompt else ()

    def encode(self, tokens: Ids, row: int = 0) -> bytes:
        """16-bit PCM."""
        low, high = scale = self._scale(row)
        audio = self.codec.decode(tokens).astype(np.float64)
        # `sashimi` levels lie in the range of the item; a prompt says which that is.
        return wav.pcm(audio if scale == (-1.0, 1.0) else (audio + 1) / 2 * (high - low) + low)

    def _scale(self, row: int) -> tuple[float, float]:
        return self._prompt(row).scale if self.prompts else (-1.0, 1.0)

    def header(self, symbols: int | None) -> bytes:
        """Of a WAV file, so that one whose writer was killed plays to its last block."""
        return wav.header(symbols, self.codec.sample_rate_hz)

    def check_target(self, *, replace: bool) -> None:
        """Only a file with a note of ours beside it, or a folder of samples, is replaced."""
        if not self.single:
            inputs: list[Path | str] = [self.request.run, *self.request.prompts]
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
        # What was always so comes last.
        made, settings = _BEFORE | made, {**settings, **(_BEFORE | dict(settings))}
        different = [key for key in settings if key in made and key not in _HOW and made[key] != settings[key]]
        if different:
            changes = ", ".join(f"{key} {made[key]}, not {settings[key]}" for key in different)
            raise OtherSettings(f"{self.out}: complete, but sampled with {changes}; {remedy}", made, different)

    def finish(self, sampled: Sampled, work: Path) -> str:
        """The file and its note, or the folder."""
        scales = [list(self._scale(row)) for row in range(0, self.num_samples or 1, self.request.num_samples)]
        described: dict[str, Any] = dict(sampled.settings) | {
            "run": str(self.request.run),
            "which": sampled.which,
            "quantizer": self.codec.description,
            "sample_rate_hz": self.codec.sample_rate_hz,
            "scale": scales if len(self.prompts) > 1 else scales[0],
            "samples_per_second": sampled.symbols_per_second,
            "environment": dict(sampled.environment),
        }
        if self.prompts:
            # Not those given, which may be a folder.
            described["prompt_files"] = [one.path for one in self.prompts]
        if self.single:
            # First the note, by which the file is known as ours if this is killed in between.
            write_json(self.note, described | {"log_likelihood": sampled.log_likelihood[0]})
            _finish(sampled.rows[0], self.out)
        else:
            self._finish_folder(sampled, work / "whole", described)
        rate, count = sampled.symbols_per_second, len(sampled.rows)
        behind = (
            f" behind {'their prompts' if len(self.prompts) > 1 else 'the prompt'}" if self.request.keep_prompt else ""
        )
        speed = (
            "" if rate is None else f"; {rate:,.0f} samples/s, {rate / self.codec.sample_rate_hz:.3g} times real time"
        )
        return (
            f"{count:,} clip{'s' * (count != 1)} of {sampled.length:,} samples{behind} ({sampled.which} weights, "
            f"{self.codec.description}){speed}"
        )

    def stream(self, blocks: Iterable[Any], to: IO[str]) -> Iterator[Any]:
        """WAV, to be played while it is made."""
        write = to.buffer.write  # type: ignore[attr-defined]
        write(self.header(None if self.request.length is None else len(self.kept(0)) + self.request.length))
        for piece in self.kept_bytes(0):
            write(piece)
        for block in blocks:
            write(self.encode(block.tokens[0].numpy()))
            to.buffer.flush()  # type: ignore[attr-defined]
            yield block

    def _finish_folder(self, sampled: Sampled, whole: Path, described: Mapping[str, Any]) -> None:
        shutil.rmtree(whole, ignore_errors=True)
        whole.mkdir()
        prompts = [self._prompt(row) for row in range(len(sampled.rows))] if len(self.prompts) > 1 else []
        names = [
            f"sample-{row:05d}{f'-{prompts[row].label}' if prompts else ''}.flac" for row in range(len(sampled.rows))
        ]
        for path, name in zip(sampled.rows, names, strict=True):
            _finish(path, whole / name)
        prompted = [one.path for one in prompts]
        index = index_text(sampled.log_likelihood, sampled.length, names, self.classes, prompted)
        write_text(whole / "index.tsv", index)
        write_json(whole / "samples.json", dict(described) | {"log_likelihood": list(sampled.log_likelihood)})
        mark(whole, MAKER)
        put_in_place(whole, self.out, MAKER)


def _read_note(note: Path) -> dict[str, Any]:
    try:
        value = read_json(note)
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def index_text(
    nats: Sequence[float], length: int, names: Sequence[str], classes: Sequence[str] = (), prompts: Sequence[str] = ()
) -> str:
    """The table of samples, the least likely first, as published protocols sort them.

    Args:
        nats: log-likelihood of each.
        length: new samples of each, which it is of.
        names: files.
        classes, prompts: of each row; none leaves out their column.
    """
    head = "rank\tfile\trow\tlog_likelihood_nats\tbits_per_sample"
    lines = [head + "\tclass" * bool(classes) + "\tprompt" * bool(prompts)]
    for rank, row in enumerate(sorted(range(len(nats)), key=lambda row: (nats[row], row))):
        bits = -nats[row] / math.log(2) / length
        cells = [f"{rank}", names[row], f"{row}", f"{nats[row]:.9g}", f"{bits:.6g}"]
        lines.append("\t".join([*cells, *classes[row : row + 1], *map(printable, prompts[row : row + 1])]))
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
