"""From configuration to model."""

from __future__ import annotations

import torch

from mamba_bio_audio.models.config import ModelConfig
from mamba_bio_audio.models.isotropic import IsotropicModel


def build_model(config: ModelConfig, *, seed: int | None = None) -> IsotropicModel:
    """Build a freshly initialised model on the CPU in fp32.

    Args:
        config: with `vocab_size` set.
        seed: of the initialisation; the global generator is left as it was. None draws from the global generator.
    """
    if seed is None:
        return IsotropicModel(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return IsotropicModel(config)
