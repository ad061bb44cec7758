"""The peer of our benchmarks: mamba_ssm with its CUDA selective scan and causal_conv1d, on a GPU where it is installed."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace
from typing import Any

import torch
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


def peer_norm(x: Tensor, weight: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
    """mamba_ssm's fused norm on the inputs of ours."""
    from mamba_ssm.ops.triton.layer_norm import rms_norm_fn

    found: tuple[Tensor, Tensor] = rms_norm_fn(
        x, weight, None, residual=residual, eps=1e-5, prenorm=True, residual_in_fp32=True
    )
    return found


def peer_layout(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Inputs of a scan in mamba_ssm's own layout: (B, D, L), contiguous; complex maps (B, N, 2 L) with the parts side by side.

    A time-invariant step size is one for every position there. Time-invariant maps are fp32.
    """
    found = dict(inputs)
    u, A = inputs["u"], inputs["A"]
    if inputs["dt"].ndim == 1:
        found["dt"] = inputs["dt"].to(u.dtype)[None, None].expand(u.shape)
    for name in ("u", "dt", "z"):
        found[name] = found[name].transpose(1, 2).contiguous()
    is_complex = A.ndim == 3
    if is_complex:
        found["A"] = torch.view_as_complex(A.contiguous())
    for name in ("B", "C"):
        value = inputs[name]
        if value.ndim == A.ndim:
            found[name] = torch.view_as_complex(value.float().contiguous()) if is_complex else value.float()
        else:
            found[name] = value.transpose(1, 2).flatten(2).contiguous()
    return found


def peer_layer(width: int, device: str = "cuda") -> nn.Module:
    """mamba_ssm's layer, of the shape of ours."""
    from mamba_ssm.modules.mamba_simple import Mamba

    layer: nn.Module = Mamba(width, d_state=16, d_conv=4, expand=2)
    return layer.to(device)


def peer_model(layers: int, width: int, **ssm: Any) -> nn.Module:
    """mamba_ssm's language model with a vocabulary of 16, on the GPU; `ssm` chooses its layer."""
    # Not from the package's first file, which imports every model that it has.
    from mamba_ssm.models.config_mamba import MambaConfig
    from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel

    return MambaLMHeadModel(MambaConfig(d_model=width, n_layer=layers, vocab_size=16, ssm_cfg=ssm)).cuda()


class PeerLoss(nn.Module):
    """A model that only gives logits, with the loss of ours: what `graphed.GraphedLoss` records."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, *, targets: Tensor, logits: str) -> Any:
        """Summed loss (nats, fp32) and number of targets, as of our models; `logits` is not asked."""
        found = self.model(tokens).logits.float().flatten(0, 1)
        loss = nn.functional.cross_entropy(found, targets.flatten(), reduction="sum")
        return SimpleNamespace(loss_sum=loss, count=torch.full((), targets.numel(), device=loss.device))


class PeerMixer(nn.Module):
    """mamba_ssm's layer behind our contract, for whole sequences only."""

    streaming = "constant"

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mamba = peer_layer(width, "cpu")

    def init_state(self, batch: int, device: Any = None, dtype: Any = None) -> Tensor:
        """Nothing."""
        return torch.zeros(0, device=device)

    def forward(self, x: Tensor, state: Any = None, *, reset: Any = None) -> tuple[Tensor, Any]:
        """As ours; `state` is passed on."""
        return self.mamba(x), state


def with_peer_mixers(model: nn.Module) -> nn.Module:
    """The same network, its mixers replaced by mamba_ssm's."""
    blocks: list[Any] = list(model.modules())
    for module in blocks:
        if hasattr(module, "mixer"):
            module.mixer = PeerMixer(module.mixer.d_model)
    return model
