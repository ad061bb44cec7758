"""benchmarks/species_pairs.py: networks beside the k-mer bar, paired by window."""

import csv
import gzip
import json

import pytest

CLASSES = ("fly", "human", "mouse")


@pytest.fixture
def pairs(script):
    return script("species_pairs")


def windows(named: str) -> str:
    """A table of predictions; of window i, whose class is i modulo 3, the first letter of the class that is named."""
    lines = ["class\tlocus\tp_fly\tp_human\tp_mouse"]
    for at, letter in enumerate(named):
        p = "\t".join(".8" if name[0] == letter else ".1" for name in CLASSES)
        lines.append(f"{CLASSES[at % 3]}\tblock {at // 3}\t{p}")
    return "\n".join(lines) + "\n"


@pytest.fixture
def folder(tmp_path):
    """Of six windows in two blocks the bar has three right; `a` five in either seed, `b` all, but fewer on validation."""
    (tmp_path / "bar").mkdir()
    (tmp_path / "bar" / "species_kmers_predictions.tsv").write_text(windows("fhhfff"))
    for name, valid, test in (
        ("a-s0", "fhmfhm", "fhmfhh"),
        ("a-s1", "fhmfhm", "fhmfmm"),
        ("b-s0", "fhmfhh", "fhmfhm"),
    ):
        run = tmp_path / name
        run.mkdir()
        (run / "valid.tsv.gz").write_bytes(gzip.compress(windows(valid).encode()))
        (run / "test.tsv.gz").write_bytes(gzip.compress(windows(test).encode()))
        (run / "config.yaml").write_text("train:\n  tokens_per_step: 2048\n")
        made = {"device": "NVIDIA H200", "torch": "2", "triton": "3", "commit": "c", "started": "2026-11-30"}
        row = {"kind": "training", "seconds": 3.2, "summary": {"step": 10, "best_step": 5}} | made
        (run / "species.json").write_text(json.dumps([row]))
    return tmp_path


def test_rows(pairs, folder, tmp_path, capsys):
    pairs.main(folder, tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert set(rows) == {"bar", "a-s0", "a-s1", "b-s0", "a mean", "a together", "b mean", "b together"}
    assert (rows["bar"]["test"], rows["bar"]["test_minus_bar_high"]) == ("0.5000", "0.0000")
    assert rows["a-s0"]["bases"] == f"{10 * 2048}"
    assert rows["a-s0"]["test_minus_bar"] == f"{5 / 6 - 3 / 6:.4f}"
    # Of human and mouse the likelier one counts, whatever is named; the first of equals.
    assert (rows["bar"]["human_mouse"], rows["a-s0"]["human_mouse"]) == ("0.5000", "0.7500")
    assert rows["a mean"]["test"] == f"{5 / 6:.4f}"
    assert rows["b mean"]["test_minus_bar"] == "0.5000"
    # Chosen on validation alone.
    assert [name for name, row in rows.items() if row["chosen"]] == ["a mean", "a together"]
    assert "over the bar" in capsys.readouterr().out


def test_other_windows_are_refused(pairs, folder, tmp_path):
    (folder / "a-s0" / "test.tsv.gz").write_bytes(gzip.compress(windows("fhmfh").encode()))
    with pytest.raises(AssertionError, match="not those of the bar"):
        pairs.main(folder, tmp_path / "out.csv")
