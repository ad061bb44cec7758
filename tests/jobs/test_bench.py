"""`mba bench`: a CSV file with provenance, a table, JSON, and standard output."""

import csv
import io
import json

import pytest
import torch

from mamba_bio_audio.cli.main import run as command
from mamba_bio_audio.run import sample_speed


def mba(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        command([str(argument) for argument in ("bench", *arguments, "--device", "cpu", "--seconds", 0.01)])
    return int(stop.value.code or 0)


def test_kernels_and_provenance(tmp_path, capsys):
    out = tmp_path / "new" / "k.csv"
    given = ("kernels", "--case", "scan:1,70,32", "--case", "conv:1,70,32", "--out", out)
    assert mba(*given, "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    with out.open() as file:
        written = list(csv.DictReader(file))
    modes = ("inference", "forward", "backward")
    named = [(name, mode) for name in ("selective_scan", "causal_conv1d") for mode in modes]
    assert [(r["benchmark"], r["mode"]) for r in written] == named
    assert len(rows) == 6
    for row in written:
        assert row["torch"] == torch.__version__
        assert "triton" in row
        assert row["started"]
        assert float(row["ms_p50"]) > 0
        assert float(row["limit_ms"]) > 0
        assert row["ratio"] == ""  # there is no peer on a CPU
    # An earlier table is replaced, and shown.
    assert mba(*given, "--quiet") == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert [tuple(line.split()[:2]) for line in lines] == named
    assert all("ms at the rate of a copy" in line for line in lines)
    assert last == f"written: {out}"


def test_steps_of_a_case(tmp_path, capsys):
    out = tmp_path / "t.csv"
    assert mba("train", "--case", "1x8:2,16", "--case", "1x8:2,16,8", "--graph", "--out", out, "--quiet") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "1x8, (2, 16)  " in lines[0]
    assert "1x8, (2, 16), streamed by 8" in lines[1]
    with out.open() as file:
        assert [row["recorded"] for row in csv.DictReader(file)] == ["True", "True"]


def test_csv_on_standard_output(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert mba("sample", "--case", "1x8:2", "--out", "-") == 0
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
    for given, message in (
        (("sample", "--graph"), "--graph, --peer and --memory are options of mba bench train"),
        (("kernels", "--peer", "mamba2"), "--graph, --peer and --memory are options of mba bench train"),
        (("train", "--memory", 1), "--memory is of the GPU, and this runs on the CPU"),
        (("kernels", "--case", "scan:1"), "--case scan:1: not OPERATION:B,L,D"),
        (("train", "--case", "1x8+nothing:1,16"), "nothing"),
    ):
        assert mba(*given, "--out", tmp_path / "x.csv") == 2
        assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())
