"""The curves on a CPU at tiny sizes, with stand-ins for the peers."""

import csv

import pytest
import torch
from torch import nn

from mamba_bio_audio.ops import selective_scan
from mamba_bio_audio.run.kernel_speed import scan_inputs


@pytest.fixture
def bench(script, mamba_ssm, monkeypatch):
    bench = script("bench_curves")
    monkeypatch.setattr(bench, "LAYERS", 1)
    monkeypatch.setattr(bench, "WIDTH", 16)
    monkeypatch.setattr(bench, "CHANNELS", 64)
    monkeypatch.setattr(bench, "LENGTHS", {"models": [8, 16], "operations": [64, 128]})
    monkeypatch.setattr(bench, "batch", lambda length, device: torch.randint(7, 11, (1, length)))
    monkeypatch.setattr(bench, "has_peer", lambda device: True)
    # Compiling takes seconds and is torch's.
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: None)
    return bench


def read(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_the_naive_scan_is_the_recurrence(bench):
    inputs = scan_inputs(2, 32, 8, torch.float32, "cpu")
    expected = selective_scan(**inputs, backend="reference")
    torch.testing.assert_close(bench.naive_scan(**inputs), expected, rtol=1e-4, atol=1e-5)


def test_the_convolution_and_the_transformer_are_causal(bench):
    u, weight = torch.randn(1, 3, 16), torch.randn(3, 16)
    found = bench.fft_convolution(u, weight)
    expected = torch.stack([(u[0, :, : t + 1].flip(-1) * weight[:, : t + 1]).sum(-1) for t in range(16)], -1)
    torch.testing.assert_close(found[0], expected, rtol=1e-4, atol=1e-5)

    model, tokens = bench.Transformer(2, 16), torch.randint(0, 16, (1, 12))
    other = tokens.clone()
    other[:, 7] = 15 - other[:, 7]
    difference = (model(tokens).logits - model(other).logits).abs().amax((0, 2))
    assert (difference[:7] == 0).all()
    assert (difference[7:] > 0).all()


def test_models(bench, tmp_path):
    bench.run("models", tmp_path / "m.csv", "cpu", seconds=100)
    rows = read(tmp_path / "m.csv")
    names = ["ours", "mamba_ssm", "transformer", "torch", "mamba2"]
    assert [(row["curve"], row["length"]) for row in rows] == [
        (name, length) for name in names for length in ["8", "16"]
    ]
    assert all(float(row["seconds"]) > 0 and not row["note"] for row in rows)
    assert (tmp_path / "m.png").stat().st_size > 10_000


def test_operations(bench, tmp_path, monkeypatch):
    def full(**inputs):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(bench, "fft_convolution", full)
    bench.run("operations", tmp_path / "o.csv", "cpu", seconds=100)
    rows = read(tmp_path / "o.csv")
    assert [(row["curve"], row["length"], row["note"]) for row in rows] == [
        *[(name, length, "") for name in ("ours", "mamba_ssm", "naive scan") for length in ("64", "128")],
        ("FFT convolution", "64", "out of memory"),
        *[("FlashAttention", length, "") for length in ("64", "128")],
    ]
    assert (tmp_path / "o.png").stat().st_size > 10_000


def test_what_takes_too_long_is_not_begun(bench, tmp_path, monkeypatch, capsys):
    # A step of one second at 8: two at 16 where time grows with length, four where it grows with its square.
    slow = {"seconds": "1", "tokens_per_second": "8", "peak_gib": "1", "note": ""}
    monkeypatch.setattr(bench, "measure", lambda *_: slow)
    monkeypatch.setattr(bench, "LONGEST_S", 3)
    # Positions as where a batch is one sequence.
    monkeypatch.setattr(bench, "LENGTHS", {"models": [2**17, 2**18]})
    rows = bench.run("models", tmp_path / "m.csv", "cpu", seconds=100, only=["ours", "transformer"])
    assert [row["note"] for row in rows] == ["", "", "", "not run: would take more than 3 s"]
    assert bench.run("models", tmp_path / "none.csv", "cpu", seconds=-1, only=["ours"]) == []
    assert f"not begun in time: ours from {2**17}" in capsys.readouterr().out
    assert not (tmp_path / "none.csv").exists()


def test_scans_that_differ_are_not_timed(bench, monkeypatch):
    right = bench.ops.selective_scan
    monkeypatch.setattr(bench.ops, "selective_scan", lambda **inputs: right(**inputs) * 1.1)
    with pytest.raises(RuntimeError, match="nothing is timed"):
        bench.operation_curves("cpu")
