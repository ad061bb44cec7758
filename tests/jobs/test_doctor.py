"""`mba doctor`: the compiler that Triton needs, and operations that are wrong or broken."""

import subprocess

import pytest
import torch

from mamba_bio_audio import ops
from mamba_bio_audio.jobs import doctor
from mamba_bio_audio.run import self_test as subject


def test_compiler_is_the_one_that_triton_takes_and_is_tried(monkeypatch, tmp_path):
    monkeypatch.setenv("CC", str(tmp_path / "nowhere"))
    found = subject.c_compiler()
    assert found.path == str(tmp_path / "nowhere")
    assert "does not run" in found.problem
    script = tmp_path / "cc"
    script.write_text("#!/bin/sh\necho 'cc: no licence' >&2\nexit 3\n")
    script.chmod(0o755)
    monkeypatch.setenv("CC", str(script))
    assert "cc: no licence" in subject.c_compiler().problem
    monkeypatch.setattr(subject.sysconfig, "get_paths", lambda scheme: {"include": str(tmp_path)})
    assert "python3-dev" in subject.c_compiler().problem
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert subject.c_compiler() == (None, "but Triton needs one on a GPU; install gcc or clang, or set CC")


def test_a_wrong_and_a_broken_kernel_are_named(monkeypatch):
    conv = ops.causal_conv1d

    def broken(*arguments, backend="auto", **options):
        if backend == "auto":
            raise subprocess.CalledProcessError(1, ["gcc"])
        return ops.rms_norm(*arguments, backend=backend, **options)

    def wrong(*arguments, backend="auto", **options):
        return conv(*arguments, backend=backend, **options) * (1.001 if backend == "auto" else 1)

    monkeypatch.setattr(subject.ops, "causal_conv1d", wrong)
    monkeypatch.setattr(subject.ops, "rms_norm", broken)
    result = doctor.run(doctor.DoctorOptions())
    passed = {test.operation: test.passed for test in result.self_test if test.device == "cpu"}
    assert [name for name, good in passed.items() if not good] == ["causal_conv1d", "rms_norm"]
    text = result.text()
    assert "WRONG" in text
    assert "CalledProcessError: Command '['gcc']' returned non-zero exit status 1." in text
    assert "kernels on cpu: torch" in text


def test_gradients_that_are_not_numbers_are_wrong(monkeypatch):
    conv = ops.causal_conv1d

    def nan_gradient(*arguments, backend="auto", **options):
        out = conv(*arguments, backend=backend, **options)
        if backend == "auto":
            out.register_hook(lambda g: g * float("nan"))
        return out

    monkeypatch.setattr(subject.ops, "causal_conv1d", nan_gradient)
    (test,) = [test for test in subject.self_test("cpu") if test["operation"] == "causal_conv1d"]
    assert not test["passed"]


def test_a_triton_that_does_not_load_is_reported(monkeypatch):
    def broken(x, weights, **options):
        raise ImportError("libtriton.so: cannot open shared object file")

    monkeypatch.setattr(subject.ops, "mamba_mixer", broken)
    tests = {test["operation"]: test for test in subject.self_test("cpu")}
    assert "libtriton.so" in tests["mamba_mixer"]["failure"]
    assert tests["selective_scan"]["passed"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_doctor_tests_the_fused_mixer_on_a_gpu():
    tests = doctor.run(doctor.DoctorOptions()).self_test
    assert "mamba_mixer" in {test.operation for test in tests if test.device == "cuda"}
    assert all(test.passed for test in tests)
