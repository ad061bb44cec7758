"""What a manifest says of the machine and of rounding."""

import pytest
import torch

from mamba_bio_audio import ops
from mamba_bio_audio.ops import calls
from mamba_bio_audio.run.environment import precision_settings


@pytest.fixture
def flags(monkeypatch):
    """The process's settings are put back."""
    before = torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision
    yield monkeypatch
    torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision = before


def test_precision_settings_are_those_of_the_process(flags):
    settings = precision_settings("cpu", "fp32")
    assert settings["autocast"] is None
    assert settings["kernels"] == "torch"
    assert settings["tf32_matmul"] is False
    assert settings["deterministic_algorithms"] is False
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    flags.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    settings = precision_settings("cpu", "bf16")
    assert settings["autocast"] == "bfloat16"
    assert (settings["tf32_matmul"], settings["tf32_cudnn"]) == (True, False)
    # The older interface refuses to answer after the newer one was used.
    assert settings["float32_matmul_precision"] is None
    assert settings["deterministic_algorithms"] is True


def test_precision_settings_name_the_kernel_path(monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(calls, "no_triton", lambda device: None)
    assert precision_settings("cuda", "bf16")["kernels"].startswith("triton (")
    with ops.plain_torch():
        assert precision_settings("cuda", "fp32")["kernels"] == "torch (asked for)"
    monkeypatch.setattr(calls, "no_triton", lambda device: "triton is not installed")
    assert precision_settings("cuda", "fp32")["kernels"] == "torch (triton is not installed)"
