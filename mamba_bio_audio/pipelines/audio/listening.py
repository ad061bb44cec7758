"""Listening to an audio model during training: clips in TensorBoard, and their distance from recordings."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mamba_bio_audio.pipelines.audio.figures import spectrograms
from mamba_bio_audio.pipelines.audio.frames import frame_distance, frames
from mamba_bio_audio.pipelines.audio.quantize import AudioCodec
from mamba_bio_audio.pipelines.contract import Listener
from mamba_bio_audio.pipelines.corpus import Ids

_LONGEST_S = 1.0
_RECORDED = 64
_SHOWN = 4


class ClipListener(Listener):
    """Compares clips with the beginnings of validation windows.

    Args:
        codec: codec of the data.
        length: samples per clip; more than 1 s is cut to 1 s.
        recorded: examples of the validation split, at least one; up to 64 of them, evenly spread, are compared with.
    """

    def __init__(self, codec: AudioCodec, length: int, recorded: Any) -> None:
        self.codec = codec
        self.length = min(length, round(_LONGEST_S * codec.sample_rate_hz))
        self.recorded = recorded
        self._frames: NDArray[np.float64] | None = None

    def distance(self, samples: Sequence[Ids]) -> float:
        """Frechet distance of short frames (`pipelines/audio/frames.py`)."""
        clips = [self.codec.decode(ids) for ids in samples]
        return frame_distance(frames(clips, self.codec.sample_rate_hz), self._recorded_frames())

    def _recorded_frames(self) -> NDArray[np.float64]:
        """Frames of the beginnings of validation windows; computed once."""
        if self._frames is None:
            count = len(self.recorded)
            clips = []
            for index in sorted({i * count // _RECORDED for i in range(_RECORDED)}):
                levels = self.recorded[index]["targets"][: self.length]
                clips.append(self.codec.decode(levels[levels >= 0].numpy()))
            self._frames = frames([clip for clip in clips if len(clip)], self.codec.sample_rate_hz)
        return self._frames

    def show(self, samples: Sequence[Ids], writer: Any, step: int) -> None:
        """The first clips, and their spectrograms."""
        from matplotlib.image import imread

        rate = self.codec.sample_rate_hz
        clips = [self.codec.decode(ids) for ids in samples[:_SHOWN]]
        for row, audio in enumerate(clips):
            writer.add_audio(f"clip_{row}", torch.from_numpy(audio)[None], step, sample_rate=rate)
        with tempfile.TemporaryDirectory() as folder:
            picture = Path(folder) / "clips.png"
            named = [(f"step {step:,}, clip {row}", audio) for row, audio in enumerate(clips)]
            spectrograms(named, rate, picture)
            writer.add_image("spectrograms", imread(picture)[..., :3], step, dataformats="HWC")
