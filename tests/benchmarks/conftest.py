"""Scripts under benchmarks/ as modules, and mamba_ssm's interface without its kernels."""

import importlib
import sys
from collections import namedtuple
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from mamba_bio_audio.layers.config import SsmConfig
from mamba_bio_audio.layers.mamba import MambaLayer


@pytest.fixture
def script(monkeypatch):
    """Imports a script by name."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module


class Mamba(nn.Module):
    """mamba_ssm's layer: its arguments, parameters and call."""

    def __init__(self, d_model, d_state=16, d_conv=4, expand=2):
        super().__init__()
        self.layer = MambaLayer(
            d_model, SsmConfig(complex=False, selective=True, d_state=d_state, d_conv=d_conv, expand=expand)
        )

    def forward(self, hidden_states, inference_params=None):
        return self.layer(hidden_states)[0]


class MambaConfig:
    def __init__(self, d_model=2560, n_layer=64, vocab_size=50277, ssm_cfg=None):
        self.width, self.vocabulary, self.ssm_cfg = d_model, vocab_size, ssm_cfg


class MambaLMHeadModel(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.embedding = nn.Embedding(config.vocabulary, config.width)
        self.head = nn.Linear(config.width, config.vocabulary)

    def cuda(self):
        return self

    def forward(self, input_ids):
        return namedtuple("CausalLMOutput", "logits")(self.head(self.embedding(input_ids)))


def selective_scan_fn(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False):
    assert delta_softplus
    return u * torch.sigmoid(z)


@pytest.fixture
def mamba_ssm(monkeypatch):
    """Stand-ins for what is imported from mamba_ssm; not from its first file, which is empty on the GPU machine."""
    for name, content in {
        "mamba_ssm": {"__version__": "0.0"},
        "mamba_ssm.modules": {},
        "mamba_ssm.modules.mamba_simple": {"Mamba": Mamba},
        "mamba_ssm.models": {},
        "mamba_ssm.models.config_mamba": {"MambaConfig": MambaConfig},
        "mamba_ssm.models.mixer_seq_simple": {"MambaLMHeadModel": MambaLMHeadModel},
        "mamba_ssm.ops": {},
        "mamba_ssm.ops.selective_scan_interface": {"selective_scan_fn": selective_scan_fn},
    }.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
