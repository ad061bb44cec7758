"""How large a model will be, from its configuration alone: before anything is built (torch-free, exact)."""

from __future__ import annotations

import math

from mamba_bio_audio.layers.config import SsmConfig
from mamba_bio_audio.models.config import ModelConfig
from mamba_bio_audio.models.head_config import HeadConfig
from mamba_bio_audio.models.unet_config import StageConfig, UNetConfig


def count_parameters(config: ModelConfig | UNetConfig, head: HeadConfig | None = None) -> int:
    """Parameters of the model that `models.build.build` makes, tied ones once; its size in bytes is 4 times this.

    Args:
        config: of the model; without `vocab_size` the smallest alphabet is taken.
        head: of a classifier; without `classes` two are taken.
    """
    padded = -(-(config.vocab_size or 2) // config.vocab_multiple) * config.vocab_multiple
    width = config.d_model
    embedding, final_norm = padded * width, width
    if isinstance(config, UNetConfig):
        body = sum(_stage(stage, width) for stage, width, _ in _stages(config))
        for tier, pool in enumerate(config.pools):
            fine, coarse = config.widths[tier : tier + 2]
            body += fine * pool * coarse + coarse  # down
            body += coarse * fine * pool + fine * pool  # up
        logits = padded * width + padded
    else:
        body = config.num_layers * (width + _mamba(config.ssm, width))
        logits = 0 if config.tie_embeddings else padded * width
    classes = 0 if head is None else len(head.classes or (0, 1)) * (width + 1)
    return embedding + body + final_norm + logits + classes


def size_text(parameters: int) -> str:
    """A number of parameters for people, however absurd."""
    return f"{parameters:,}" if parameters < 10**15 else f"10^{len(str(parameters)) - 1}"


def kept_per_position(config: ModelConfig | UNetConfig) -> float:
    """Numbers that training keeps for each position whatever is recomputed: the input of every layer."""
    if isinstance(config, UNetConfig):
        return sum((stage.num_layers or 0) * width / period for stage, width, period in _stages(config))
    return float(config.num_layers * config.d_model)


def _stages(config: UNetConfig) -> list[tuple[StageConfig, int, int]]:
    """Each stage with its width and the samples per frame there."""
    tiers = len(config.pools)
    down = list(range(tiers)) if config.down_blocks else []
    order = [*down, tiers, *reversed(range(tiers))]
    periods = [math.prod(config.pools[:tier]) for tier in range(tiers + 1)]
    return [(stage, config.widths[tier], periods[tier]) for stage, tier in zip(config.stages, order, strict=True)]


def _stage(stage: StageConfig, width: int) -> int:
    if stage.attention is not None:
        mlp = 2 * stage.attention.mlp_expand * width * width
        return (stage.num_layers or 0) * (2 * width + 4 * width * width + mlp)
    return (stage.num_layers or 0) * (width + _mamba(stage.ssm, width))


def _mamba(ssm: SsmConfig, width: int) -> int:
    """One Mamba mixer, as `layers.mamba.MambaLayer` lays it out."""
    inner = ssm.expand * width
    rank = math.ceil(width / 16) if ssm.dt_rank == "auto" else ssm.dt_rank
    parts = 2 if ssm.complex else 1
    bc = ssm.d_state * parts
    selective_dt, selective_bc = ssm.selective in (True, "dt"), ssm.selective in (True, "bc")
    count = 2 * inner * width + inner * width  # in_proj, out_proj
    count += (2 * inner + width) if ssm.proj_bias else 0
    count += inner * (ssm.d_conv + ssm.conv_bias)
    count += inner * (rank * selective_dt + 2 * bc * selective_bc)  # x_proj
    count += inner * (rank + 1) if selective_dt else inner  # dt_proj, or dt
    count += 0 if selective_bc else 2 * inner * bc  # B, C
    return count + inner * bc + inner  # A, D
