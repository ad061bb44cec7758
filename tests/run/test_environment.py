"""What a manifest says of the machine and of rounding."""

import subprocess

import pytest
import torch

from mamba_bio_audio import ops
from mamba_bio_audio.ops import calls
from mamba_bio_audio.run import environment
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


def test_a_copy_without_git_knows_its_commit(tmp_path, monkeypatch):
    """Names are git's own, and a copy that was changed since is not called by the commit."""
    git = ("git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "core.fileMode=true")

    def run(*words):
        return subprocess.run([*git, *words], cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    package = tmp_path / "mamba_bio_audio"
    for name, text in {"a.py": "1", "a/b.py": "2", "a-b/c.py": "3", "run/environment.py": "4", "run/x.sh": "5"}.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    (package / "run/x.sh").chmod(0o755)
    (package / "link").symlink_to("a")
    run("init", "-q")
    run("add", "-A")
    run("commit", "-qm", "all")
    names = run("rev-parse", "HEAD", "HEAD:mamba_bio_audio")
    (package / "a/__pycache__").mkdir()
    (package / "a/__pycache__/b.pyc").write_text("compiled")
    (package / "empty").mkdir()
    (tmp_path / ".git").rename(tmp_path / "elsewhere")
    monkeypatch.setattr(environment, "__file__", str(package / "run/environment.py"))
    assert environment._commit() is None
    (tmp_path / ".device").mkdir()
    (tmp_path / ".device/COMMIT").write_text(names)
    assert environment._commit() == names[:12]
    (package / "a/b.py").write_text("6")
    assert environment._commit().startswith("package ")
