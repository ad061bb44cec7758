"""The networks of benchmarks/device/species_net.sh beside the tuned k-mer bar, window by window, and their kinds.

    python benchmarks/species_pairs.py FOLDER --out FILE.csv        FOLDER: what species_net.tgz holds

The bar is in FOLDER/bar (species_runs.py bar); FOLDER/bar_x may hold the one that was given chromosome X as well.

Networks of one backbone are a kind; their seeds are averaged window by window (`mean`), and so are their probabilities
(`together`). Intervals are 95 % over test blocks, differences to the bar paired. `chosen` is the kind that has the highest
accuracy on validation, over its seeds; the test split chooses nothing.
"""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer
from numpy.typing import NDArray

from mamba_bio_audio.evaluation.resampling import bootstrap_mean

PAIR = ("human", "mouse")
FROM_ENVIRONMENT = ("device", "torch", "triton", "commit", "started")
app = typer.Typer(add_completion=False)


class Scored(NamedTuple):
    """Probabilities of windows: (n, K), (n,) numbers of classes, n loci, K names."""

    p: NDArray[np.float64]
    y: NDArray[np.int64]
    loci: list[str]
    classes: list[str]

    @classmethod
    def read(cls, path: Path) -> Scored:
        """Of a table with the columns class, locus and p_CLASS."""
        text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
        rows = list(csv.DictReader(text.splitlines(), delimiter="\t"))
        classes = [name.removeprefix("p_") for name in rows[0] if name.startswith("p_")]
        p = np.array([[float(row[f"p_{name}"]) for name in classes] for row in rows])
        return cls(p, np.array([classes.index(row["class"]) for row in rows]), [row["locus"] for row in rows], classes)

    def right(self) -> NDArray[np.float64]:
        """1 where the class is named, else 0."""
        return (self.p.argmax(1) == self.y).astype(float)

    def pair(self) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
        """Which windows are human or mouse, and of these, which are told apart."""
        two = np.array([self.classes.index(name) for name in PAIR])
        rows = np.isin(self.y, two)
        return rows, (two[self.p[rows][:, two].argmax(1)] == self.y[rows]).astype(float)

    def nats(self) -> float:
        return float(-np.log(np.maximum(self.p[np.arange(len(self.y)), self.y], 1e-12)).mean())


def compared(own: list[Scored], bar: Scored) -> dict[str, str]:
    """Accuracy of all windows and of human against mouse, averaged over models, each with its difference to the bar."""
    for one in own:
        assert (one.loci, one.classes) == (bar.loci, bar.classes), "the windows are not those of the bar"
        assert (one.y == bar.y).all()
    rows, bar_pair = bar.pair()
    loci = np.array(bar.loci)
    found: dict[str, str] = {}
    for name, right, theirs, groups in (
        ("test", np.mean([one.right() for one in own], 0), bar.right(), loci),
        ("human_mouse", np.mean([one.pair()[1] for one in own], 0), bar_pair, loci[rows]),
    ):
        for kind, values in (("", right), ("_minus_bar", right - theirs)):
            interval = bootstrap_mean(values, groups)
            ends = {"": interval.value, "_low": interval.low, "_high": interval.high}
            found |= {f"{name}{kind}{end}": f"{value:.4f}" for end, value in ends.items()}
    return found


def table(folder: Path) -> list[dict[str, Any]]:
    """Rows of the result file."""
    bar = Scored.read(folder / "bar" / "species_kmers_predictions.tsv")
    kinds: dict[str, list[tuple[dict[str, Any], Scored, Scored]]] = {}
    rows: list[dict[str, Any]] = [{"name": "bar", "kind": "k-mers"} | compared([bar], bar)]
    if (other := folder / "bar_x" / "species_kmers_predictions.tsv").exists():
        rows.append({"name": "bar with chromosome X", "kind": "k-mers"} | compared([Scored.read(other)], bar))
    if (backbone := folder / "lm" / "species.json").exists():
        training = json.loads(backbone.read_text())[0]
        steps = training["summary"]["step"]
        row = {"name": "language model", "kind": "backbone", "seed": training["seed"], "steps": steps}
        row |= {
            "bases": steps * _tokens_per_step(backbone.parent / "config.yaml"),
            "seconds": f"{training['seconds']:.0f}",
        }
        row |= {"valid_nats": f"{training['summary']['valid_nats']:.4f}"}
        rows.append(row | {field: training[field] for field in FROM_ENVIRONMENT})
    for path in sorted(folder.glob("*/test.tsv.gz")):
        training = next(
            row for row in json.loads((path.parent / "species.json").read_text()) if row["kind"] == "training"
        )
        name = path.parent.name
        kind, _, seed = name.rpartition("-s")
        bases = training["summary"]["step"] * _tokens_per_step(path.parent / "config.yaml")
        valid, test = Scored.read(path.parent / "valid.tsv.gz"), Scored.read(path)
        row = {"name": name, "kind": kind, "seed": seed, "steps": training["summary"]["step"], "bases": bases}
        row |= {"best_step": training["summary"]["best_step"], "seconds": f"{training['seconds']:.0f}"}
        row |= {"valid_nats": f"{valid.nats():.4f}", "valid": f"{valid.right().mean():.4f}"}
        row |= compared([test], bar) | {field: training[field] for field in FROM_ENVIRONMENT}
        kinds.setdefault(kind, []).append((row, valid, test))
        rows.append(row)
    best = max(kinds, key=lambda kind: np.mean([valid.right().mean() for _, valid, _ in kinds[kind]]))
    for kind, runs in kinds.items():
        shared = {"kind": kind, "chosen": "yes" if kind == best else "", "seeds": len(runs)}
        shared |= {field: runs[0][0][field] for field in FROM_ENVIRONMENT}
        valids, tests = [valid for _, valid, _ in runs], [test for _, _, test in runs]
        for how, on_valid, on_test in (
            ("mean", valids, tests),
            ("together", [_together(valids)], [_together(tests)]),
        ):
            scores = {"valid_nats": f"{np.mean([one.nats() for one in on_valid]):.4f}"}
            scores |= {"valid": f"{np.mean([one.right().mean() for one in on_valid]):.4f}"}
            rows.append({"name": f"{kind} {how}"} | shared | scores | compared(on_test, bar))
    return rows


def _together(found: list[Scored]) -> Scored:
    return found[0]._replace(p=np.mean([one.p for one in found], 0))


def _tokens_per_step(config: Path) -> int:
    line = next(line for line in config.read_text().splitlines() if line.strip().startswith("tokens_per_step:"))
    return int(line.split(":")[1])


@app.command()
def main(folder: Path, out: Annotated[Path, typer.Option(help="CSV.")]) -> None:
    """Write the table and print it."""
    rows = table(folder)
    names = list({name: None for row in rows for name in row})
    with out.open("w", newline="") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n", restval="")
        writer.writeheader()
        writer.writerows(rows)
    for row in (row for row in rows if "test" in row):
        told = f"{row['test_minus_bar']} ({row['test_minus_bar_low']} to {row['test_minus_bar_high']})"
        print(
            f"{row['name']:<24}{row.get('valid', ''):>8}{row['test']:>8}{row['human_mouse']:>8}   over the bar {told}"
        )


if __name__ == "__main__":
    app()
