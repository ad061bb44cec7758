"""The script that measures everything beside mamba_ssm: its cases are valid, and a row that fails costs no other."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def table(monkeypatch, script):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks" / "device"))
    return script("peer_table")


def test_its_items_are_valid(table):
    for item in table.ITEMS:
        case = table.BENCHMARKS[item.what].case(item.case)
        assert str(item).startswith(f"{item.what} {item.case}")
        assert case
    # What is not compiled before is compiled by another item of the same model.
    models = {item.case.partition(":")[0] for item in table.ITEMS if not table.longest(item)}
    assert {item.case.partition(":")[0] for item in table.ITEMS if table.longest(item)} <= models


def test_rows_and_failures(table, tmp_path, capsys):
    items = [*table.kernels(0.01, "conv:1,8,32", "conv:1,2"), *table.train(0.01, "1x8:1,16"), *table.kernels(0, "x")]
    rows = table.measure(items, "cpu", tmp_path, 1000)
    with (tmp_path / "peer_table.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    assert [row["benchmark"] for row in written] == ["causal_conv1d"] * 3 + ["kernels", "train", "kernels"]
    assert [row["failed"].partition(":")[0] for row in written] == ["", "", "", "InputError", "", "InputError"]
    text = (tmp_path / "peer_table.txt").read_text()
    assert text == table.table(rows, "cpu") == table.table(written, "cpu")
    table.measure(items, "cpu", tmp_path, -1)
    assert "Not begun within -1 s: kernels conv:1,8,32; " in (tmp_path / "peer_table.txt").read_text()


def test_its_help():
    script = ROOT / "benchmarks" / "device" / "peer_table.py"
    told = subprocess.run(
        [sys.executable, script, "--help"], capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)}
    )
    assert told.returncode == 0, told.stderr
    assert "peer_table.csv" in told.stdout


def test_tables_for_the_document(table):
    rows = list(csv.DictReader((ROOT / "benchmarks" / "results" / "peer_h200.csv").open(newline="")))
    document = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    for found in table.markdown(rows).strip().split("\n\n"):
        assert {line.count("|") for line in found.splitlines()} == {9}
        assert found in document
