"""The peer of our benchmarks: mamba_ssm with its CUDA selective scan and causal_conv1d, on a GPU where it is installed."""

from __future__ import annotations

import importlib.util
from typing import Any

from torch import Tensor, nn


def has_peer(device: str) -> bool:
    """Whether mamba_ssm with its CUDA scan is there."""
    return device == "cuda" and all(importlib.util.find_spec(n) for n in ("mamba_ssm", "selective_scan_cuda"))


def peer_version() -> str:
    """What the peer's figures are of."""
    import mamba_ssm

    return f"mamba_ssm {mamba_ssm.__version__}"


def peer_scan(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, dt_bias: Tensor) -> Tensor:
    """mamba_ssm's CUDA scan on the inputs of ours, in its layout."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    return selective_scan_fn(u, dt, A, B, C, D, z=z, delta_bias=dt_bias, delta_softplus=True)


def peer_conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """causal_conv1d on the inputs of our convolution."""
    from causal_conv1d import causal_conv1d_fn

    # Channels-last memory behind its (B, D, L) face, as inside its own block.
    return causal_conv1d_fn(x.transpose(1, 2), weight, bias, activation="silu").transpose(1, 2)


def peer_layout(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """mamba_ssm's own layout: (B, D, L), contiguous."""
    swapped = ("u", "dt", "B", "C", "z")
    return {k: v.transpose(1, 2).contiguous() if k in swapped else v for k, v in inputs.items()}


def peer_model(layers: int, width: int, **ssm: Any) -> nn.Module:
    """mamba_ssm's language model with a vocabulary of 16, on the GPU; `ssm` chooses its layer."""
    # Not from the package's first file, which imports every model that it has.
    from mamba_ssm.models.config_mamba import MambaConfig
    from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel

    return MambaLMHeadModel(MambaConfig(d_model=width, n_layer=layers, vocab_size=16, ssm_cfg=ssm)).cuda()
