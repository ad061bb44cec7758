"""Recordings on disk: reads windows as mono at one rate, and finds what is wrong with a file.

Resampling is torchaudio's windowed sinc, evaluated for whole periods of the two rates around the window, so that windows
equal pieces of the resampled whole; for the decoding see `decoding.py`.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.files import name_full_disk
from mamba_bio_audio.pipelines.audio import decoding
from mamba_bio_audio.text import is_utf8

# Suffix -> containers that it may have, as named by libsndfile: all that it reads, but for raw samples and MATLAB files.
_WAV, _OGG, _AIFF = {"WAV", "WAVEX", "RF64", "W64", "NIST"}, {"OGG"}, {"AIFF"}
FORMATS = {".wav": _WAV, ".flac": {"FLAC"}, ".ogg": _OGG, ".mp3": {"MP3"}}
FORMATS |= {".aif": _AIFF, ".aiff": _AIFF, ".aifc": _AIFF, ".au": {"AU"}, ".snd": {"AU"}, ".caf": {"CAF"}}
FORMATS |= {".wave": _WAV, ".bwf": _WAV, ".rf64": _WAV, ".w64": _WAV, ".oga": _OGG, ".opus": _OGG, ".mp2": {"MP3"}}
FORMATS |= {".8svx": {"SVX"}, ".sf": {"IRCAM"}, ".sph": {"NIST"}}
FORMATS |= {f".{name.lower()}": {name} for name in ("AVR", "HTK", "IRCAM", "NIST", "PAF", "PVF", "SD2")}
FORMATS |= {f".{name.lower()}": {name} for name in ("SDS", "VOC", "WVE", "XI")}
_MAX_KERNEL = 1 << 26


@dataclass(frozen=True)
class AudioFile:
    """One recording.

    Attributes:
        path: path of the file.
        name: path relative to the given folder, with forward slashes.
        frames: samples per channel at the file's own rate.
        native_rate_hz: the file's own sample rate.
        channels: number of channels, which are mixed to mono by their mean.
        codec: libsndfile's name of the encoding, such as "PCM_16".
    """

    path: str
    name: str
    frames: int
    native_rate_hz: int
    channels: int
    codec: str

    def num_samples(self, rate_hz: int) -> int:
        """Number of samples at a rate: frames times the ratio of the rates, rounded up."""
        return -(-self.frames * rate_hz // self.native_rate_hz)

    def read(self, start: int, stop: int, rate_hz: int) -> NDArray[np.float32]:
        """Read samples [start, stop) at a rate, as mono float32.

        Raises:
            InputError: samples are missing, NaN or infinite; names file and position.
        """
        if not 0 <= start <= stop <= self.num_samples(rate_hz):
            raise ValueError(f"{self.name}: samples {start}..{stop} of {self.num_samples(rate_hz)}")
        if start == stop:
            return np.zeros(0, np.float32)
        if rate_hz == self.native_rate_hz:
            return self._native(start, stop)
        import torch

        resampler = _resampler(self.native_rate_hz, rate_hz, self.path)
        common = math.gcd(self.native_rate_hz, rate_hz)
        per_period, out_per_period = self.native_rate_hz // common, rate_hz // common
        # An output reads `width` inputs before and after its own period.
        margin = -(-resampler.width // per_period)
        first, last = start // out_per_period - margin, -(-stop // out_per_period) + margin
        native = self._native(first * per_period, last * per_period)
        resampled = resampler(torch.from_numpy(native)).numpy()
        offset = first * out_per_period
        return resampled[start - offset : stop - offset].copy()

    def _native(self, start: int, stop: int) -> NDArray[np.float32]:
        """Read frames [start, stop) at the file's own rate, with zeros before its start and after its end."""
        low, high = max(start, 0), min(stop, self.frames)
        out = np.zeros(stop - start, np.float32)
        if low < high:
            out[low - start : high - start] = self._mono(low, high)
        return out

    def _mono(self, start: int, stop: int) -> NDArray[np.float32]:
        """Frames [start, stop) mixed to mono."""
        try:
            found = decoding.window(self.path, self.codec, start, stop)
        except (soundfile.SoundFileError, OSError) as error:
            raise self._undecodable(start, error) from error
        self._check_end(start + len(found), stop)
        return self._mixed(found, start)

    def _undecodable(self, position: int, error: Exception) -> InputError:
        return InputError(f"{self.path}: cannot be decoded at sample {position} ({error}); {_CHECK}")

    def _check_end(self, end: int, wanted: int) -> None:
        if end < wanted:
            raise InputError(
                f"{self.path}: truncated: the header claims {self.frames} samples, but decoding ends at {end}; {_CHECK}"
            )

    def _mixed(self, frames: decoding.Frames, start: int) -> NDArray[np.float32]:
        """The mean of the channels; `start` is the position of the frames in the file."""
        mono = frames[:, 0] if frames.shape[1] == 1 else frames.mean(1, dtype=np.float32)
        if not np.isfinite(mono).all():
            position = start + int(np.flatnonzero(~np.isfinite(mono))[0])
            raise InputError(f"{self.path}: NaN or infinite sample at {position}; {_CHECK}")
        return mono


