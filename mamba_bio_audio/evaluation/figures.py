"""Pictures of a run: the curve of training beside its baselines, and how a classifier errs."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mamba_bio_audio.evaluation.likelihood import perplexity
from mamba_bio_audio.files import atomic_path


def training_curve(run: Path, evaluation: dict[str, Any], out: Path) -> None:
    """Perplexity against steps beside the Markov baselines, and each genome's test perplexity beside its own.

    Args:
        run: folder with `metrics.csv`.
        evaluation: of `workflow.evaluate`, with baselines.
        out: PNG to write.
    """
    from matplotlib.figure import Figure

    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    genomes = {name: row for name, row in evaluation["genomes"].items() if "markov" in row}
    figure = Figure(figsize=(11 if genomes else 6.5, 4.5), layout="constrained")
    axes = figure.subplots(1, 2 if genomes else 1, squeeze=False)[0]

    curve = axes[0]
    curve.plot(
        [int(row["step"]) for row in rows],
        [perplexity(float(row["train_nats"])) for row in rows],
        color="tab:blue",
        alpha=0.35,
        label="training",
    )
    valid = [row for row in rows if row["valid_nats"]]
    curve.plot(
        [int(row["step"]) for row in valid],
        [float(row["valid_perplexity"]) for row in valid],
        "o-",
        color="tab:blue",
        label="validation",
    )
    markov = evaluation["markov"]
    best = markov["chosen_order"]
    for order, style in ((0, ":"), (1, "-."), (best, "--")):
        name = f"Markov order {order}, {evaluation['split']}" + (" (best)" if order == best else "")
        curve.axhline(markov["orders"][order]["perplexity"], color="tab:red", linestyle=style, label=name)
    curve.axhline(evaluation["model"]["perplexity"], color="black", linewidth=1, label=f"model, {evaluation['split']}")
    shown = [float(row["valid_perplexity"]) for row in valid] + [row["perplexity"] for row in markov["orders"]]
    low = min([*shown, evaluation["model"]["perplexity"]])
    # Rises above 4.1 come from the first steps and would flatten everything else.
    curve.set(xlabel="step", ylabel="perplexity per base", ylim=(low - 0.1, 4.1))
    curve.legend(fontsize=8)

    if genomes:
        bars = axes[1]
        series = {
            "model": [row["model"]["perplexity"] for row in genomes.values()],
            "order 1": [row["markov"]["orders"][1]["perplexity"] for row in genomes.values()],
            "order 3": [row["markov"]["orders"][3]["perplexity"] for row in genomes.values()],
            "best order": [row["markov"]["best"]["perplexity"] for row in genomes.values()],
        }
        width = 0.8 / len(series)
        colors = ("tab:blue", "#f4b6b6", "#e07b7b", "tab:red")
        for i, ((name, values), color) in enumerate(zip(series.items(), colors, strict=True)):
            bars.bar([x + i * width for x in range(len(genomes))], values, width, label=name, color=color)
        bars.set_xticks([x + 1.5 * width for x in range(len(genomes))], list(genomes), rotation=20, ha="right")
        low = min(min(values) for values in series.values())
        bars.set(ylabel=f"{evaluation['split']} perplexity per base", ylim=(low - 0.1, 4.1))
        bars.legend(fontsize=8)
    with atomic_path(out) as temporary:
        figure.savefig(temporary, dpi=130, format="png")


def confusion_picture(report: Mapping[str, Any], out: Path) -> None:
    """Confusion matrix, shares of each true class, beside the reliability diagram.

    Args:
        report: of `evaluation.classification.classification_report`.
        out: PNG to write.
    """
    from matplotlib.figure import Figure

    labels, counts = report["labels"], report["confusion"]
    shares = [[value / max(1, sum(row)) for value in row] for row in counts]
    side = min(14.0, max(4.0, 1.0 + 0.6 * len(labels)))
    figure = Figure(figsize=(side + 5.5, max(4.0, side)), layout="constrained")
    matrix, reliability = figure.subplots(1, 2, width_ratios=[side, 4.5])

    picture = matrix.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(labels) <= 20:
        for i, row in enumerate(counts):
            for j, value in enumerate(row):
                color = "white" if shares[i][j] > 0.5 else "black"
                matrix.text(j, i, f"{shares[i][j]:.0%}\n{value:,}", ha="center", va="center", color=color, fontsize=8)
    matrix.set_xticks(range(len(labels)), labels, rotation=45, ha="right")
    matrix.set_yticks(range(len(labels)), labels)
    accuracy = report["accuracy"]
    matrix.set(xlabel="predicted", ylabel="true", title=f"accuracy {accuracy['value']:.1%}, n = {report['count']:,}")
    figure.colorbar(picture, ax=matrix, label="share of the true class", shrink=0.7)

    table = report["calibration"]["bins"]
    reliability.plot([0, 1], [0, 1], ":", color="gray", label="perfectly calibrated")
    reliability.bar(
        [row["low"] for row in table],
        [row["accuracy"] for row in table],
        [row["high"] - row["low"] for row in table],
        align="edge",
        color="tab:blue",
        alpha=0.4,
        edgecolor="tab:blue",
        label="accuracy",
    )
    reliability.plot(
        [row["confidence"] for row in table], [row["accuracy"] for row in table], "o", color="tab:blue", markersize=4
    )
    title = f"calibration error {report['calibration']['ece']:.3f}"
    reliability.set(xlabel="confidence", ylabel="share correct", xlim=(0, 1), ylim=(0, 1), title=title)
    reliability.legend(fontsize=8)
    with atomic_path(out) as temporary:
        figure.savefig(temporary, dpi=130, format="png")
