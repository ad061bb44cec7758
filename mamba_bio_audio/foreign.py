"""Weights that Hugging Face's transformers and mamba_ssm wrote, under our names and with our configuration."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.models.config import ModelConfig


def read_json(path: Path) -> dict[str, Any]:
    """A file that holds one JSON object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not JSON: {error}; restore the file") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: must hold a JSON object; restore the file")
    return value


def read_tensors(path: Path) -> dict[str, Tensor]:
    """A state dict, never unpickled beyond tensors."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise InputError(f"{path}: cannot be read as weights: {error}") from None
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise InputError(f"{path}: not a state dict of tensors")
    return loaded


def rename(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Hugging Face and mamba_ssm names to ours, in fp32."""
    renamed = {}
    for name, tensor in tensors.items():
        ours = re.sub(r"^(model\.)?(backbone\.)?", "", name)
        ours = ours.replace("embeddings.weight", "embedding.weight")
        renamed[ours] = tensor.float()
    if "embedding.weight" not in renamed:
        raise InputError(f"{path}: no embedding among {len(tensors)} tensors; not a Mamba language model")
    return renamed


def infer_config(tensors: dict[str, Tensor], path: Path, description: dict[str, Any]) -> ModelConfig:
    """Shapes say everything but the norm's epsilon."""
    first = "layers.0.mixer."
    try:
        vocab, d_model = tensors["embedding.weight"].shape
        d_inner, d_state = tensors[first + "A_log"].shape
        dt_rank = tensors[first + "dt_proj.weight"].shape[1]
        d_conv = tensors[first + "conv1d.weight"].shape[2]
    except (KeyError, ValueError, IndexError):
        raise InputError(f"{path}: not a Mamba-1 language model (Mamba-2 and others are not supported)") from None
    if "norm_f.bias" in tensors:
        raise InputError(f"{path}: this model has LayerNorms; RMSNorm is supported")
    head = tensors.get("lm_head.weight")
    layers = {int(match[1]) for name in tensors if (match := re.match(r"layers\.(\d+)\.", name))}
    return ModelConfig.model_validate(
        {
            "d_model": d_model,
            "num_layers": len(layers),
            "vocab_size": vocab,
            "vocab_multiple": 1,
            "norm_eps": description.get("layer_norm_epsilon", 1e-5),
            "tie_embeddings": head is None or torch.equal(head, tensors["embedding.weight"]),
            "ssm": {
                "d_state": d_state,
                "d_conv": d_conv,
                "expand": d_inner // d_model,
                "dt_rank": dt_rank,
                "conv_bias": first + "conv1d.bias" in tensors,
                "proj_bias": first + "in_proj.bias" in tensors,
            },
        }
    )
