"""Recordings on disk: reads windows as mono at one rate, and finds what is wrong with a file.

Resampling (`resampling.py`) is done for whole periods of the two rates around the window, so that windows equal pieces of
the resampled whole; for the decoding see `decoding.py`.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.files import name_full_disk
from mamba_bio_audio.pipelines.audio import decoding
from mamba_bio_audio.pipelines.audio.health import Health
from mamba_bio_audio.pipelines.audio.prepare_settings import Channels
from mamba_bio_audio.pipelines.audio.resampling import resampler
from mamba_bio_audio.pipelines.audio.streams import Part, missing_bytes, ogg_ends, streams_of
from mamba_bio_audio.text import is_utf8

# As `data.path`: the recording that comes with the package.
DEMO = "demo"
# Suffix -> containers that it may have, as named by libsndfile: all that it reads, but for raw samples and MATLAB files.
_WAV, _OGG, _AIFF = {"WAV", "WAVEX", "RF64", "W64", "NIST"}, {"OGG"}, {"AIFF"}
FORMATS = {".wav": _WAV, ".flac": {"FLAC"}, ".ogg": _OGG, ".mp3": {"MP3"}}
FORMATS |= {".aif": _AIFF, ".aiff": _AIFF, ".aifc": _AIFF, ".au": {"AU"}, ".snd": {"AU"}, ".caf": {"CAF"}}
FORMATS |= {".wave": _WAV, ".bwf": _WAV, ".rf64": _WAV, ".w64": _WAV, ".oga": _OGG, ".opus": _OGG, ".mp2": {"MP3"}}
FORMATS |= {".8svx": {"SVX"}, ".sf": {"IRCAM"}, ".sph": {"NIST"}}
FORMATS |= {f".{name.lower()}": {name} for name in ("AVR", "HTK", "IRCAM", "NIST", "PAF", "PVF", "SD2")}
FORMATS |= {f".{name.lower()}": {name} for name in ("SDS", "VOC", "WVE", "XI")}
# Audio that is known by its name and not read.
_UNREADABLE = {f".{name}" for name in ("aac", "ac3", "amr", "ape", "dsf", "dts", "m4a", "m4b", "mka", "mkv")}
_UNREADABLE |= {f".{name}" for name in ("mov", "mp4", "mpc", "ra", "shn", "tta", "webm", "wma", "wv")}
_BLOCK = 1 << 14
# libsndfile's number for "not known" is 2^63 - 1.
_MOST_FRAMES = 1 << 48


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

        found = resampler(self.native_rate_hz, rate_hz, self.path)
        common = math.gcd(self.native_rate_hz, rate_hz)
        per_period, out_per_period = self.native_rate_hz // common, rate_hz // common
        # An output reads `width` inputs before and after its own period.
        margin = -(-found.width // per_period)
        first, last = start // out_per_period - margin, -(-stop // out_per_period) + margin
        native = self._native(first * per_period, last * per_period)
        resampled = found(torch.from_numpy(native)).numpy()
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
        self._check_end(start + len(found), stop, self.frames)
        return self._mixed(found, start)

    def _undecodable(self, position: int, error: Exception) -> InputError:
        return InputError(f"{self.path}: cannot be decoded at sample {position} ({error}); {_CHECK}")

    def _check_end(self, end: int, wanted: int, claimed: int) -> None:
        if end < wanted:
            raise InputError(
                f"{self.path}: truncated or damaged: the header claims {claimed} samples, but decoding ends at {end}; {_CHECK}"
            )

    def _mixed(self, frames: decoding.Frames, start: int, channels: Channels = "mix") -> NDArray[np.float32]:
        """The mean of the channels, or one of them; `start` is the position of the frames in the file."""
        if frames.shape[1] == 1 or channels != "mix":
            mono = frames[:, 1 if channels == "right" and frames.shape[1] > 1 else 0]
        else:
            mono = frames.mean(1, dtype=np.float32)
        if not np.isfinite(mono).all():
            position = start + int(np.flatnonzero(~np.isfinite(mono))[0])
            raise InputError(f"{self.path}: NaN or infinite sample at {position}; {_CHECK}")
        return mono


@dataclass(frozen=True)
class CheckedFile(AudioFile):
    """A recording that was decoded completely.

    Attributes:
        health: what it sounds like in numbers, and what is wrong with it (`health.py`).
    """

    health: dict[str, Any]


@dataclass(frozen=True)
class DecodedFile(CheckedFile):
    """A recording of which all samples are at hand.

    Attributes:
        samples: file with all of it, float32, mono at the recording's own rate.
    """

    samples: Path

    def _mono(self, start: int, stop: int) -> NDArray[np.float32]:
        return np.fromfile(self.samples, np.float32, stop - start, offset=4 * start)


_REPLACE = "replace the file, or leave it out"
# For faults that only decoding reveals, which opening a data set does not do.
_CHECK = "replace the file, or leave it out (mba prepare audio finds all such files)"


def natural_key(name: str) -> list[tuple[int, int | str]]:
    """Sort key that puts 2.wav before 10.wav."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", name) if part]


