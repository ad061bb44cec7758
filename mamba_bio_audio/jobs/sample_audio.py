"""New recordings: WAV files that grow block by block and play at any time, FLAC at the end, an index by likelihood."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
from numpy.typing import NDArray

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.files import (
    Maker,
    atomic_path,
    check_out,
    locked,
    mark,
    put_in_place,
    read_json,
    unfinished,
    write_json,
    write_text,
)
from mamba_bio_audio.inference.row_files import RowFiles
from mamba_bio_audio.pipelines.audio import wav
from mamba_bio_audio.pipelines.audio.files import open_file
from mamba_bio_audio.pipelines.audio.quantize import AudioCodec
from mamba_bio_audio.run.environment import environment
from mamba_bio_audio.run.folder import SAMPLE_FILES
from mamba_bio_audio.run.saved import Which, describe_which
from mamba_bio_audio.signals import StopSignal

_BLOCK = 1 << 20
_WRITTEN = (".wav", ".flac")
# Meant as files of audio, not as folders.
_NOT_WRITTEN = (".mp3", ".ogg", ".oga", ".opus", ".m4a", ".aac", ".wma", ".aif", ".aiff", ".aifc", ".au", ".caf")
# What lies in a folder of samples; the marker is written where they were made.
MAKER = Maker("sample", SAMPLE_FILES)
# Of the settings, those that decide nothing once all is written.
_HOW = ("batch_size", "device")


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


def sample_audio(
    model: Any,
    run: Path,
    out: Path,
    *,
    which: Which,
    weights: str,
    length: int,
    num_samples: int,
    batch_size: int,
    prompt: str | None,
    draws: dict[str, Any],
    device: str,
    resume: bool,
    force: bool,
    cuda_graph: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> str | None:
    """Sample recordings, the continuation only where there is a prompt.

    Args:
        model: of audio, on its device.
        out: one sample: a .wav or .flac file, with OUT.json beside it. Otherwise a folder: FLAC files by row,
            `index.tsv` in rising order of log-likelihood, `samples.json`. Until it is whole all lies in OUT.part.
            With `resume`, one that is whole is only compared with what is asked for.
        weights: hash of the model's weights.
        length: samples per recording, without the prompt.
        prompt: audio file that comes before.
        draws: temperature, top_k, top_p, seed.
        cuda_graph: as of `inference.generate`.

    Returns:
        Name of the signal that stopped it, None at the end.

    Raises:
        InputError: a bad prompt or --out, or a whole one made otherwise, before anything is sampled.
    """
    codec: AudioCodec = model.codec
    single = out.suffix.lower() in _WRITTEN
    if single and num_samples > 1:
        raise InputError(f"{out}: one file holds one sample; give a folder for {num_samples:,}")
    if out.suffix.lower() in _NOT_WRITTEN:
        raise InputError(f"{out}: samples are written as .wav or .flac")
    if not single and out.is_file():
        raise InputError(f"{out} is a file, and no .wav or .flac; give one of these, or a folder")
    if length > wav.MAX_SAMPLES:
        raise InputError(f"--length {length:,}: a WAV file holds up to {wav.MAX_SAMPLES:,} samples")
    given = None
    if prompt is not None:
        gain = model.config.data.gain
        given = read_prompt(prompt, codec, gain)
    low, high = (-1.0, 1.0) if given is None or codec.variant == "standard" else given.scale

    def encode(levels: NDArray[Any]) -> bytes:
        audio = codec.decode(levels).astype(np.float64)
        # `sashimi` levels lie in the range of the item; a prompt says which that is.
        return wav.pcm(audio if (low, high) == (-1.0, 1.0) else (audio + 1) / 2 * (high - low) + low)

    settings: dict[str, Any] = draws | {
        "length": length,
        "num_samples": num_samples,
        "batch_size": batch_size,
        "prompt": prompt,
        "prompt_samples": 0 if given is None else len(given.levels),
        "prompt_sha256": None if given is None else _prompt_hash(given.levels, (low, high)),
        "weights": weights,
        "device": device,
    }
    rate = Rate()
    rows = RowFiles(
        unfinished(out),
        settings,
        encode=encode,
        symbol_bytes=wav.SAMPLE_BYTES,
        suffix="wav",
        header=lambda samples: wav.header(samples, codec.sample_rate_hz),
    )
    note = out.with_name(f"{out.name}.json") if single else out / "samples.json"
    begun = rows.folder.exists()
    if resume and out.exists() and not begun:
        _check_made(out, note, rows.settings)
        return None
    if single and note.exists() and not (force or resume):
        raise InputError(f"{note} exists, and would be replaced; choose another --out, or replace it with --force")
    with locked(out), StopSignal() as stop:
        inputs: list[str | Path] = [run] if prompt is None else [run, prompt]
        _check_target(out, note, inputs, single)
        rows.begin(resume=resume, force=force)

        def report(done: int, total: int) -> None:
            rate.count(done)
            if progress is not None:
                progress(done, total)

        nats = rows.sample(
            model,
            length=length,
            num_samples=num_samples,
            batch_size=batch_size,
            prompt=None if given is None else given.levels.astype(np.int64),
            progress=report,
            stop=lambda: stop.number is not None,
            cuda_graph=cuda_graph,
            **draws,
        )
        if nats is None:
            assert stop.number is not None
            return signal.Signals(stop.number).name
        described: dict[str, Any] = settings | {
            "run": str(run),
            "which": describe_which(model.config, which),
            "quantizer": codec.description,
            "sample_rate_hz": codec.sample_rate_hz,
            "scale": [low, high],
            "samples_per_second": rate.per_second,
            "environment": environment(device),
        }
        # Again: hours may have gone by.
        _check_target(out, note, inputs, single)
        if single:
            # First the note, by which the file is known as ours if this is killed in between.
            write_json(note, described | {"log_likelihood": nats[0]})
            _finish(rows.path(0), out)
        else:
            _finish_folder(rows, out, nats, length, described)
        rows.remove()
    return None


def _check_target(out: Path, note: Path, inputs: Sequence[str | Path], single: bool) -> None:
    """Refuse to replace anything but samples.

    Raises:
        InputError: something else is in the place of `out`, or lies in it.
    """
    if not single:
        check_out(out, MAKER, inputs, force=True)
        return
    ours = "log_likelihood" in _read_note(note)
    if out.exists() and not ours:
        raise InputError(
            f"{out}: not made by mba sample ({note.name} is missing or says nothing of samples), so it is not replaced; choose "
            "another --out, or move the file away"
        )
    if os.path.lexists(note) and not ours:
        raise InputError(
            f"{note}: says nothing of samples, and would be replaced; choose another --out, or move the file away"
        )


def _read_note(note: Path) -> dict[str, Any]:
    try:
        value = read_json(note)
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _prompt_hash(levels: NDArray[np.uint8 | np.int16], scale: tuple[float, float]) -> str:
    """SHA-256 of a prompt as the model reads it, and of the range that its levels lie in."""
    return hashlib.sha256(levels.tobytes() + np.array(scale).tobytes()).hexdigest()


def _check_made(out: Path, note: Path, settings: dict[str, Any]) -> None:
    """Refuse to call samples complete that were made with other settings than these, as far as `note` records them.

    Raises:
        InputError: they were, or nothing says how.
    """
    remedy = "choose another --out, or replace it with --force"
    if not note.is_file():
        raise InputError(f"{out}: complete, but without {note}, which says how it was sampled; {remedy}")
    try:
        made = read_json(note)
        if not isinstance(made, dict) or not made.keys() & settings.keys():
            raise ValueError("no settings of samples")
    except ValueError as error:
        raise InputError(f"{note}: damaged ({error}); {remedy}") from None
    different = [key for key in settings if key in made and key not in _HOW and made[key] != settings[key]]
    if different:
        changes = ", ".join(f"{key} {made[key]}, not {settings[key]}" for key in different)
        raise InputError(f"{out}: complete, but sampled with {changes}; {remedy}")


class Rate:
    """Samples per second after the first block, in which everything warms up."""

    def __init__(self) -> None:
        self.first: tuple[int, float] | None = None
        self.last: tuple[int, float] | None = None

    def count(self, done: int) -> None:
        """So many samples are there now, over all rows."""
        self.last = (done, time.perf_counter())
        self.first = self.first or self.last

    @property
    def per_second(self) -> float | None:
        """Over all rows; None where there was only one block."""
        if self.first is None or self.last is None or self.last[0] == self.first[0]:
            return None
        return (self.last[0] - self.first[0]) / (self.last[1] - self.first[1])


def index_text(nats: Sequence[float], length: int, names: Sequence[str]) -> str:
    """The table of samples, the least likely first, as published protocols sort them."""
    lines = ["rank\tfile\trow\tlog_likelihood_nats\tbits_per_sample"]
    for rank, row in enumerate(sorted(range(len(nats)), key=lambda row: (nats[row], row))):
        bits = -nats[row] / math.log(2) / length
        lines.append(f"{rank}\t{names[row]}\t{row}\t{nats[row]:.9g}\t{bits:.6g}")
    return "\n".join(lines) + "\n"


def _finish_folder(rows: RowFiles, out: Path, nats: Sequence[float], length: int, described: dict[str, Any]) -> None:
    whole = rows.folder / "whole"
    shutil.rmtree(whole, ignore_errors=True)
    whole.mkdir()
    names = [f"sample-{row:05d}.flac" for row in range(len(nats))]
    for row, name in enumerate(names):
        _finish(rows.path(row), whole / name)
    write_text(whole / "index.tsv", index_text(nats, length, names))
    write_json(whole / "samples.json", described | {"log_likelihood": list(nats)})
    mark(whole, MAKER)
    put_in_place(whole, out, MAKER)


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
