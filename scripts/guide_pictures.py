"""Draws the pictures of the guides from committed results: python scripts/guide_pictures.py"""

from __future__ import annotations

import csv
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).parent.parent
RESULTS, PICTURES = ROOT / "benchmarks" / "results", ROOT / "docs" / "pictures"
OURS, BAR = "#1f77b4", "#999999"


def rows(name: str) -> list[dict[str, str]]:
    with (RESULTS / name).open(newline="") as table:
        return list(csv.DictReader(table))


def pretrain() -> None:
    """Training of 12 layers x 128 on human sequence, and its test perplexity beside Markov models of every order."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    found = rows("human42mb-1m4_h200/metrics.csv")
    left.plot(
        [float(row["tokens"]) / 1e6 for row in found if row["train_nats"]],
        [float(row["train_nats"]) / 0.693147 for row in found if row["train_nats"]],
        color=BAR,
        lw=0.8,
        label="training",
    )
    valid = [row for row in found if row["valid_bits"]]
    left.plot(
        [float(row["tokens"]) / 1e6 for row in valid],
        [float(row["valid_bits"]) for row in valid],
        color=OURS,
        marker="o",
        ms=3,
        label="validation",
    )
    left.set(xlabel="million bases read", ylabel="bits per base", ylim=(1.55, 2.0))
    left.legend(frameon=False)
    table = rows("yardsticks_human_cpu.csv")
    markov = [row for row in table if (row["yardstick"], row["split"], row["locus"]) == ("markov", "test", "all")]
    own = json.loads((RESULTS / "human42mb-1m4_h200" / "evaluate-test.json").read_text())["model"]["perplexity"]
    right.bar(
        [row["size"] if int(row["size"]) in range(0, 24, 4) else " " * at for at, row in enumerate(markov)] + ["ours"],
        [float(row["perplexity"]) for row in markov] + [own],
        color=[BAR] * len(markov) + [OURS],
    )
    right.set(xlabel="order of the Markov model", ylabel="test perplexity", ylim=(2.8, 4.0))
    figure.savefig(PICTURES / "pretrain.png", dpi=90, metadata={"Software": None})


def shipped() -> None:
    """Test perplexity of the packaged models beside what needs no network, and what context is worth to the larger one."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 2.9), layout="constrained", width_ratios=(1.15, 1))
    table = rows("yardsticks_human56mb_cpu.csv")
    test = [row for row in table if (row["split"], row["locus"]) == ("test", "all")]
    markov = max((row for row in test if row["yardstick"] == "markov"), key=lambda row: int(row["size"]))
    copies = max((row for row in test if row["yardstick"] == "copies"), key=lambda row: int(row["size"]))
    geco3 = [row for row in rows("geco3_human56mb_cpu.csv") if (row["split"], row["locus"]) == ("test", "all")]
    small = json.loads((RESULTS / "human42mb-1m4_h200" / "evaluate-test.json").read_text())
    large = json.loads((RESULTS / "human56mb-7m_h200" / "likelihood-test.json").read_text())
    bars = {
        f"Markov, order {markov['size']}": float(markov["perplexity"]),
        f"copies within {int(copies['size']):,} bases": float(copies["perplexity"]),
        "GeCo3, learning as it reads": min(float(row["perplexity"]) for row in geco3),
        "human42mb-1m4": small["model"]["perplexity"],
        "human56mb-7m": large["model"]["perplexity"],
    }
    left.barh(list(bars), list(bars.values()), color=[BAR] * 3 + [OURS] * 2)
    left.invert_yaxis()
    for at, value in enumerate(bars.values()):
        left.text(value + 0.01, at, f"{value:.3f}", va="center", fontsize="small")
    left.set(xlabel="test perplexity, human (lower is better)", xlim=(2.7, 3.45))
    locus = "hg19.chrX_2118239-7623882"
    context = [
        row
        for row in rows("human56mb-7m_h200/context/evaluate-context-test.csv")
        if row["kind"] == "record" and row["stratum"].startswith(locus)
    ]
    copied = [row for row in table if (row["yardstick"], row["split"]) == ("copies", "test")]
    copied = [row for row in copied if row["locus"].startswith(locus) and int(row["size"]) <= 131_072]
    right.plot(
        [int(row["size"]) for row in copied], [float(row["gain"]) for row in copied], color=BAR, marker="o", ms=3
    )
    right.plot(
        [int(row["context"]) for row in context],
        [float(row["gain_nats"]) for row in context],
        color=OURS,
        marker="o",
        ms=3,
    )
    right.text(12_000, 0.02, "copies", color="#666666")
    right.text(2_500, 0.0012, "human56mb-7m", color=OURS)
    right.set_xscale("log", base=2)
    right.set(xlabel="bases of context, chromosome X", ylabel="gain over 1,024, nats a base", ylim=(-0.002, None))
    figure.savefig(PICTURES / "shipped.png", dpi=90, metadata={"Software": None})