@dataclass(frozen=True)
class DecodedFile(AudioFile):
    """A recording that was decoded completely.

    Attributes:
        samples: file with all of it, float32, mono at the recording's own rate.
    """

    samples: Path

    def _mono(self, start: int, stop: int) -> NDArray[np.float32]:
        return np.fromfile(self.samples, np.float32, stop - start, offset=4 * start)


_REPLACE = "replace the file, or leave it out"
# For faults that only decoding reveals, which opening a data set does not do.
_CHECK = "replace the file, or leave it out (mba prepare audio finds all such files)"


@lru_cache(maxsize=8)
def _resampler(native_rate_hz: int, rate_hz: int, path: str = "") -> Any:
    """torchaudio's resampler, whose kernel is computed only once."""
    common = math.gcd(native_rate_hz, rate_hz)
    if (native_rate_hz // common) * (rate_hz // common) > _MAX_KERNEL:
        raise InputError(
            f"{path}: resampling from {native_rate_hz} Hz to {rate_hz} Hz has no short period (greatest common divisor "
            f"{common}); resample it to a common rate first, or choose {native_rate_hz} Hz"
        )
    import torch
    from torchaudio.transforms import Resample

    # Single precision would place the taps only to about 1e-5 of a sample.
    return Resample(native_rate_hz, rate_hz, dtype=torch.float64).float()


def natural_key(name: str) -> list[tuple[int, int | str]]:
    """Sort key that puts 2.wav before 10.wav."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", name) if part]


def list_files(paths: str | Sequence[str]) -> list[tuple[str, str]]:
    """(path, name) of the recordings that `data.path` means, in natural order of their names.

    Raises:
        InputError: a path is missing, a folder has no recording, two files have the same name, a name is not UTF-8, or a
            link leads back to a folder above it.
    """
    found: list[tuple[str, str]] = []
    for given in [paths] if isinstance(paths, str) else paths:
        path = Path(os.path.expanduser(given))
        if path.is_dir():
            inside = _recordings_below(path)
            if not inside:
                raise InputError(
                    f"data.path: {given}: no {', '.join(FORMATS)} file in this folder or below it; give another folder"
                )
            found += [(str(entry), entry.relative_to(path).as_posix()) for entry in inside]
        elif path.is_file():
            found.append((str(path), path.name))
        else:
            raise InputError(f"data.path: {given}: no such file or folder; correct the path")
    for entry, _ in found:
        readable = os.fsencode(entry).decode("utf-8", "backslashreplace")
        if readable != entry:
            raise InputError(f"data.path: {readable}: the name is not UTF-8; rename the file")
    found.sort(key=lambda entry: natural_key(entry[1]))
    for (path_a, name), (path_b, other) in itertools.pairwise(found):
        if name == other:
            raise InputError(f"data.path: {path_a} and {path_b} have the same name; give their common folder instead")
    return found


def _recordings_below(folder: Path) -> list[Path]:
    """Files with a known suffix, following links; broken links are included, to be reported as bad files."""
    inside = []
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in folders:
            link = Path(place, name)
            if link.is_symlink() and Path(place).resolve().is_relative_to(link.resolve()):
                raise InputError(f"data.path: {link}: this link leads back to a folder above it; remove it")
        inside += [
            Path(place, name) for name in names if Path(name).suffix.lower() in FORMATS and not name.startswith(".")
        ]
    return inside


def content_hash(paths: str | Sequence[str], files: Sequence[AudioFile]) -> list[dict[str, Any]]:
    """Describe the recordings of each entry of `data.path`, for manifests.

    Args:
        paths: as for `list_files`.
        files: the recordings that are used, in order.

    Returns:
        One dict per entry: name, path, number of recordings, and sha256 over their names and contents.
    """
    entries = []
    for given in [paths] if isinstance(paths, str) else paths:
        root = Path(os.path.expanduser(given))
        own = [file for file in files if Path(file.path) == root or root in Path(file.path).parents]
        whole = hashlib.sha256()
        for file in own:
            with open(file.path, "rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").digest()
            whole.update(file.name.encode() + b"\0" + digest)
        entries.append({"name": root.name, "path": str(root), "recordings": len(own), "sha256": whole.hexdigest()})
    return entries


def open_file(path: str, name: str | None = None) -> AudioFile:
    """Read and check a file's header.

    Raises:
        InputError: it is not audio, has a name that cannot be opened, the wrong extension or fewer than two samples, or is
            truncated; names the file.
    """
    if not is_utf8(path):
        raise InputError(f"{path}: the name is not UTF-8, so libsndfile cannot open the file; rename it")
    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        raise InputError(f"{path}: the extension is none of {', '.join(FORMATS)}; rename or convert the file")
    size = os.path.getsize(path) if os.path.exists(path) else None
    if size is None:
        raise InputError(f"{path}: no such file; correct the path")
    if size == 0:
        raise InputError(f"{path}: zero length; {_REPLACE}")
    try:
        info = soundfile.info(path)
    except (soundfile.SoundFileError, OSError) as error:
        raise InputError(f"{path}: not readable as {suffix[1:].upper()} ({_reason(error)}); {_REPLACE}") from error
    if info.format not in FORMATS[suffix]:
        raise InputError(f"{path}: wrong extension: the contents are {info.format}; rename the file")
    missing = _missing_bytes(path, size)
    if missing:
        raise InputError(f"{path}: truncated: {missing} bytes fewer than its header claims; {_REPLACE}")
    if suffix == ".ogg" and not _ogg_ends(path, size):
        raise InputError(f"{path}: truncated: the last page does not end the stream; {_REPLACE}")
    if info.frames < 2:
        text = "no sample" if info.frames < 1 else "only one sample"
        raise InputError(f"{path}: holds {text}; {_REPLACE}")
    return AudioFile(str(path), name or Path(path).name, info.frames, info.samplerate, info.channels, info.subtype)


def open_files(paths: Iterable[tuple[str, str]], bad_files: str = "error") -> tuple[list[AudioFile], dict[str, str]]:
    """Read the headers of all files; with `bad_files="exclude"` also returns what was wrong with those left out, by name.

    Raises:
        InputError: with `bad_files="error"` some files cannot be used (names each), or none can.
    """
    files, problems = [], {}
    for path, name in paths:
        try:
            files.append(open_file(path, name))
        except InputError as error:
            problems[name] = str(error)
    if problems and (bad_files == "error" or not files):
        shown = list(problems.values())[:20]
        more = [f"... and {len(problems) - len(shown)} more"] if len(problems) > len(shown) else []
        raise InputError(
            f"data.path: {len(problems)} of {len(problems) + len(files)} files cannot be used:\n  "
            + "\n  ".join([*shown, *more])
            + "\nReplace them, or leave them out with data.bad_files=exclude"
        )
    return files, problems


def probe(path: str) -> AudioFile:
    """Decode a whole file, to find faults that only its samples reveal.

    Raises:
        InputError: as for `open_file`; or the data end early, or contain NaN or infinite samples (names the position).
    """
    file = open_file(path)
    for _ in _decode(file):
        pass
    return file


def decode(path: str, into: Path) -> DecodedFile:
    """Decode a whole file from start to end into another one, from which windows are then read.

    Args:
        path: the recording.
        into: file to write, 4 bytes a sample; it must stay as long as the result is used.

    Raises:
        InputError: as for `probe`.
    """
    file = open_file(path)
    with name_full_disk(into), open(into, "wb") as target:
        for mono in _decode(file):
            target.write(mono.tobytes())
    return DecodedFile(**vars(file), samples=into)


def _decode(file: AudioFile) -> Iterator[NDArray[np.float32]]:
    """All samples, mono, checked."""
    done = 0
    try:
        for frames in decoding.blocks(file.path):
            yield file._mixed(frames, done)
            done += len(frames)
    except (soundfile.SoundFileError, OSError) as error:
        raise file._undecodable(done, error) from error
    file._check_end(done, file.frames)


# Programs that write to a pipe leave 0, or the largest signed or unsigned number, as a size.
_UNKNOWN = 0x7FFFFFF0


def _missing_bytes(path: str, size: int) -> int:
    """Bytes that a WAV header claims but the file lacks; libsndfile silently reads such files."""
    with open(path, "rb") as file:
        head = file.read(12)
        if head[:4] not in (b"RIFF", b"RF64"):
            return 0
        promised, long_data = int.from_bytes(head[4:8], "little"), 0
        at = 12
        while len(chunk := file.read(8)) == 8:
            length = int.from_bytes(chunk[4:], "little")
            if chunk[:4] == b"ds64":  # EBU Tech 3306: sizes that do not fit into 32 bits
                sizes = file.read(16)
                promised, long_data = int.from_bytes(sizes[:8], "little"), int.from_bytes(sizes[8:], "little")
            elif chunk[:4] == b"data":
                length = long_data or (length if length < _UNKNOWN else 0)
                if at + 8 + length > size:
                    return at + 8 + length - size
                break
            at += 8 + length + length % 2
            file.seek(at)
    if promised == 0 or (head[:4] == b"RIFF" and promised >= _UNKNOWN):
        return 0
    # One byte may be the padding of an odd last chunk.
    return max(0, promised + 8 - size - 1)


def _ogg_ends(path: str, size: int) -> bool:
    """Whether the last page is flagged as the end of the stream; Ogg does not state its length anywhere."""
    with open(path, "rb") as file:
        # A page has at most 65,307 bytes.
        file.seek(max(0, size - 65_307))
        tail = file.read()
    page = tail.rfind(b"OggS")
    return 0 <= page < len(tail) - 5 and bool(tail[page + 5] & 4)


def _reason(error: Exception) -> str:
    return str(error).split(": ")[-1].strip().rstrip(".")
