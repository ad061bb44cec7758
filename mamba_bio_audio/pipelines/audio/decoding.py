"""Decodes recordings so that a window equals the same span of the whole decode, sample for sample.

libsndfile alone does not promise that: what it decodes after a seek depends on the codec. Measured for every codec in
tests/pipelines/audio/test_decoding.py:

- PCM, float, mu-law and A-law, IMA and MS ADPCM, FLAC, and ALAC of 16, 24 and 32 bits: a seek is exact.
- MP3: a frame takes bits from earlier ones, so the first frames after a seek are wrong (up to 0.6 of full scale). Ten
  frames in advance are decoded and dropped.
- Vorbis, Opus, GSM, G.72x and anything else: a seek is shifted, wrong or impossible. These are only decoded forwards.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import lru_cache

import numpy as np
import soundfile
from numpy.typing import NDArray

from mamba_bio_audio.pipelines.audio.streams import Part, PartFile

# Frames of all channels, shape (samples, channels).
Frames = NDArray[np.float32]

_EXACT_SEEK = ("PCM_", "FLOAT", "DOUBLE", "ULAW", "ALAW", "IMA_ADPCM", "MS_ADPCM", "ALAC_16", "ALAC_24", "ALAC_32")
# Ten frames of MPEG-1, twenty of MPEG-2. A frame reaches back at most 511 bytes (MPEG-2: 255).
_MP3_PRE_ROLL = 10 * 1152
_KEPT = 1 << 17


class Decoder(soundfile.SoundFile):  # type: ignore[misc, unused-ignore]
    """Reads on from where it is. soundfile itself seeks after every read, which is not exact either."""

    def seekable(self) -> bool:
        """What soundfile asks before it seeks."""
        return False

    def frames_of(self, count: int) -> Frames:
        """The next frames; fewer at the end."""
        return self.read(count, dtype="float32", always_2d=True)


@contextmanager
def opened(path: str, part: Part | None = None) -> Iterator[Decoder]:
    """A file, or a part of it, to be decoded from its start.

    Raises:
        soundfile.SoundFileError: it is not audio.
    """
    if part is None:
        with Decoder(path) as file:
            yield file
        return
    with closing(PartFile(path, part)) as source, Decoder(source) as file:
        source.stop_claiming()
        yield file


def window(path: str, codec: str, start: int, stop: int) -> Frames:
    """Frames [start, stop) of a file, fewer if it ends before.

    Codecs without an exact seek are decoded from the start, or on from the last window: windows in their order cost no
    more than the whole, windows in random order half of the whole each.

    Args:
        path: path of the file.
        codec: libsndfile's name of its subtype, such as "PCM_16".
        start, stop: position in frames at the file's own rate.

    Raises:
        soundfile.SoundFileError: something cannot be decoded.
    """
    mp3 = codec.startswith("MPEG_")
    if not mp3 and not codec.startswith(_EXACT_SEEK):
        stat = os.stat(path)
        return _forward(path, os.getpid(), (stat.st_size, stat.st_mtime_ns)).read(start, stop)
    first = max(0, start - _MP3_PRE_ROLL) if mp3 else start
    with Decoder(path) as file:
        if first:
            file.seek(first)
        return file.frames_of(stop - first)[start - first :]


class _Forward:
    """A decoder that never seeks. It keeps the last frames, because consecutive windows overlap a little."""

    _kept: Frames
    _start: int

    def __init__(self, path: str) -> None:
        self._path = path
        self._rewind()

    def read(self, start: int, stop: int) -> Frames:
        if start < self._start:
            self._rewind()
        try:
            while self._start + len(self._kept) < stop and len(block := self._decoder.frames_of(_KEPT)):
                # What lies before the window is dropped, but for the last frames.
                passed = min(max(0, start - self._start), max(0, len(self._kept) - _KEPT))
                self._kept = np.concatenate([self._kept[passed:], block])
                self._start += passed
        except BaseException:
            self._rewind()
            raise
        found = self._kept[start - self._start : stop - self._start].copy()
        passed = max(0, len(self._kept) - 2 * _KEPT)
        self._kept, self._start = self._kept[passed:].copy(), self._start + passed
        return found

    def _rewind(self) -> None:
        self._decoder = Decoder(self._path)
        self._kept = np.zeros((0, self._decoder.channels), np.float32)
        self._start = 0


@lru_cache(maxsize=4)
def _forward(path: str, process: int, version: tuple[int, int]) -> _Forward:
    """One decoder per file; not that of the parent process, which shares its position, nor of a file since replaced."""
    return _Forward(path)
