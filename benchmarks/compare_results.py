"""Small tables of what `mba compare` trained, for `results/`: a row for each run, with answers by length or its validations.

    python benchmarks/compare_results.py OUT.csv FOLDER... [--lengths] [--curves] [--table TABLE.csv]

FOLDER is the --out of a comparison or of a part of one (--only). Runs that are in OUT.csv already stay as they are.
--lengths reads FOLDER.lengths.csv (or FOLDER/lengths.csv), as device/tasks_lengths.py writes it. --table also writes the table
of the models of the first folder. made.csv beside OUT.csv says of which commit a package was, and gets machine and versions.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any

from mamba_bio_audio.files import read_json
from mamba_bio_audio.models.size import count_parameters
from mamba_bio_audio.run.config import load_config

# What is the same of all rows is said once, in results/made.csv.
MACHINE, MADE = ("commit", "date"), ("device", "torch", "triton")
KEY = ("recipe", "length", "arm", "parameters", "rate", "seed", "steps")


def rows_of(place: Path) -> list[dict[str, Any]]:
    if not place.is_file():
        return []
    with place.open(newline="") as file:
        return list(csv.DictReader(file))


def short(value: Any) -> Any:
    return f"{value:.5g}" if isinstance(value, float) else value


def machine_of(manifest: dict[str, Any], commits: dict[str, str]) -> dict[str, Any]:
    made = {name: manifest[name] for name in MADE}
    return made | {"commit": commits.get(manifest["commit"], manifest["commit"]), "date": manifest["started"][:10]}


def run_rows(folder: Path, arguments: argparse.Namespace, commits: dict[str, str]) -> list[dict[str, Any]]:
    """A row for each finished run of a folder."""
    recipe = read_json(folder / "settings.json")["recipe"]
    place = folder.with_name(f"{folder.name}.lengths.csv")
    lengths = (rows_of(place) or rows_of(folder / "lengths.csv")) if arguments.lengths else []
    found = []
    for scores in sorted(folder.glob("runs/*/scores.json")):
        score, config = read_json(scores), load_config(str(scores.parent / "config.yaml"), [])
        row = {name: score.get(name) for name in ("arm", "rate", "seed", "steps", "valid_nats", "test_nats")}
        row |= {"recipe": recipe, "length": config.train.length, "parameters": count_parameters(config.model)}
        if score.get("test_right") is not None:
            row["test_percent"] = 100 * score["test_right"]
        for one in lengths:
            if (one["arm"], float(one["rate"]), int(one["seed"])) == (row["arm"], row["rate"], row["seed"]):
                right = one["right"]
                row[f"percent_2^{int(one['length']).bit_length() - 1}"] = 100 * float(right) if right else "-"
        if arguments.curves:
            row |= {
                f"valid_{point['step']}": float(point["valid_nats"]) for point in rows_of(scores.parent / "curve.csv")
            }
        found.append(row | machine_of(read_json(scores.parent / "manifest.json"), commits))
    return found


def write(place: Path, rows: list[dict[str, Any]]) -> None:
    made = place.parent / "made.csv"
    for name in MADE:
        old = {row["value"] for row in rows_of(made) if (row["path"], row["field"]) == (place.name, name)}
        new = {row.pop(name) for row in rows if name in row} - old
        if len(old | new) > 1:
            raise SystemExit(f"{place}: runs of different {name}: {', '.join(sorted(old | new))}; give each a file")
        with made.open("a", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(
                (place.name, name, value, "as the runs say") for value in new
            )
    names = dict.fromkeys(name for row in rows for name in row)
    measured = sorted((name for name in names if "_" in name and name[-1].isdigit()), key=_number)
    order = [*(name for name in KEY if name in names), *(n for n in names if n not in (*KEY, *MACHINE, *measured))]
    with place.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*order, *measured, *MACHINE], lineterminator="\n", restval="")
        writer.writeheader()
        writer.writerows({name: short(value) for name, value in row.items()} for row in rows)


def _number(name: str) -> int:
    return int(name.rpartition("_")[2].removeprefix("2^"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--lengths", action="store_true")
    parser.add_argument("--curves", action="store_true")
    parser.add_argument("--table", type=Path)
    arguments = parser.parse_args()
    commits = {
        row["path"]: row["value"] for row in rows_of(arguments.out.parent / "made.csv") if row["field"] == "commit"
    }
    rows = rows_of(arguments.out)
    there = {tuple(str(row[name]) for name in KEY) for row in rows}
    for folder in arguments.folders:
        new = run_rows(folder, arguments, commits)
        rows += [row for row in new if tuple(str(short(row[name])) for name in KEY) not in there]
    write(arguments.out, rows)
    if arguments.table is not None:
        folder = arguments.folders[0]
        machine = machine_of(read_json(min(folder.glob("runs/*/manifest.json"))), commits)
        table = [{name: _number_or_text(text) for name, text in row.items()} for row in rows_of(folder / "compare.csv")]
        write(arguments.table, [{name: value for name, value in row.items() if value != ""} | machine for row in table])


def _number_or_text(text: str) -> Any:
    try:
        return float(text) if "." in text else text
    except ValueError:
        return text


if __name__ == "__main__":
    main()