def classify() -> None:
    """Five species at 1 kb: k-mers by their length and training windows, and the network."""
    figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
    found = [row for row in rows("species_kmers_cpu.csv") if row["recipe"] == "dna/species"]
    counts = sorted({int(row["windows"]) for row in found})
    for shade, windows in enumerate(counts):
        own = [row for row in found if int(row["windows"]) == windows]
        axes.plot(
            [int(row["k"]) for row in own],
            [100 * float(row["test_accuracy"]) for row in own],
            marker="o",
            ms=3,
            color=str(0.75 * (1 - shade / len(counts))),
            label=f"k-mers, {windows:,} windows",
        )
    (model,) = (row for row in rows("species_net_h200.csv") if row["chosen"] and row["name"].endswith(" mean"))
    axes.axhline(100 * float(model["test"]), color=OURS, label=f"network, mean of {model['seeds']} seeds")
    axes.axhspan(100 * float(model["test_low"]), 100 * float(model["test_high"]), color=OURS, alpha=0.12, lw=0)
    axes.set(xlabel="k", ylabel="test accuracy, %")
    axes.legend(frameon=False, fontsize="x-small", loc="lower center", ncols=2)
    figure.savefig(PICTURES / "classify.png", dpi=90, metadata={"Software": None})


def length() -> None:
    """Speed and memory of a training step against length."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    shown = {"ours": OURS, "mamba_ssm": "#555555", "transformer": "#bbbbbb"}
    for curve, colour in shown.items():
        own = [row for row in rows("curves_models_h200.csv") if row["curve"] == curve and row["seconds"]]
        x = [int(row["length"]) for row in own]
        left.plot(
            x, [float(row["tokens_per_second"]) / 1e6 for row in own], marker="o", ms=3, color=colour, label=curve
        )
        right.plot(x, [float(row["peak_gib"]) for row in own], marker="o", ms=3, color=colour)
    for axes, title in ((left, "million bases a second"), (right, "peak memory, GiB")):
        axes.set_xscale("log", base=2)
        axes.set(xlabel="length", ylabel=title, ylim=(0, None))
    left.legend(frameon=False)
    figure.savefig(PICTURES / "length.png", dpi=90, metadata={"Software": None})


def finetune() -> None:
    """AUROC on the tasks of GUE: bars, random weights, and fine-tuned."""
    figure, axes = plt.subplots(figsize=(9, 3.2), layout="constrained")
    models = {
        "k-mers": ("k-mers", BAR, "s"),
        "CNN": ("CNN", "#444444", "^"),
        "from scratch": ("random weights", "#f0a860", "o"),
        "mixed138mb-1m4, fine-tuned": ("fine-tuned", OURS, "o"),
    }
    found = [row for name in ("gue_kmers_cpu.csv", "gue_h200.csv") for row in rows(name) if row["part"] == "all"]
    tasks = sorted({row["task"] for row in found})
    for model, (label, colour, marker) in models.items():
        means = []
        for task in tasks:
            own = [float(row["auroc"]) for row in found if (row["task"], row["model"]) == (task, model)]
            means.append(sum(own) / len(own) if own else None)
        at = [number for number, value in enumerate(means) if value is not None]
        axes.plot(at, [means[number] for number in at], marker, color=colour, ms=6, label=label)
    axes.set_xticks(range(len(tasks)), tasks, rotation=30, ha="right", fontsize="small")
    axes.set(ylabel="AUROC", ylim=(0.75, 1))
    axes.legend(frameon=False, fontsize="small", ncols=4)
    figure.savefig(PICTURES / "finetune.png", dpi=90, metadata={"Software": None})


def compare() -> None:
    """Validation loss of models of 1.4 M parameters on human sequence against steps and seconds."""
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True, layout="constrained")
    models = {row["name"]: row for row in rows("compare_human_h200.csv")}
    for number, (name, model) in enumerate(models.items()):
        runs = [row for row in rows("compare_human_runs_h200.csv") if row["arm"] == name and row["valid_1000"]]
        steps = [int(key.removeprefix("valid_")) for key in runs[0] if key.startswith("valid_") and key != "valid_nats"]
        means = [sum(float(run[f"valid_{step}"]) for run in runs) / len(runs) for step in steps]
        for axes, scale in zip(panels, (1, float(model["seconds"]) / steps[-1]), strict=True):
            axes.plot([scale * step for step in steps[1:]], means[1:], lw=1.2, color=f"C{number}", label=name)
    for axes, what in zip(panels, ("steps of 65,536 bases", "seconds of a training alone"), strict=True):
        axes.set(xlabel=what)
    panels[0].set(ylabel="validation loss, nats a base")
    panels[0].legend(frameon=False, fontsize="small", ncols=2)
    figure.savefig(PICTURES / "compare.png", dpi=90, metadata={"Software": None})


def induction() -> None:
    """Answers of induction heads by length: each model's best run, and all others faint."""
    figure, axes = plt.subplots(figsize=(9, 3.4), layout="constrained")
    found = rows("induction_h200.csv")
    for number, arm in enumerate(dict.fromkeys(row["arm"] for row in found)):
        drawn = []
        for row in found:
            cells = {int(key.removeprefix("percent_2^")): value for key, value in row.items() if "^" in key}
            right = {power: float(value) for power, value in cells.items() if value not in ("", "-")}
            if row["arm"] == arm and right:
                drawn.append((sum(right.values()) / len(cells), list(right), list(right.values())))
        for mean, powers, right in drawn:
            best = mean == max(drawn)[0]
            axes.plot(
                [2**power for power in powers],
                right,
                color=f"C{number}",
                lw=1.8 if best else 0.6,
                alpha=1 if best else 0.35,
                label=arm if best else None,
            )
    axes.axvline(256, color=BAR, lw=0.8, ls=":")
    axes.set_xscale("log", base=2)
    axes.set(xlabel="length (trained at 256)", ylabel="right answers, %")
    axes.legend(frameon=False, fontsize="small")
    figure.savefig(PICTURES / "induction.png", dpi=90, metadata={"Software": None})


def copying() -> None:
    """Selective copying by length: models of one size, every seed, and their mean."""
    figure, axes = plt.subplots(figsize=(9, 3), layout="constrained")
    found = [row for row in rows("copying_h200.csv") if row["steps"] == "10000"]
    lengths = sorted({int(row["length"]) for row in found})
    for number, arm in enumerate(dict.fromkeys(row["arm"] for row in found)):
        right = [
            [float(row["test_percent"]) for row in found if (row["arm"], row["length"]) == (arm, str(length))]
            for length in lengths
        ]
        axes.plot(lengths, [sum(values) / len(values) for values in right], lw=1.4, color=f"C{number}", label=arm)
        for length, values in zip(lengths, right, strict=True):
            axes.plot([length] * len(values), values, "o", ms=5, color=f"C{number}", alpha=0.6)
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axes.set(xlabel="positions", ylabel="right answers, %", ylim=(0, 104))
    axes.legend(frameon=False, fontsize="small", loc="lower left")
    figure.savefig(PICTURES / "copying.png", dpi=90, metadata={"Software": None})


if __name__ == "__main__":
    PICTURES.mkdir(exist_ok=True)
    shipped()
    pretrain()
    classify()
    length()
    finetune()
    compare()
    induction()
    copying()
