"""Audio as a domain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from mamba_bio_audio.pipelines.audio.classes_config import AudioClassesConfig
from mamba_bio_audio.pipelines.audio.config import AudioDataConfig
from mamba_bio_audio.pipelines.contract import DataSection, Domain, Progress


class Audio(Domain):
    """Samples of recordings, and labelled recordings."""

    name = "audio"
    unit = "sample"
    kinds: ClassVar[Mapping[str, type[DataSection]]] = {"audio": AudioDataConfig, "audio-classes": AudioClassesConfig}

    def codec(self, config: Any) -> Any:
        """The quantiser."""
        from mamba_bio_audio.pipelines.audio.quantize import AudioCodec

        return AudioCodec(config.bits, config.quantizer, config.variant, config.sample_rate_hz)

    def open(self, config: Any, *, length: int, batch_size: int, seed: int, progress: Progress | None = None) -> Any:
        """Recordings, or labelled ones."""
        from mamba_bio_audio.pipelines.audio.classes import AudioClassesDataModule
        from mamba_bio_audio.pipelines.audio.datamodule import AudioDataModule

        module = AudioClassesDataModule if config.labelled else AudioDataModule
        return module(config, length=length, batch_size=batch_size, seed=seed)

    def describe(self, summary: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Lines for people."""
        from mamba_bio_audio.pipelines.audio.datamodule import summary_rows

        return summary_rows(dict(summary))


DOMAIN = Audio()
