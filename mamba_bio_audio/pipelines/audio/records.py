"""Recordings read as a whole, in order: what is predicted."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.audio.config import AudioDataConfig
from mamba_bio_audio.pipelines.audio.corpus import Recordings
from mamba_bio_audio.pipelines.audio.files import AudioFile, list_files, open_file
from mamba_bio_audio.pipelines.audio.quantize import AudioCodec
from mamba_bio_audio.pipelines.contract import Item
from mamba_bio_audio.pipelines.corpus import Ids
from mamba_bio_audio.pipelines.spans import Span


def items(files: Iterable[str], config: AudioDataConfig) -> Iterator[Item]:
    """Each recording as levels, as far as training would read it; a folder stands for all recordings below it."""
    codec = AudioCodec.of(config)

    def levels(file: AudioFile, size: int) -> Ids:
        if config.max_duration_s is not None:
            size = min(size, round(config.max_duration_s * codec.sample_rate_hz))
        return Recordings([file], codec, config.gain).ids(Span(file.name, 0, size))

    return _read(files, codec.sample_rate_hz, levels)


def clips(files: Iterable[str], rate_hz: int, samples: int) -> Iterator[Item]:
    """The first samples of each recording, float32 in [-1, 1]."""
    return _read(files, rate_hz, lambda file, size: file.read(0, min(size, samples), rate_hz))


def _read(files: Iterable[str], rate_hz: int, read: Callable[[AudioFile, int], Ids]) -> Iterator[Item]:
    """What `read` makes of each recording; an unreadable file gives the reason."""
    for given in files:
        for path, name in list_files(given) if os.path.isdir(given) else [(str(given), os.path.basename(given))]:
            size = 0
            try:
                recording = open_file(path, name)
                size = recording.num_samples(rate_hz)
                symbols: Ids | str = read(recording, size)
            except InputError as error:
                # One line, and no tab: it is a cell of a table.
                symbols = " ".join(str(error).split())
            yield Item(path, name, size, symbols)
