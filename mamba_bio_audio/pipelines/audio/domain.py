"""Audio as a domain."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mamba_bio_audio.pipelines.audio import evaluation
from mamba_bio_audio.pipelines.audio.classes_config import AudioClassesConfig
from mamba_bio_audio.pipelines.audio.config import AudioDataConfig
from mamba_bio_audio.pipelines.contract import (
    DataSection,
    Domain,
    Item,
    Listener,
    Matcher,
    Progress,
    SampleView,
    Symbols,
)
from mamba_bio_audio.pipelines.sample_writer import SampleRequest, SampleWriter
from mamba_bio_audio.pipelines.scores import Digits, Measured, Score

if TYPE_CHECKING:
    from mamba_bio_audio.pipelines.corpus import Corpus, Stored


class Audio(Domain):
    """Samples of recordings, and labelled recordings."""

    name = "audio"
    unit = "sample"
    told_by = "bits"
    record = "recording"
    groups = "recordings"
    first_sample = "--seconds 1 --out sample.wav"
    kinds: ClassVar[Mapping[str, type[DataSection]]] = {"audio": AudioDataConfig, "audio-classes": AudioClassesConfig}

    def codec(self, config: Any) -> Any:
        """The quantiser."""
        from mamba_bio_audio.pipelines.audio.quantize import AudioCodec

        return AudioCodec.of(config)

    def open(self, config: Any, *, length: int, task: str | None = None, progress: Progress | None = None) -> Corpus:
        """Recordings, or labelled ones."""
        from mamba_bio_audio.pipelines.audio.classes import AudioClassesCorpus
        from mamba_bio_audio.pipelines.audio.corpus import AudioCorpus

        return (AudioClassesCorpus if config.labelled else AudioCorpus)(config, length=length)

    def describe(self, summary: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Lines for people."""
        from mamba_bio_audio.pipelines.audio.corpus import summary_rows

        return summary_rows(dict(summary))

    def records(self, files: Iterable[str], config: Any) -> Iterator[Item]:
        """Recordings; folders stand for those below them."""
        from mamba_bio_audio.pipelines.audio.records import items

        return items(files, config)

    def stored(self, files: Sequence[str], config: Any, progress: Progress | None = None) -> Stored:
        """Recordings; folders stand for those below them."""
        from mamba_bio_audio.pipelines.audio.records import StoredRecordings

        return StoredRecordings(files, config)

    def symbols(self, config: Any, length: int) -> Symbols:
        """Levels, all of them known; clips of one length are filled with silence."""
        codec = self.codec(config)
        return Symbols(
            unit=self.unit,
            pad_id=codec.pad_id,
            start_id=codec.start_id,
            fill_to=length if config.pad_target == "silence" else 0,
        )

    def rate_hz(self, config: Any) -> int:
        """The sample rate."""
        rate: int = config.sample_rate_hz
        return rate

    def writer(self, request: SampleRequest) -> SampleWriter:
        """WAV or FLAC."""
        from mamba_bio_audio.pipelines.audio.clip_writer import ClipWriter

        return ClipWriter(request)

    def listener(self, codec: Any, length: int, recorded: Any) -> Listener:
        """Clips beside those of validation."""
        from mamba_bio_audio.pipelines.audio.listening import ClipListener

        return ClipListener(codec, length, recorded)

    def run_files(self) -> tuple[str, ...]:
        """Samples, spectrograms, and what a judge heard."""
        from mamba_bio_audio.pipelines.audio.clip_writer import SAMPLE_FILES

        judged = ("metrics.json", "first-samples.png", *(f"samples-*/{name}" for name in SAMPLE_FILES))
        beside = (f"{name}.report.{suffix}" for name in ("sample.wav", "samples") for suffix in ("json", "html"))
        return (*(f"sc09/{name}" for name in judged), "spectrogram.png", "sample.wav", "sample.wav.json", *beside)

    def find_samples(self, run: Path) -> Path | None:
        """A folder or file of samples, or the clips that a judge heard."""
        from mamba_bio_audio.pipelines.audio.clips import find_samples

        return find_samples(run)

    def sample_command(self, run: Path) -> str:
        """A WAV file of one recording."""
        return f"mba sample {run} --seconds 5 --out {run / 'sample.wav'}"

    def measures(self, samples: Path) -> Path | None:
        """Beside the file or folder; not of the clips that a judge hears, which has measures of its own."""
        return None if samples.parent.name == "sc09" else samples.with_name(f"{samples.name}.report.json")

    def measure(
        self,
        samples: Path,
        config: Any,
        corpus: Corpus | None,
        progress: Callable[[int, int | None], None] | None = None,
    ) -> dict[str, Any]:
        """Level, spectrum, clicks, onsets and entropy per second, beside held-out recordings."""
        from mamba_bio_audio.pipelines.audio.clips import read_samples
        from mamba_bio_audio.pipelines.audio.samples import sample_report

        codec = self.codec(config)
        return sample_report(read_samples(samples, codec, config.gain), codec, corpus, progress=progress)

    def show_measured(self, measured: Mapping[str, Any]) -> str:
        """A table."""
        from mamba_bio_audio.pipelines.audio.samples import describe_samples

        return describe_samples(measured)

    def matcher(self, corpus: Corpus, length: int | None = None) -> Matcher:
        """Pieces of ten seconds, in which drift shows, beside held-out recordings, where nothing else is asked for."""
        from mamba_bio_audio.pipelines.audio.samples import SoundMatcher

        return SoundMatcher(corpus, corpus.codec, length or 10 * corpus.codec.sample_rate_hz)

    def show_samples(
        self, samples: Path, measured: Mapping[str, Any] | None, corpus: Corpus | None = None
    ) -> SampleView:
        """Clips to listen to, and their measures over time."""
        from mamba_bio_audio.pipelines.audio.clips import view

        found = view(samples, corpus)
        if measured is None:
            return found
        from mamba_bio_audio.pipelines.audio.samples import picture

        pictures = [("measures over time beside held-out recordings", picture(measured))]
        return found._replace(table=self.show_measured(measured), pictures=pictures)

    def card_symbols(self, codec: Any) -> str:
        """The levels."""
        return (
            f"The ids 0 to {codec.vocab_size - 1:,} are levels of the amplitude of one sample, lowest to highest: "
            f"{codec.description}, one channel at {codec.sample_rate_hz:,} Hz. A sequence begins with {codec.start_id:,}"
            f"{', a token that is only read' if codec.start_id == codec.vocab_size else ''}. "
            "There is no tokenizer: `model.codec.encode` turns float32 samples in [-1, 1] into levels, and "
            "`model.codec.decode` levels into samples."
        )

    def card_limits(self, config: Any, *, classifier: bool) -> list[str]:
        """Rights in the recordings."""
        if classifier:
            return []
        return [
            "Samples can repeat training recordings; the rights in those recordings are not affected by these weights."
        ]

    likelihood_notes = evaluation.AudioNotes

    def beside_likelihood(
        self, data: Any, found: Measured, score: Score, progress: Progress | None = None
    ) -> evaluation.AudioNotes:
        """The quantiser, recordings, tables of levels and linear prediction."""
        return evaluation.beside_likelihood(data, found, progress)

    def digits(self, data: Any) -> Digits:
        """Clips in folders named zero to nine."""
        from mamba_bio_audio.pipelines.audio.digits import digits

        return digits(data)


DOMAIN = Audio()
