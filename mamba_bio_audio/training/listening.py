"""What a model of audio sounds like during training: clips in TensorBoard, and their distance from recordings."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mamba_bio_audio.evaluation.audio_frames import frame_distance, frames
from mamba_bio_audio.inference.generate import generate
from mamba_bio_audio.pipelines.audio.figures import spectrograms

_LONGEST_S = 1.0
_RECORDED = 64
_SHOWN = 4


class Examples(Protocol):
    """Examples of a split by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> dict[str, torch.Tensor]: ...


class Listener:
    """Generates a few clips at every validation, each time from the same random numbers.

    Args:
        codec: of audio: `decode`, `start_id`, `sample_ids`, `sample_rate_hz`.
        clips: how many.
        length: samples per clip; more than 1 s is cut to 1 s.
        recorded: examples of the validation split, at least one; the clips are compared with up to 64 of them, evenly
            spread.
    """

    def __init__(self, codec: Any, clips: int, length: int, recorded: Examples) -> None:
        self.codec = codec
        self.clips = clips
        self.length = min(length, round(_LONGEST_S * codec.sample_rate_hz))
        self.recorded = recorded
        self._frames: NDArray[np.float64] | None = None

    def __call__(self, model: nn.Module, writer: Any, step: int) -> float:
        """Generate the clips and return their distance from the recordings (`evaluation.audio_frames`).

        Args:
            model: language model; stays in the mode it was in.
            writer: TensorBoard's SummaryWriter, for the first clips and their spectrograms; None writes nothing.
            step: training step, for TensorBoard.
        """
        # A model in training has no codec, so the zero level that samples begin with is given here.
        tokens = generate(
            model,
            length=self.length,
            num_samples=self.clips,
            prompt=[self.codec.start_id],
            allowed=self.codec.sample_ids,
        )
        rate = self.codec.sample_rate_hz
        clips = [self.codec.decode(ids.numpy()) for ids in tokens]
        distance = frame_distance(frames(clips, rate), self._recorded_frames())
        if writer is not None:
            self._write(clips[:_SHOWN], writer, step)
        return distance

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

    def _write(self, clips: list[NDArray[np.float32]], writer: Any, step: int) -> None:
        from matplotlib.image import imread

        rate = self.codec.sample_rate_hz
        for row, audio in enumerate(clips):
            writer.add_audio(f"clip_{row}", torch.from_numpy(audio)[None], step, sample_rate=rate)
        with tempfile.TemporaryDirectory() as folder:
            picture = Path(folder) / "clips.png"
            named = [(f"step {step:,}, clip {row}", audio) for row, audio in enumerate(clips)]
            spectrograms(named, rate, picture)
            writer.add_image("spectrograms", imread(picture)[..., :3], step, dataformats="HWC")
