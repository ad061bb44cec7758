"""`mba bench`: a CSV file with provenance, a table, JSON, and standard output."""

import csv
import io
import json

import pytest
import torch

from mamba_bio_audio.cli.main import run as command
from mamba_bio_audio.run import sample_speed, speed


def mba(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        command([str(argument) for argument in ("bench", *arguments, "--device", "cpu", "--seconds", 0.01)])
    return int(stop.value.code or 0)


def test_kernels_and_provenance(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(speed.KERNEL_SHAPES, "cpu", [(1, 70, 32)])
    out = tmp_path / "new" / "k.csv"
    assert mba("kernels", "--out", out, "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    with out.open() as file:
        written = list(csv.DictReader(file))
    assert [(r["benchmark"], r["mode"]) for r in written] == [
        ("selective_scan", "forward"),
        ("selective_scan", "backward"),
        ("causal_conv1d", "forward"),
        ("causal_conv1d", "backward"),
    ]
    assert len(rows) == 4
    for row in written:
        assert row["torch"] == torch.__version__
        assert "triton" in row
        assert row["started"]
        assert float(row["ms_p50"]) > 0
        assert row["ratio"] == ""  # there is no peer on a CPU
    # An earlier table is replaced, and shown.
    assert mba("kernels", "--out", out, "--quiet") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [*["selective_scan"] * 2, *["causal_conv1d"] * 2, "written:"]


def test_csv_on_standard_output(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sample_speed.SAMPLE_CASES, "cpu", [sample_speed.SampleCase("1x8", 2, "fp32")])
    assert mba("sample", "--out", "-") == 0
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert row["benchmark"] == "sample"
    assert not list(tmp_path.iterdir())


def test_lines_of_sampling(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sample_speed.SAMPLE_CASES, "cpu", [sample_speed.SampleCase("1x8", 2, "fp32")])
    out = tmp_path / "s.csv"
    assert mba("sample", "--out", out, "--quiet") == 0
    (row,) = csv.DictReader(out.open())
    line, written = capsys.readouterr().out.splitlines()
    assert written == f"written: {out}"
    assert line.split()[:8] == ["sample", "1x8,", "batch", "2", "float32", "numpy", row["us_per_step"], "us/step"]
    for words in (f"{row['limit_us']} us at the rate of a copy", f"{row['recording_s']} s to record", "s to start"):
        assert words in line


def test_what_it_refuses(tmp_path, capsys):
    (tmp_path / "other.csv").write_text("mine")
    for what, out, message in (
        ("nothing", "x.csv", "'kernels', 'train', 'sample'"),
        ("train", ".", "is a folder"),
        ("train", "other.csv", "not made by mba bench"),
    ):
        assert mba(what, "--out", tmp_path / out) == 2
        assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())
