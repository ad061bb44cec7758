"""What prediction needs to know of a kind of data: how its files are read, and which symbols stand where."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.inference.classify import Strand
from mamba_bio_audio.pipelines.audio.config import AudioDataConfig
from mamba_bio_audio.pipelines.audio.quantize import AudioCodec
from mamba_bio_audio.pipelines.dna.records import read_records
from mamba_bio_audio.pipelines.dna.tokenizer import DnaTokenizer
from mamba_bio_audio.run.config import RunConfig

if TYPE_CHECKING:
    from mamba_bio_audio.pipelines.audio.files import AudioFile

Ids = NDArray[Any]


class Item(NamedTuple):
    """One record of a file: its symbols, or why it has none."""

    file: str
    name: str
    length: int
    symbols: Ids | str


@dataclass(frozen=True)
class Source:
    """A kind of data.

    Attributes:
        items: files -> their records, in order.
        unit: of lengths.
        strands: that can be read, the default first.
        known: ids -> which of them are known symbols.
        reverse: ids -> ids of the opposite strand.
        pad_id, start_id, fill_to: as of `inference.predict.predict`.
    """

    items: Callable[[Iterable[str]], Iterator[Item]]
    unit: str
    strands: tuple[Strand, ...]
    known: Callable[[Ids], NDArray[np.bool_]]
    reverse: Callable[[Ids], Ids] | None
    pad_id: int
    start_id: int | None = None
    fill_to: int = 0


def open_source(codec: Any, config: RunConfig) -> Source:
    """How a classifier with this codec, trained by this configuration, reads files."""
    if isinstance(codec, DnaTokenizer):
        known = np.zeros(256, dtype=bool)
        known[list(codec.base_ids)] = True
        return Source(
            items=lambda files: _sequences(files, codec),
            unit="base",
            strands=("both", "forward", "reverse"),
            known=lambda ids: known[ids],
            reverse=codec.reverse_complement,
            pad_id=codec.pad_id,
        )
    data = config.data
    if not isinstance(codec, AudioCodec) or not isinstance(data, AudioDataConfig):
        raise InputError(f"a classifier of {data.kind}: mba predict reads DNA and recordings")
    return Source(
        items=lambda files: _recordings(files, codec, data),
        unit=codec.unit,
        strands=("forward",),
        known=lambda ids: np.ones(len(ids), dtype=bool),
        reverse=None,
        pad_id=codec.zero_level,
        start_id=codec.start_id,
        fill_to=config.train.length if data.pad_target == "silence" else 0,
    )


def _sequences(files: Iterable[str], codec: DnaTokenizer) -> Iterator[Item]:
    for file in files:
        for record in read_records(file):
            symbols: Ids | str
            if foreign := record.foreign_letter():
                symbols = f"{foreign[1]!r} at position {foreign[0]:,} is no base"
            elif record.is_rna():
                symbols = "RNA (U): write T for U"
            else:
                symbols = codec.encode(record.sequence)
            item = Item(str(file), record.name, len(record.sequence), symbols)
            # A chromosome is held once, as ids, while it is predicted.
            del record, symbols
            yield item


def _recordings(files: Iterable[str], codec: AudioCodec, data: AudioDataConfig) -> Iterator[Item]:
    """One record per recording, as levels."""
    from mamba_bio_audio.pipelines.audio.datamodule import Recordings
    from mamba_bio_audio.pipelines.audio.splits import Span

    def levels(file: AudioFile, size: int) -> Ids:
        if data.max_duration_s is not None:
            size = min(size, round(data.max_duration_s * codec.sample_rate_hz))
        return Recordings([file], codec, data.gain).ids(Span(0, 0, size))

    return _read_recordings(files, codec.sample_rate_hz, levels)


def clips(files: Iterable[str], rate_hz: int, samples: int) -> Iterator[Item]:
    """One record per recording, as its first samples in [-1, 1]."""
    return _read_recordings(files, rate_hz, lambda file, size: file.read(0, min(size, samples), rate_hz))


def _read_recordings(files: Iterable[str], rate_hz: int, read: Callable[[AudioFile, int], Ids]) -> Iterator[Item]:
    """What `read` gives of each recording; folders stand for those below them. An unreadable file gives the reason."""
    from mamba_bio_audio.pipelines.audio.files import list_files, open_file

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
