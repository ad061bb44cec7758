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


HUMAN, MIXED = "human42mb-1m4", "mixed138mb-1m4"
MODELS = (
    "k-mers",
    "CNN",
    "from scratch",
    f"{HUMAN}, frozen",
    f"{MIXED}, frozen",
    f"{HUMAN}, fine-tuned",
    f"{MIXED}, fine-tuned",
)


@pytest.mark.parametrize(("metric", "header"), [("auroc", "| task | k-mers | CNN |"), ("mcc", "| task, MCC |")])
def test_backbones_on_gue(metric, header):
    """Means over seeds; what was not measured is a dash."""
    values: dict[tuple[str, str], list[float]] = {}
    for row in [*results("gue_kmers_cpu.csv"), *results("gue_h200.csv")]:
        if row["part"] == "all":
            values.setdefault((row["task"], row["model"]), []).append(float(row[metric]))
    rows = table(header)
    assert len(rows) == 11
    for task, *cells in rows:
        for model, cell in zip(MODELS, cells, strict=False):
            own = values.get((task, model))
            assert cell == ("-" if own is None else f"{sum(own) / len(own):.3f}"), (task, model)


def test_differences_on_gue():
    found = {(row["task"], row["model"], row["against"]): row for row in results("gue_gains_h200.csv")}
    for task, *cells in table("| task, fine-tuned minus |"):
        for against, cell in zip(("k-mers", "CNN", "from scratch"), cells, strict=True):
            row = found.get((task, f"{MIXED}, fine-tuned", against))
            if row is None:
                assert cell == "-"
                continue
            bold = "" if row["verdict"] == "not separated" else "**"
            value, low, high = (f"{float(row[key]):+.3f}" for key in ("difference", "low", "high"))
            assert cell == f"{bold}{value}{bold} ({low} to {high})"


def test_what_is_said_of_the_differences():
    """The counts of the sentences below the tables."""
    rows = results("gue_gains_h200.csv")

    def count(model: str, against: str, test) -> int:
        return sum(test(row) for row in rows if (row["model"], row["against"]) == (f"{model}, fine-tuned", against))

    for model in (HUMAN, MIXED):
        assert count(model, "k-mers", lambda row: row["verdict"] == "better") == 10
        assert count(model, "CNN", lambda row: row["verdict"] == "better") == 3
        assert count(model, "CNN", lambda row: row["verdict"] == "worse") == 1
    assert count(MIXED, "CNN", lambda row: float(row["low"]) > 0) == 9
    assert count(MIXED, "from scratch", lambda row: float(row["low"]) > 0) == 8
    assert count(MIXED, "from scratch", lambda row: row["verdict"] == "better") == 2
    above = [
        (
            float(cells[4]) > float(cells[8]),
            float(cells[5]) > float(cells[8]),
            float(cells[4]) > float(cells[9]),
            float(cells[5]) > float(cells[9]),
        )
        for cells in table("| task | k-mers | CNN |")
    ]
    assert [sum(column) for column in zip(*above, strict=True)] == [10, 11, 8, 10]


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


def test_a_number_that_is_known():
    found = results("gc_share_cpu.csv")
    rows = table("| steps | CPU seconds | R2 |")
    assert [row["standard_deviation"] for row in found] == ["0.1772"] * 2
    for (steps, seconds, value, bounds, pearson, error), row in zip(rows, found, strict=True):
        assert (steps, seconds, value, pearson, error) == (
            *(row[key] for key in ("steps", "cpu_seconds", "r2", "pearson", "rmse")),
        )
        assert bounds == f"{row['r2_low']} to {row['r2_high']}"


def percent(number: str) -> str:
    return f"{100 * float(number):.1f}"


def test_fragments_by_ours():
    bars = {(row["data"], row["length"], row["errors"]): row for row in results("genomes_cpu.csv")}
    rows = table("| data | sequence | errors | model | steps |")
    assert len(rows) == len(results("genomes_h200.csv"))
    for (data, sequence, errors, start, _, valid, ours, bounds, bar), row in zip(
        rows, results("genomes_h200.csv"), strict=True
    ):
        assert data == row["data"]
        assert sequence.split()[0].replace(",", "") == row["length"]
        assert errors == ("0" if row["errors"] == "0.0" else "1 %")
        assert start == row["model"].replace("scratch", "random")
        assert valid == f"{percent(row['valid'])} %"
        assert ours == f"{percent(row['balanced_accuracy'])} %"
        assert bounds == f"{percent(row['low'])} to {percent(row['high'])}"
        assert bar == f"{percent(bars[row['data'], row['length'], row['errors']]['balanced_accuracy'])} %"


def test_reads_of_species():
    found = [*results("reads_h200.csv"), *results("reads_cpu.csv")]
    rows = table("| reads of |")
    assert len(rows) == len({(row["length"], row["model"].split(",")[0]) for row in found})
    for length, model, accuracy, bounds, *areas in rows:
        name = "k-mers" if model == "k-mers" else model.removeprefix("ours, ").replace("random", "scratch")
        own = [
            row
            for row in found
            if row["length"] == length.split()[0].replace(",", "") and row["model"].split(",")[0] == name
        ]
        five, four = sorted(own, key=lambda row: -int(row["classes"]))
        assert accuracy == f"{percent(five['accuracy'])} %"
        assert bounds == f"{percent(five['low'])} to {percent(five['high'])}"
        for key, cell in zip(("mouse", "phage", "shuffled"), areas, strict=True):
            shown = [
                f"{float(four[f'{rule}, {key}']):.2f}" for rule in ("probability", "energy") if four[f"{rule}, {key}"]
            ]
            assert cell == ", ".join(shown)


@pytest.mark.parametrize("row", results("predict_cpu.csv"), ids=lambda row: f"{row['model']}, {row['length']}")
def test_speed_of_prediction(row):
    cells = {cells[0]: cells[1:] for cells in table("| Mb/s, one core | 150 |")}
    at = ["150", "1000", "16384"].index(row["length"])
    assert cells[row["model"]][at] == f"{float(row['megabases_per_second']):.2g}"


def test_starts_of_open_reading_frames():
    found = {row["arm"]: row for row in results("orfs_h200.csv")}
    arms = ("short", "short-4-layers", "short-complex", "short-complex-16", "species", "species-complex", "pretrained")
    rows = table("| model | AUROC | average precision |")
    for arm, (_, area, precision, bounds, mcc) in zip(arms, rows, strict=True):
        row = {key: float(row) for key, row in found[arm].items() if key.startswith(("a", "m")) and key != "arm"}
        assert area == f"{row['auroc']:.4f}"
        assert precision == f"{row['average_precision']:.3f}"
        assert bounds == f"{row['average_precision_low']:.3f} to {row['average_precision_high']:.3f}"
        assert mcc == f"{row['mcc']:.3f}"
    # Who knows ATG alone is right in as many of them, and puts every start above all but the other ATGs.
    (share,) = {float(row["atg_alone"]) for row in found.values()}
    starts = share / 64
    assert (f"{share:.3f}", f"{1 / starts:.0f}") == ("0.383", "167")
    assert f"{1 - (1 / 64 - starts) / (1 - starts) / 2:.3f}" == "0.995"
