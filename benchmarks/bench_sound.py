"""How exact recordings are read: windows against the whole decode by format, and the resampler's pass band and stop band.

decoding     60 windows of 3,000 samples of each format, as libsndfile seeks to them and as this package reads them; wrong
             is what differs by more than 1e-6 from the same span of a decode from start to end
resampling   sines through torchaudio's default, which was used before 2026-11-30, and through the package's settings: the
             worst gain up to 0.9 of the lower Nyquist frequency, and the highest alias or image of anything from 1.02 on
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from torchaudio.transforms import Resample

from mamba_bio_audio.pipelines.audio.decoding import Decoder
from mamba_bio_audio.pipelines.audio.files import decode, open_file
from mamba_bio_audio.pipelines.audio.resampling import resampler

CONTAINERS = {"WAV": "wav", "AIFF": "aiff", "AU": "au", "CAF": "caf", "W64": "w64", "FLAC": "flac", "OGG": "ogg"}
# libsndfile writes none of the first two, and does not read what it writes of the third.
UNWRITABLE = ("MPEG_LAYER_III", "MPEG_LAYER_II", "DWVW_12")
SAMPLES, WINDOW, WINDOWS = 200_000, 3000, 60
PAIRS = ((44_100, 16_000), (48_000, 16_000), (22_050, 16_000), (8000, 16_000), (11_025, 16_000), (16_000, 44_100))


def sound(rate_hz: int) -> NDArray[np.float64]:
    """Notes, a sweep and bursts of noise, so that bit rates vary."""
    time = np.arange(SAMPLES) / rate_hz
    noise = np.random.default_rng(0).normal(0, 0.05, SAMPLES) * (time % 1 > 0.6)
    notes = 0.4 * np.sin(2 * np.pi * 440 * time) * np.exp(-6 * (time % 0.5))
    return notes + 0.2 * np.sin(2 * np.pi * 700 * time**1.5) + noise


def formats(folder: Path) -> Iterator[tuple[str, str, Path]]:
    """Container, codec and file of every format."""
    for container, suffix in CONTAINERS.items():
        for codec in soundfile.available_subtypes(container):
            if codec in UNWRITABLE:
                continue
            telephone = codec.startswith(("GSM", "G72", "NMS"))
            rate = 48_000 if codec == "OPUS" else 8000 if telephone else 44_100
            path = folder / f"{codec}.{suffix}"
            soundfile.write(path, sound(rate), rate, codec, format=container)
            yield container, codec, path
    for mode in ("CONSTANT", "AVERAGE", "VARIABLE"):
        path = folder / f"{mode}.mp3"
        soundfile.write(path, sound(44_100), 44_100, bitrate_mode=mode, compression_level=0.8)
        yield "MP3", f"{mode.lower()} bit rate", path


def sought(path: Path, start: int) -> NDArray[np.float32] | None:
    """A window as soundfile seeks to it; None where that fails."""
    try:
        with soundfile.SoundFile(path) as file:
            file.seek(start)
            return file.read(WINDOW, dtype="float32")
    except soundfile.SoundFileError:
        return None


def error(found: NDArray[np.float32] | None, expected: NDArray[np.float32]) -> float:
    """The worst difference; infinite where there is no window, or one of another length."""
    return np.inf if found is None or len(found) != len(expected) else float(abs(found - expected).max())


def decoding() -> Iterator[dict[str, Any]]:
    """A row per format."""
    with tempfile.TemporaryDirectory() as folder:
        for container, codec, path in formats(Path(folder)):
            with Decoder(path) as source:
                whole = source.read(source.frames, dtype="float32")
            file, prepared = open_file(str(path)), decode(str(path), Path(folder) / "decoded")
            starts = np.random.default_rng(1).integers(0, len(whole) - WINDOW, WINDOWS - 4).tolist()
            starts += [len(whole) - 3 * WINDOW // 2 + 500 * at for at in range(4)]
            spans = [(start, min(start + WINDOW, len(whole))) for start in starts]
            by_seeking = [error(sought(path, low), whole[low:high]) for low, high in spans]
            ours = [error(file.read(low, high, file.native_rate_hz), whole[low:high]) for low, high in spans]
            yield {
                "container": container,
                "codec": codec,
                "wrong_by_seeking": sum(value > 1e-6 for value in by_seeking),
                "worst_by_seeking": f"{max(by_seeking):.2g}",
                "wrong": sum(value > 1e-6 for value in ours),
                "worst": f"{max(ours):.2g}",
                "worst_prepared": f"{error(prepared.read(0, prepared.frames, file.native_rate_hz), whole):.2g}",
            }


def streams() -> Iterator[dict[str, Any]]:
    """A row per kind of file."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "sound"

        def encoded(suffix: str, rate_hz: int = 44_100, **options: Any) -> tuple[bytes, NDArray[np.float32]]:
            own = path.with_suffix(suffix)
            soundfile.write(own, sound(rate_hz), rate_hz, **options)
            return own.read_bytes(), soundfile.read(own, dtype="float32")[0]

        def row(
            kind: str, suffix: str, content: bytes, expected: NDArray[np.float32], delay: int = 0
        ) -> dict[str, Any]:
            own = path.with_suffix(suffix)
            own.write_bytes(content)
            with Decoder(own) as source:
                alone = 0
                while read := len(source.frames_of(1 << 16)):
                    alone += read
            file = decode(str(own), Path(name) / "decoded")
            found = file.read(0, file.frames, file.native_rate_hz)
            worst = error(found[delay : delay + len(expected)], expected)
            return {
                "file": kind,
                "samples": len(expected),
                "libsndfile": alone,
                "prepared": len(found),
                "worst": f"{worst:.2g}",
            }

        for mode in ("CONSTANT", "VARIABLE"):
            mp3, heard = encoded(".mp3", bitrate_mode=mode, compression_level=0.8)
            bare = mp3[mp3.index(mp3[:2], 4) :]
            # Without an info frame nothing tells how much silence the encoder put in front.
            yield row(f"MP3 without info frame, {mode.lower()} bit rate", ".mp3", bare, heard, 1105)
            yield row(f"two MP3s, {mode.lower()} bit rate", ".mp3", mp3 + mp3, np.concatenate([heard, heard]))
        for codec, rate in (("VORBIS", 44_100), ("OPUS", 48_000)):
            ogg, heard = encoded(".ogg", rate, subtype=codec)
            yield row(f"chain of three Ogg streams, {codec.title()}", ".ogg", ogg * 3, np.concatenate([heard] * 3))
        flac, heard = encoded(".flac")
        head = bytearray(flac[:42])
        head[21:42] = bytes([head[21] & 0xF0]) + bytes(20)
        yield row("FLAC without length", ".flac", bytes(head) + flac[42:], heard)
        wav, heard = encoded(".wav")
        for size in (0x7FFFFFFF, 0x7FFFF000, 0xFFFFFFFF, 0):
            head = bytearray(wav[:44])
            head[4:8] = head[40:44] = size.to_bytes(4, "little")
            yield row(f"WAV of a pipe, size 0x{size:X}", ".wav", bytes(head) + wav[44:], heard)