def place(given: str) -> Path:
    """Where an entry of `data.path` lies."""
    if given == DEMO:
        return Path(str(resources.files("mamba_bio_audio.pipelines.audio") / "demo"))
    return Path(os.path.expanduser(given))


def list_files(paths: str | Sequence[str]) -> list[tuple[str, str]]:
    """(path, name) of the recordings that `data.path` means, in natural order of their names; `demo` means the packaged one.

    Raises:
        InputError: a path is missing, a folder has no recording, two files have the same name, a name is not UTF-8, or a
            link leads back to a folder above it.
    """
    found: list[tuple[str, str]] = []
    for given in [paths] if isinstance(paths, str) else paths:
        path = place(given)
        if path.is_dir():
            inside = _recordings_below(path)
            if not inside:
                others = "".join(f"\n  {name}: {why}" for name, why in [*skipped_files([given]).items()][:5])
                raise InputError(
                    f"data.path: {given}: no {', '.join(FORMATS)} file in this folder or below it; give another folder"
                    + (f". It has others, such as{others}" if others else "")
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


def refuse_inside(out: Path, paths: Sequence[str]) -> None:
    """Refuse an output inside a folder that a command reads recordings of: what it writes would be read the next time.

    Raises:
        InputError: it lies there, or is one of the recordings.
    """
    place = out.resolve()
    for given in paths:
        source = Path(os.path.expanduser(given)).resolve()
        if place == source:
            raise InputError(f"{out}: an input of this command; choose another --out")
        if place.is_relative_to(source):
            raise InputError(
                f"{out}: lies inside {given}, so it would become part of the input; choose an --out outside it"
            )


def skipped_files(paths: Sequence[str]) -> dict[str, str]:
    """Why files in the given folders are no recordings, by their names; a hidden folder is named instead of what it holds."""
    reasons = {}
    for given in paths:
        folder = Path(os.path.expanduser(given))
        for path in _below(folder):
            if not _is_recording(path):
                reasons[path.relative_to(folder).as_posix()] = _why_skipped(path)
    return dict(sorted(reasons.items(), key=lambda entry: natural_key(entry[0])))


def _why_skipped(path: Path) -> str:
    suffix = path.suffix.lower()
    if path.name.startswith("."):
        return "hidden"
    if suffix in _UNREADABLE:
        return f"libsndfile does not read {suffix[1:].upper()}; convert it to FLAC"
    return f"no recording has the extension {suffix}" if suffix else "no extension"


def _is_recording(path: Path) -> bool:
    return path.suffix.lower() in FORMATS and not path.name.startswith(".")


def _recordings_below(folder: Path) -> list[Path]:
    """Files with a known suffix, following links; broken links are included, to be reported as bad files."""
    return [path for path in _below(folder) if _is_recording(path)]


def _below(folder: Path) -> Iterator[Path]:
    """All files in a folder and below it, and its hidden folders, following links."""
    for place, folders, names in os.walk(folder, followlinks=True):
        yield from (Path(place, name) for name in folders if name.startswith("."))
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in folders:
            link = Path(place, name)
            if link.is_symlink() and Path(place).resolve().is_relative_to(link.resolve()):
                raise InputError(f"data.path: {link}: this link leads back to a folder above it; remove it")
        yield from (Path(place, name) for name in names)


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
        root = place(given)
        own = [file for file in files if Path(file.path) == root or root in Path(file.path).parents]
        whole = hashlib.sha256()
        for file in own:
            with open(file.path, "rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").digest()
            whole.update(file.name.encode() + b"\0" + digest)
        entries.append({"name": root.name, "path": str(root), "recordings": len(own), "sha256": whole.hexdigest()})
    return entries


def open_file(path: str, name: str | None = None, *, windows: bool = True) -> AudioFile:
    """Read and check a file's header.

    Args:
        path: path of the file.
        name: its name relative to the given folder; by default without any folder.
        windows: refuse what can only be decoded as a whole, such as one stream after another in a file. Otherwise
            `frames` is what the header says, which may be anything.

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
        link = os.path.islink(path)
        raise InputError(
            f"{path}: {'a link to a file that is not there; mend or remove it' if link else 'no such file; correct the path'}"
        )
    if size == 0:
        raise InputError(f"{path}: zero length; {_REPLACE}")
    try:
        parts, oddity = streams_of(path)
        with decoding.opened(path, *parts[:1]) as info:
            log = info.extra_info
    except (soundfile.SoundFileError, OSError) as error:
        raise InputError(f"{path}: not readable as {suffix[1:].upper()} ({_reason(error)}); {_REPLACE}") from error
    if info.format == "RAW":
        # What libsndfile makes of anything whose name ends in .au or .snd.
        raise InputError(f"{path}: not readable as {suffix[1:].upper()} (it has no header); {_REPLACE}")
    if info.format not in FORMATS[suffix]:
        raise InputError(f"{path}: wrong extension: the contents are {info.format}; rename the file")
    missing = missing_bytes(path, log)
    if missing:
        raise InputError(f"{path}: truncated: {missing} bytes fewer than its header claims; {_REPLACE}")
    if info.format == "OGG" and not ogg_ends(path):
        raise InputError(f"{path}: truncated: the last page does not end the stream; {_REPLACE}")
    if info.frames > _MOST_FRAMES:
        oddity = "its header does not give its length"
    if windows and oddity:
        raise InputError(f"{path}: {oddity}; mba prepare audio reads all of it and writes it anew")
    if not oddity:
        _refuse_short(path, info.frames)
    return AudioFile(str(path), name or Path(path).name, info.frames, info.samplerate, info.channels, info.subtype)


def _refuse_short(path: str, frames: int) -> None:
    if frames < 2:
        raise InputError(f"{path}: holds {'no sample' if frames < 1 else 'only one sample'}; {_REPLACE}")


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


def probe(path: str) -> CheckedFile:
    """Decode a whole file, to find faults that only its samples reveal.

    Raises:
        InputError: as for `open_file`; or the data end early, or contain NaN or infinite samples (names the position).
    """
    file = open_file(path)
    health = Health(file.channels)
    for frames, mono in _decode(file):
        health.add(frames, mono)
    return CheckedFile(**vars(file), health=health.report())


def decode(path: str, into: Path, channels: Channels = "mix") -> DecodedFile:
    """Decode a whole file from start to end into another one, from which windows are then read.

    Args:
        path: the recording. Unlike for `open_file` it may be one stream after another, or not tell its length.
        into: file to write, 4 bytes a sample; it must stay as long as the result is used.
        channels: their mean, or one of them.

    Raises:
        InputError: as for `probe`.
    """
    file, count = open_file(path, windows=False), 0
    mixed = channels == "mix"
    health = Health(file.channels if mixed else 1, mixed=mixed)
    with name_full_disk(into), open(into, "wb") as target:
        for frames, mono in _decode(file, channels):
            # A channel that is not taken may sound as it likes.
            health.add(frames if mixed else mono[:, None], mono)
            target.write(mono.tobytes())
            count += len(mono)
    _refuse_short(path, count)
    return DecodedFile(**vars(file) | {"frames": count}, samples=into, health=health.report())


def _decode(file: AudioFile, channels: Channels = "mix") -> Iterator[tuple[decoding.Frames, NDArray[np.float32]]]:
    """All samples, and what they are mixed to, checked."""
    done = 0
    try:
        parts: list[Part | None] = [*streams_of(file.path).parts]
        for part in parts or [None]:
            with decoding.opened(file.path, part) as source:
                if (source.samplerate, source.channels) != (file.native_rate_hz, file.channels):
                    raise InputError(f"{file.path}: its streams differ in sample rate or channels; write them as files")
                begin = done
                # Never more than there are: libsndfile takes a tag at the end of a FLAC file for a fault in its sound.
                while len(frames := source.frames_of(min(_BLOCK, begin + source.frames - done))):
                    yield frames, file._mixed(frames, done, channels)
                    done += len(frames)
                if not (part and part.claimed) and source.frames <= _MOST_FRAMES:
                    file._check_end(done, begin + source.frames, begin + source.frames)
    except (soundfile.SoundFileError, OSError) as error:
        raise file._undecodable(done, error) from error


def _reason(error: Exception) -> str:
    return str(error).split(": ")[-1].strip().rstrip(".")
