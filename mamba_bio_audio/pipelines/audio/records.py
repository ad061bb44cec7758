"""Recordings read as a whole, in order: what is predicted."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.audio.config import AudioDataConfig
from mamba_bio_audio.pipelines.audio.corpus import Recordings
from mamba_bio_audio.pipelines.audio.files import AudioFile, content_hash, list_files, open_file
from mamba_bio_audio.pipelines.audio.quantize import AudioCodec
from mamba_bio_audio.pipelines.contract import Item
from mamba_bio_audio.pipelines.corpus import Ids
from mamba_bio_audio.pipelines.spans import Span

_PIECE = 1 << 20


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


class StoredRecordings:
    """Recordings that are read in pieces, as far as training would read them; their names are those of the files.

    Args:
        files: recordings, or folders of them.
        config: data section that the model was trained on.

    Raises:
        InputError: there is none, or one cannot be opened.
    """

    def __init__(self, files: Sequence[str], config: AudioDataConfig) -> None:
        self.paths = [os.path.expanduser(file) for file in files]
        opened = [open_file(path, name) for path, name in list_files(self.paths)]
        self.recordings = Recordings(opened, AudioCodec.of(config), config.gain)
        rate = config.sample_rate_hz
        most = math.inf if config.max_duration_s is None else round(config.max_duration_s * rate)
        self.records = {file.name: int(min(most, file.num_samples(rate))) for file in opened}
        self._scales: dict[str, tuple[float, float]] = {}

    def fetch(self, record: str, start: int, end: int) -> Ids:
        """Levels of the samples [start, end), scaled as the whole recording is."""
        codec, span = self.recordings.codec, Span(record, start, end)
        if codec.variant == "standard":
            return self.recordings.ids(span)
        return codec.encode(self.recordings.audio(span), self._scale(record))

    def resolve(self, name: str) -> str:
        """The name itself."""
        if name not in self.records:
            raise InputError(f"no recording {name!r} among those given, such as {next(iter(self.records))!r}")
        return name

    def contents(self) -> list[dict[str, str]]:
        """The files and folders as given, with hashes over their recordings."""
        entries = content_hash(self.paths, self.recordings.files)
        return [{"name": entry["name"], "sha256": entry["sha256"]} for entry in entries]

    def _scale(self, record: str) -> tuple[float, float]:
        """Smallest and largest sample of a recording."""
        if record not in self._scales:
            size = self.records[record]
            spans = (Span(record, low, min(low + _PIECE, size)) for low in range(0, size, _PIECE))
            ends = [(piece.min(), piece.max()) for piece in map(self.recordings.audio, spans)]
            self._scales[record] = float(min(low for low, _ in ends)), float(max(high for _, high in ends))
        return self._scales[record]


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
