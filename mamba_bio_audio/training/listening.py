"""Samples that a model generates at every validation, and how far they are from recorded ones."""

from __future__ import annotations

from typing import Any

from torch import nn

from mamba_bio_audio.inference.generate import generate
from mamba_bio_audio.pipelines.contract import Listener


class Listening:
    """Generates a few samples at every validation, each time from the same random numbers.

    Args:
        listener: listener of the data's domain.
        codec: codec of the data.
        samples: how many.
    """

    def __init__(self, listener: Listener, codec: Any, samples: int) -> None:
        self.listener = listener
        self.codec = codec
        self.samples = samples

    def __call__(self, model: nn.Module, writer: Any, step: int) -> float:
        """Generate the samples and return their distance from recorded ones.

        Args:
            model: language model; stays in the mode it was in.
            writer: TensorBoard's SummaryWriter, which is shown the samples; None shows nothing.
            step: training step.
        """
        # A model in training has no codec, so the symbol that samples begin with is given here.
        tokens = generate(
            model,
            length=self.listener.length,
            num_samples=self.samples,
            prompt=[self.codec.start_id],
            allowed=self.codec.sample_ids,
        )
        samples = [ids.numpy() for ids in tokens]
        distance = self.listener.distance(samples)
        if writer is not None:
            self.listener.show(samples, writer, step)
        return distance
