"""Figures of a run: training curves beside baselines, a classifier's errors, context curves, k-mer spectra."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mamba_bio_audio.files import atomic_path
from mamba_bio_audio.pipelines.scores import perplexity


def training_curve(run: Path, evaluation: dict[str, Any], out: Path) -> None:
    """Draw perplexity against steps beside the Markov baselines, and per genome the model's beside the baselines'.

    Args:
        run: folder with `metrics.csv`.
        evaluation: of `mba evaluate`, as JSON, with baselines.
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
    # Values above 4.1 come from the first steps and would flatten everything else.
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
    """Draw the confusion matrix, as shares of each true class, beside the reliability diagram.

    Args:
        report: result of `evaluation.classification.classification_report`.
        out: PNG file to write.
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
    # Too many names would overlap, so only some of them are shown, evenly spaced.
    named = range(0, len(labels), -(-len(labels) // 50))
    matrix.set_xticks(named, [labels[at] for at in named], rotation=45, ha="right")
    matrix.set_yticks(named, [labels[at] for at in named])
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


def context_curves(evaluation: dict[str, Any], out: Path) -> None:
    """Draw perplexity of the same bases against context, the gain by stratum, and perplexity by position in the window.

    Args:
        evaluation: of `mba evaluate --context`, as JSON.
        out: PNG to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.2), layout="constrained")
    whole, parts, place = figure.subplots(1, 3)
    rows = [row for row in evaluation["matched"] if row["kind"] == "all"]
    contexts = [row["context"] for row in rows]
    reference = rows[0]["nats"]
    # The error of a paired difference, without the variation that all contexts share.
    errors = [0.0 if math.isnan(row["gain_standard_error"]) else row["gain_standard_error"] for row in rows]
    whole.fill_between(
        contexts,
        [perplexity(row["nats"] - 2 * error) for row, error in zip(rows, errors, strict=True)],
        [perplexity(row["nats"] + 2 * error) for row, error in zip(rows, errors, strict=True)],
        alpha=0.2,
        label="2 standard errors of the difference from the shortest",
    )
    whole.plot(contexts, [row["perplexity"] for row in rows], "o-", label=f"{rows[0]['count']:,} bases")
    copied = [row for row in evaluation.get("copied", []) if row["kind"] == "all"]
    if copied:
        # Their losses differ by more than any context is worth: the gains are what is compared.
        gains = [perplexity(reference - row["gain_nats"]) for row in copied]
        whole.plot(contexts, gains, "x--", color="tab:red", label=f"gain of {evaluation['bar']}")
    whole.axhline(perplexity(reference), color="grey", linewidth=0.7)
    whole.axvline(evaluation["trained_length"], color="grey", linestyle=":", label="trained length")
    whole.set(xscale="log", xlabel="bases of context", ylabel=f"{evaluation['split']} perplexity per base")
    for kind, style in (("case", "s-"), ("gc", ".--")):
        for name in dict.fromkeys(row["stratum"] for row in evaluation["matched"] if row["kind"] == kind):
            own = [row for row in evaluation["matched"] if (row["kind"], row["stratum"]) == (kind, name)]
            parts.plot(contexts, [row["gain_nats"] for row in own], style, label=name, linewidth=1)
    parts.axhline(0, color="grey", linewidth=0.7)
    parts.set(xscale="log", xlabel="bases of context", ylabel="gain over the shortest context, nats")
    places = evaluation["by_position"]
    place.plot([row["first"] for row in places], [row["perplexity"] for row in places], "o-")
    place.set(
        xscale="log",
        xlabel=f"preceding bases, in windows of {evaluation['contexts'][-1]:,}",
        ylabel=f"{evaluation['split']} perplexity per base",
    )
    for axes in (whole, parts):
        axes.legend(fontsize=7)
    with atomic_path(out) as temporary:
        figure.savefig(temporary, dpi=130, format="png")