def level_db(audio: NDArray[np.float64], rate_hz: int, frequency: float) -> float:
    """Level of a sine."""
    window, time = np.kaiser(len(audio), 16), np.arange(len(audio)) / rate_hz
    found = abs(np.sum(window * audio * np.exp(-2j * np.pi * frequency * time)))
    return float(20 * np.log10(2 * found / window.sum()))


def highest_db(audio: NDArray[np.float64], rate_hz: int, above: float) -> float:
    """Level of the highest line of the spectrum from a frequency on."""
    window = np.kaiser(len(audio), 16)
    spectrum = 2 * abs(np.fft.rfft(window * audio)) / window.sum()
    return float(20 * np.log10(spectrum[np.fft.rfftfreq(len(audio), 1 / rate_hz) >= above].max()))


def resampling() -> Iterator[dict[str, Any]]:
    """A row per pair of rates and resampler."""
    for native_hz, rate_hz in PAIRS:
        default = Resample(native_hz, rate_hz, dtype=torch.float64).float()
        for name, found in (("torchaudio default", default), ("here", resampler(native_hz, rate_hz))):
            lower, time = min(native_hz, rate_hz) / 2, np.arange(native_hz) / native_hz

            def through(
                place: float, found: Any = found, lower: float = lower, time: Any = time
            ) -> NDArray[np.float64]:
                sine = np.sin(2 * np.pi * place * lower * time).astype(np.float32)
                made = found(torch.from_numpy(sine)).numpy().astype(np.float64)
                return made[len(made) // 8 : -(len(made) // 8)]

            gains = [level_db(through(place), rate_hz, place * lower) for place in np.linspace(0.05, 0.9, 18)]
            if native_hz > rate_hz:
                places = [*np.linspace(1.02, 1.1, 9), *np.linspace(1.12, 0.99 * native_hz / rate_hz, 12)]
                stray = max(highest_db(through(place), rate_hz, 0) for place in places)
            else:
                places = [*np.linspace(0.3, 0.9, 7), *np.linspace(0.91, 0.98, 8)]
                stray = max(highest_db(through(place), rate_hz, 1.005 * lower) for place in places)
            yield {
                "from_hz": native_hz,
                "to_hz": rate_hz,
                "resampler": name,
                "worst_gain_db_to_0.9": f"{max(gains, key=abs):.3f}",
                "highest_alias_or_image_db_from_1.02": f"{stray:.1f}",
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("decoding", "streams", "resampling"))
    parser.add_argument("--out", type=argparse.FileType("w"), default=sys.stdout, help="CSV file")
    arguments = parser.parse_args()
    rows = list({"decoding": decoding, "streams": streams, "resampling": resampling}[arguments.what]())
    writer = csv.DictWriter(arguments.out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


if __name__ == "__main__":
    main()
