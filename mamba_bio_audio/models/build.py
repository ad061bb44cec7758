"""Builds a model from its configuration."""

from __future__ import annotations

import torch

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.machine import available_memory, check_memory
from mamba_bio_audio.models.config import ModelConfig
from mamba_bio_audio.models.head_config import HeadConfig
from mamba_bio_audio.models.heads import Classifier
from mamba_bio_audio.models.isotropic import IsotropicModel
from mamba_bio_audio.models.low_rank import adapt
from mamba_bio_audio.models.size import count_parameters, size_text
from mamba_bio_audio.models.unet import UNetModel
from mamba_bio_audio.models.unet_config import UNetConfig

LanguageModel = IsotropicModel | UNetModel


def build_model(config: ModelConfig | UNetConfig, *, seed: int | None = None) -> LanguageModel:
    """Build a freshly initialised model on the CPU in fp32.

    Args:
        config: with `vocab_size` set.
        seed: random seed for the initialisation; the global generator is left as it was. None uses the global generator.

    Raises:
        InputError: the weights alone exceed the machine's free memory.
    """
    if torch.get_default_device().type != "meta":
        parameters = count_parameters(config)
        remedy = "lower model.d_model, model.num_layers or model.ssm"
        check_memory(
            4 * parameters, f"a model of {size_text(parameters)} parameters", remedy, available=available_memory()
        )
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        return UNetModel(config) if isinstance(config, UNetConfig) else IsotropicModel(config)


def build_classifier(config: ModelConfig | UNetConfig, head: HeadConfig, *, seed: int | None = None) -> Classifier:
    """Build a freshly initialised classifier; its backbone equals `build_model(config, seed=seed)`.

    Args:
        config: configuration of the backbone, with `vocab_size` set.
        head: configuration of the head, with `classes` set.
        seed: as for `build_model`.
    """
    backbone = build_model(config, seed=seed)
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        return Classifier(backbone, head)


def to_be_trained(model: LanguageModel | Classifier, *, seed: int | None = None) -> LanguageModel | Classifier:
    """A model whose weights are those of its start, with what its head says of their training; changed in place.

    Args:
        model: of `build`.
        seed: random seed of the low-rank updates (`low_rank.py`); None uses the global generator.

    Raises:
        InputError: the rank of the updates is too large.
    """
    if not isinstance(model, Classifier) or model.head_config.lora_rank is None:
        return model
    head = model.head_config
    assert head.lora_rank is not None
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        try:
            adapt(model.backbone, head.lora_rank, head.lora_alpha)
        except ValueError as error:
            raise InputError(f"head.{error}") from None
    return model


def build(
    config: ModelConfig | UNetConfig, head: HeadConfig | None = None, *, seed: int | None = None
) -> LanguageModel | Classifier:
    """Build a language model, or with `head` a classifier."""
    return build_model(config, seed=seed) if head is None else build_classifier(config, head, seed=seed)