def recall_curves(evaluation: dict[str, Any], out: Path) -> None:
    """Draw the gain on a second copy against its distance, for every variant, over the control and over a foreign piece.

    Args:
        evaluation: of `mba evaluate --recall`, as JSON.
        out: PNG to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    rows = evaluation["recall"]
    titles = {"gain": "over the control", "gain_over_foreign": "over a foreign piece"}
    for axes, (key, title) in zip(figure.subplots(1, 2, sharey=True), titles.items(), strict=True):
        for number, variant in enumerate(dict.fromkeys(row["variant"] for row in rows)):
            own = [row for row in rows if row["variant"] == variant]
            distances, color = [row["distance"] for row in own], f"C{number}"
            axes.plot(distances, [row[key]["value"] for row in own], "o-", color=color, label=variant)
            low, high = ([row[key][bound] for row in own] for bound in ("low", "high"))
            axes.fill_between(distances, low, high, color=color, alpha=0.2)
            if own[0].get(f"bar_{key}") is not None:
                copied = [row[f"bar_{key}"]["value"] for row in own]
                axes.plot(distances, copied, "x--", color=color, linewidth=1, label=f"{variant}: {evaluation['bar']}")
        axes.axhline(0, color="grey", linewidth=0.7)
        axes.axvline(evaluation["trained_length"], color="grey", linestyle=":", label="trained length")
        unit = evaluation["unit"]
        axes.set(xscale="log", xlabel=f"{unit}s between the copies", ylabel=f"gain, nats per {unit}", title=title)
    figure.axes[0].legend(fontsize=7)
    with atomic_path(out) as temporary:
        figure.savefig(temporary, dpi=130, format="png")


def learning_curves(metrics: Path, per: str) -> bytes:
    """Draw training and validation loss, learning rate and gradient norm against steps; returns a PNG.

    Args:
        metrics: `metrics.csv` of a run.
        per: unit that the loss is per: base, sample, or for a classifier sequence.
    """
    from matplotlib.figure import Figure

    with metrics.open(newline="") as file:
        rows = list(csv.DictReader(file))
    steps = [int(row["step"]) for row in rows]
    figure = Figure(figsize=(11, 4), layout="constrained")
    loss, rate, norm = figure.subplots(1, 3, width_ratios=(2, 1, 1))
    loss.plot(steps, [float(row["train_nats"]) for row in rows], color="tab:blue", alpha=0.4, label="training")
    valid = [(int(row["step"]), float(row["valid_nats"])) for row in rows if row["valid_nats"]]
    loss.plot([step for step, _ in valid], [nats for _, nats in valid], "o-", color="tab:blue", label="validation")
    loss.set(xlabel="step", ylabel=f"nats per {per}")
    loss.legend(fontsize=8)
    rate.plot(steps, [float(row["lr"]) for row in rows], color="tab:green")
    rate.set(xlabel="step", ylabel="learning rate")
    norm.plot(steps, [float(row["grad_norm"]) for row in rows], color="tab:orange", linewidth=0.8)
    norm.set(xlabel="step", ylabel="gradient norm", yscale="log")
    return _png(figure)


def saturation_map(letters: str, ratios: Any, first: int, title: str, mark: str, out: Path) -> None:
    """Draw what every substitution of a region does: a column for each base, a row for what it becomes.

    Args:
        letters: the region (n bases).
        ratios: (4, n) nats for A, C, G and T; nan at the base itself and where nothing was scored.
        first: position of the first base, from 1.
        title: title.
        mark: text that is kept in the file, by which it is known.
        out: PNG to write.
    """
    import numpy as np
    from matplotlib.figure import Figure

    count = len(letters)
    figure = Figure(figsize=(min(40.0, max(6.0, count / 8)), 2.6), layout="constrained")
    axes = figure.subplots()
    known = np.abs(ratios[np.isfinite(ratios)])
    # A single extreme value would leave everything else white.
    most = float(np.quantile(known, 0.99)) if known.size else 1.0
    picture = axes.imshow(ratios, "RdBu", aspect="auto", vmin=-most, vmax=most, interpolation="nearest")
    axes.set_facecolor("lightgrey")
    axes.set_yticks(range(4), list("ACGT"))
    if count <= 160:
        axes.set_xticks(range(count), list(letters), fontsize=6)
    step = max(1, count // 10)
    places = axes.secondary_xaxis("top") if count <= 160 else axes
    places.set_xticks(range(0, count, step), [f"{first + at:,}" for at in range(0, count, step)], fontsize=7)
    axes.set_title(title, fontsize=9)
    figure.colorbar(picture, ax=axes, pad=0.01)
    with atomic_path(out) as temporary:
        figure.savefig(temporary, dpi=130, format="png", metadata={"Software": mark})


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, format="png")
    return buffer.getvalue()


def loss_curves(
    curves: Mapping[str, tuple[list[list[dict[str, float]]], float | None]],
    tokens_per_step: int,
    unit: str,
    out: Path,
) -> None:
    """Draw validation loss against steps, symbols and seconds of several models.

    Args:
        curves: by model: of each seed the rows of its validations (`step`, `valid_nats`), and the seconds of a step, None
            where they are not known.
        tokens_per_step: symbols per step.
        unit: of a symbol, singular.
        out: PNG to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.2), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    for number, (name, (seeds, seconds)) in enumerate(curves.items()):
        for row in seeds:
            steps = [point["step"] for point in row]
            nats = [point["valid_nats"] for point in row]
            for axes, scale in zip(panels, (1, tokens_per_step, seconds), strict=True):
                label = name if row is seeds[0] else None
                if scale is not None:
                    axes.plot([scale * step for step in steps], nats, color=f"C{number}", linewidth=1, label=label)
    for axes, what in zip(panels, ("steps", f"{unit}s", "seconds of a training alone"), strict=True):
        axes.set(xlabel=what)
        axes.grid(alpha=0.3)
    panels[0].set(ylabel="validation loss, nats")
    panels[0].legend(fontsize=8)
    with atomic_path(out) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
