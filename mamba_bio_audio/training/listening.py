"""What a model of audio sounds like while it is trained: clips and spectrograms in TensorBoard."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mamba_bio_audio.evaluation.audio_figures import spectrograms
from mamba_bio_audio.inference.generate import generate
from mamba_bio_audio.pipelines.audio.quantize import AudioCodec

_LONGEST_S = 1.0


class Listener:
    """Generates the same few clips, by their random numbers, at every validation.

    Args:
        codec: of the data.
        clips: how many.
        length: samples each, at most 1 s.
    """

    def __init__(self, codec: AudioCodec, clips: int, length: int) -> None:
        self.codec = codec
        self.clips = clips
        self.length = min(length, round(_LONGEST_S * codec.sample_rate_hz))

    def __call__(self, model: nn.Module, writer: Any, step: int) -> None:
        """Write the clips and their pictures under the step's number.

        Args:
            model: language model, left in the mode it was in.
            writer: TensorBoard's SummaryWriter.
            step: of the training.
        """
        from matplotlib.image import imread

        # The model has no codec while it is trained: begin with the zero level here.
        tokens = generate(
            model,
            length=self.length,
            num_samples=self.clips,
            prompt=[self.codec.start_id],
            allowed=self.codec.sample_ids,
        )
        rate = self.codec.sample_rate_hz
        clips = [(f"step {step:,}, clip {row}", self.codec.decode(ids.numpy())) for row, ids in enumerate(tokens)]
        for row, (_, audio) in enumerate(clips):
            writer.add_audio(f"clip_{row}", torch.from_numpy(audio)[None], step, sample_rate=rate)
        with tempfile.TemporaryDirectory() as folder:
            picture = Path(folder) / "clips.png"
            spectrograms(clips, rate, picture)
            writer.add_image("spectrograms", imread(picture)[..., :3], step, dataformats="HWC")
