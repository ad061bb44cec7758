"""Mamba-2 language models of Hugging Face's transformers and of mamba_ssm: their sizes, their keys, and our settings.

`foreign.py` reads Mamba-1 models and says what the kinds of keys are. Of the sizes of a Mamba-2 model, tensors do not tell the
number of groups; a bare state dict is taken to have one, as both libraries' own models have.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mamba_bio_audio.errors import InputError

_GROUPS = ("n_groups", "ssm_cfg.ngroups")
_LIMITS = ("time_step_limit", "ssm_cfg.dt_limit")
_NO_LIMIT = (0.0, float("inf"))
_INFINITE = {"__float__": "Infinity"}  # as transformers writes it
# Where a step size is bounded from below alone; our settings are finite.
_LARGEST_STEP = 1e30

MEASURED = {
    "num_heads": "heads",
    "head_dim": "channels of a head",
    "ssm_cfg.headdim": "channels of a head",
    "n_groups": "groups",
    "ssm_cfg.ngroups": "groups",
}
FIXED: dict[str, tuple[Any, ...]] = {
    "model_type": ("mamba2",),
    "ssm_cfg.layer": ("Mamba2",),
    "norm_before_gate": (False,),
    "ssm_cfg.norm_before_gate": (False,),
    "ssm_cfg.rmsnorm": (True,),
    "ssm_cfg.D_has_hdim": (False,),
    "ssm_cfg.d_ssm": (None,),
    "ssm_cfg.activation": ("silu", "swish"),
}
ARCHITECTURES = ("Mamba2ForCausalLM", "Mamba2Model", "MambaLMHeadModel")
# Speed, and what nothing uses.
HARMLESS = frozenset(
    ("chunk_size", "time_step_rank", "ssm_cfg.chunk_size", "ssm_cfg.use_mem_eff_path", "ssm_cfg.A_init_range",
     "ssm_cfg.conv_init")
)  # fmt: skip


def is_mamba2(tensors: Mapping[str, Tensor]) -> bool:
    """Whether the first layer's tensors are those of Mamba-2."""
    return "layers.0.mixer.dt_bias" in tensors


def measure(tensors: Mapping[str, Tensor], path: Path, flat: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes according to the tensors of layer 0, with the number of groups that the keys `flat` say."""
    first = "layers.0.mixer."
    try:
        _, width = tensors["embedding.weight"].shape
        (heads,) = tensors[first + "A_log"].shape
        (inner,) = tensors[first + "norm.weight"].shape
        mixed, _, taps = tensors[first + "conv1d.weight"].shape
    except (KeyError, ValueError):
        raise InputError(f"{path}: not a Mamba-2 language model of the published kind") from None
    if not width or inner % width or not heads or inner % heads:
        raise InputError(
            f"{path}: {inner:,} inner channels are not a multiple of the width, {width:,}, and of {heads:,} heads, which is "
            "not supported"
        )
    # transformers leaves 8 groups out.
    said = next((flat[key] for key in _GROUPS if key in flat), 8 if "model_type" in flat else 1)
    groups = said if isinstance(said, int) and not isinstance(said, bool) and said > 0 else 1
    states, rest = divmod(mixed - inner, 2 * groups)
    if rest or states < 1:
        raise InputError(
            f"{path}: {mixed:,} channels of the convolution are not {inner:,} and B and C of {groups} groups"
        )
    return {
        "width": width,
        "states per channel": states,
        "taps of the convolution": taps,
        "inner channels": inner,
        "inner channels per channel": inner // width,
        "heads": heads,
        "channels of a head": inner // heads,
        "groups": groups,
        "bias of the projections": first + "in_proj.bias" in tensors,
        "bias of the convolution": first + "conv1d.bias" in tensors,
    }


def limit(flat: Mapping[str, Any], problems: list[str]) -> tuple[float, float] | None:
    """What step sizes are clamped to; anything wrong with it is added to `problems`."""
    found = []
    for key in _LIMITS:
        value = flat.get(key, _NO_LIMIT)
        if isinstance(value, list):
            value = [float("inf") if v == _INFINITE else v for v in value]
        numbers = isinstance(value, list | tuple) and len(value) == 2
        if not numbers or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in value):
            problems.append(f"{key} must be two numbers")
        elif not 0 <= value[0] < value[1]:
            problems.append(f"{key} must be a range of numbers from 0 on")
        elif tuple(value) != _NO_LIMIT:
            found.append((float(value[0]), min(float(value[1]), _LARGEST_STEP)))
    if len(set(found)) > 1:
        problems.append(" and ".join(_LIMITS) + " contradict each other")
    return found[0] if found else None


def settings(sizes: Mapping[str, Any], dt_limit: tuple[float, float] | None, norm_eps: float) -> dict[str, Any]:
    """`mixer` and `options` of our configuration.

    Args:
        sizes: of `measure`.
        dt_limit: of `limit`.
        norm_eps: of the gated norm.
    """
    options = {
        "d_state": sizes["states per channel"],
        "d_conv": sizes["taps of the convolution"],
        "expand": sizes["inner channels per channel"],
        "head_dim": sizes["channels of a head"],
        "groups": sizes["groups"],
        "dt_limit": dt_limit,
        "norm_eps": norm_eps,
        "conv_bias": sizes["bias of the convolution"],
        "proj_bias": sizes["bias of the projections"],
    }
    return {"mixer": "mamba2", "options": options}


def described(layer: Any) -> dict[str, Any]:
    """Keys of `config.json` with which transformers computes what a layer of ours does.

    Args:
        layer: `layers.mamba2.Mamba2Layer`.
    """
    mixer = layer.config
    found = {
        "model_type": "mamba2",
        "architectures": ["Mamba2ForCausalLM"],
        "state_size": mixer.d_state,
        "conv_kernel": mixer.d_conv,
        "expand": mixer.expand,
        "num_heads": layer.heads,
        "head_dim": layer.d_inner // layer.heads,
        "n_groups": mixer.groups,
        "use_bias": mixer.proj_bias,
        "use_conv_bias": mixer.conv_bias,
    }
    return found | ({} if mixer.dt_limit is None else {"time_step_limit": list(mixer.dt_limit)})
