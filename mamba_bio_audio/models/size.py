"""Exact size of a model from its configuration alone, before anything is built (torch-free)."""

from __future__ import annotations

import math

from mamba_bio_audio.layers.contract import MixerConfig
from mamba_bio_audio.models.config import ModelConfig
from mamba_bio_audio.models.head_config import HeadConfig
from mamba_bio_audio.models.unet_config import StageConfig, UNetConfig


def count_parameters(config: ModelConfig | UNetConfig, head: HeadConfig | None = None) -> int:
    """Number of parameters of the model that `models.build.build` makes, tied ones once; 4 bytes each.

    Args:
        config: configuration of the model; without `vocab_size` the smallest alphabet, 2 symbols, is assumed.
        head: head of a classifier; without `classes` two classes are assumed.
    """
    padded = -(-(config.vocab_size or 2) // config.vocab_multiple) * config.vocab_multiple
    width = config.d_model
    extra = config.num_inputs - (config.vocab_size or 2) + len(config.class_names)
    embedding, final_norm = (padded + extra) * width, width
    if isinstance(config, UNetConfig):
        body = sum(_stage(stage, width) for stage, width, _ in _stages(config))
        for tier, pool in enumerate(config.pools):
            fine, coarse = config.widths[tier : tier + 2]
            body += fine * pool * coarse + coarse + len(config.class_names) * coarse  # down
            body += coarse * fine * pool + fine * pool  # up
        logits = padded * width + padded
    else:
        body = sum(_blocks(mixer, 1, width) for _, mixer in config.layer_mixers)
        logits = 0 if config.tie_embeddings else padded * width
    classes = 0 if head is None else len(head.classes or (0, 1)) * (width * head.readings + 1)
    return embedding + body + final_norm + logits + classes


def size_text(parameters: int) -> str:
    """A number of parameters as text, however absurdly large."""
    return f"{parameters:,}" if parameters < 10**15 else f"10^{len(str(parameters)) - 1}"


def kept_per_position(config: ModelConfig | UNetConfig) -> float:
    """Values that training keeps per position even with recomputation: the input of every layer."""
    if isinstance(config, UNetConfig):
        return sum(
            (stage.num_layers or 0) * stage.mixer_config.residuals * width / period
            for stage, width, period in _stages(config)
        )
    return float(sum(mixer.residuals for _, mixer in config.layer_mixers) * config.d_model)


def _stages(config: UNetConfig) -> list[tuple[StageConfig, int, int]]:
    """Each stage with its width and its samples per frame."""
    periods = [math.prod(config.pools[:tier]) for tier in range(len(config.pools) + 1)]
    return [
        (stage, config.widths[tier], periods[tier]) for stage, tier in zip(config.stages, config.tiers, strict=True)
    ]


def _stage(stage: StageConfig, width: int) -> int:
    return _blocks(stage.mixer_config, stage.num_layers or 0, width)


def _blocks(mixer: MixerConfig, number: int, width: int) -> int:
    return number * (mixer.residuals * width + mixer.num_parameters(width))
