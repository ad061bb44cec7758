"""Tables of docs/classification.md say what committed results say."""

import csv
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
TEXT = (ROOT / "docs" / "classification.md").read_text(encoding="utf-8")


def results(name: str) -> list[dict[str, str]]:
    with (RESULTS / name).open(newline="") as file:
        return list(csv.DictReader(file))


def table(header: str) -> list[list[str]]:
    """The cells of the rows below a header."""
    lines = TEXT[TEXT.index(header) :].splitlines()[2:]
    rows = [line for line in lines[: next((i for i, x in enumerate(lines) if not x.startswith("|")), len(lines))]]
    assert rows
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_kmers_on_gue():
    found = {(row["task"], row["model"], row["part"]): row for row in results("gue_kmers_cpu.csv")}
    rows = table("| task | test | 5-mers | 6-mers | k-mers |")
    assert {row[0] for row in rows} == {task for task, _, _ in found}
    for task, count, fives, sixes, tuned, chosen, clean, mcc, published in rows:
        for model, cell in (("5-mers", fives), ("6-mers", sixes), ("k-mers", tuned)):
            assert cell == f"{float(found[task, model, 'all']['auroc']):.3f}"
        best = found[task, "k-mers", "all"]
        assert count == f"{int(best['count']):,}"
        assert mcc == f"{float(best['mcc']):.3f}"
        assert clean == f"{float(found[task, 'k-mers', 'clean']['auroc']):.3f}"
        matched = re.fullmatch(r"(\d), (one|both)", chosen)
        assert matched
        k, strand = matched.groups()
        assert best["chosen"].startswith(f"k = {k}, {strand} strand")
        assert published


def test_genomes_and_fragments():
    found = {(row["data"], row["length"], row["errors"]): row for row in results("genomes_cpu.csv")}
    rows = table("| data | sequence | errors |")
    assert len(rows) == len(found)
    for data, sequence, errors, count, model, balanced, bounds in rows:
        length = "whole" if sequence == "whole genomes" else sequence.split()[0].replace(",", "")
        row = found[data, length, f"{float(errors.rstrip(' %')) / 100:g}" if errors != "0" else "0.0"]
        assert (count, model) == (f"{int(row['test']):,}", row["model"].removeprefix("k-mers, "))
        assert balanced == f"{100 * float(row['balanced_accuracy']):.1f} %"
        assert bounds == f"{100 * float(row['low']):.1f} to {100 * float(row['high']):.1f}"


@pytest.mark.parametrize("row", results("predict_cpu.csv"), ids=lambda row: f"{row['model']}, {row['length']}")
def test_speed_of_prediction(row):
    cells = {cells[0]: cells[1:] for cells in table("| Mb/s, one core | 150 |")}
    at = ["150", "1000", "16384"].index(row["length"])
    assert cells[row["model"]][at] == f"{float(row['megabases_per_second']):.2g}"
