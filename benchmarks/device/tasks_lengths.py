"""Right answers by length of the runs of `mba compare` on a synthetic task, beside the paper's; goes on where it stopped.

    mba compare synthetic/induction --mixers mamba,transformer --every-rate --out OUT
    python benchmarks/device/tasks_lengths.py OUT --lengths 2^6..2^20 --seconds 60

Writes OUT.lengths.csv, beside the folder, a row for each run and length (beyond --short only of runs that hold till there, the
best first), and prints for each model its best run: the one with the highest mean over the lengths, as the paper's table,
whose rates and seeds are not stated, is read most kindly. Runs with a state that grows are scored up to --most-growing.
"""

from __future__ import annotations

import argparse
import csv
import math
import time
from pathlib import Path
from typing import Any

from mamba_bio_audio.files import read_json
from mamba_bio_audio.jobs.common import resolve_device
from mamba_bio_audio.jobs.compare_results import CompareResult
from mamba_bio_audio.jobs.evaluate_lengths import read_lengths, score_lengths
from mamba_bio_audio.pipelines.synthetic.corpus import SyntheticCorpus
from mamba_bio_audio.run import saved
from mamba_bio_audio.training.config import resolve_precision

# Gu & Dao 2023, tables 2 and 11: induction heads trained at 256, percent right at 2^6 to 2^20; None: out of memory.
PAPER: dict[str, list[float | None]] = {
    "MHA-Abs (137K)": [100, 99.6, 100, 58.6, 26.6, 18.8, 9.8, 10.9, 7.8, *[None] * 6],
    "MHA-RoPE (137K)": [100, 100, 100, 83.6, 31.3, 18.4, 8.6, 9.0, 5.5, *[None] * 6],
    "MHA-xPos (137K)": [100, 100, 100, 99.6, 67.6, 25.4, 7.0, 9.0, 7.8, *[None] * 6],
    "H3 (153K)": [100, 100, 100, 80.9, 39.5, 23.8, 14.8, 8.2, 5.9, 6.6, 8.2, 4.7, 8.2, 6.3, 7.4],
    "Hyena (69M)": [97.7, 100, 100, 100, 44.1, 12.5, 6.6, 5.1, 7.0, 5.9, 6.6, 6.6, 5.9, 6.3, 9.8],
    "Mamba (74K)": [100.0] * 15,
}
FIELDS = (
    *("arm", "rate", "seed", "steps"),
    *("length", "sequences", "answers", "right", "nats", "seconds", "memory_bytes", "why"),
)


def place_of(out: Path) -> Path:
    """The table of a folder: beside it, since in it mba compare would refuse to go on."""
    return out.with_name(f"{out.name}.lengths.csv")


def rows_of(place: Path) -> list[dict[str, str]]:
    if not place.exists():
        return []
    with place.open(newline="") as file:
        return list(csv.DictReader(file))


def runs_of(out: Path) -> list[dict[str, Any]]:
    """Finished runs, best of each model by validation first."""
    found = [read_json(path) | {"folder": str(path.parent)} for path in sorted(out.glob("runs/*/scores.json"))]
    return sorted(found, key=lambda row: math.inf if row["valid_nats"] is None else row["valid_nats"])


def score(arguments: argparse.Namespace) -> None:
    """All runs at short lengths, then those that hold best at long ones."""
    until = time.perf_counter() + arguments.seconds
    place = place_of(arguments.out)
    if not place.exists():
        place.write_text(",".join(FIELDS) + "\n")
    lengths = read_lengths(arguments.lengths)
    short = [length for length in lengths if length <= arguments.short]
    runs = runs_of(arguments.out)
    for run in runs:
        if not score_run(arguments, place, run, short, until):
            return
    rows = rows_of(place)

    def held(run: dict[str, Any]) -> float:
        mine = [row for row in rows if key_of(row) == key_of(run)]
        return sum(float(row["right"] or 0) for row in mine) / max(1, len(mine))

    for run in sorted(runs, key=held, reverse=True):
        # One that knows no answers at short lengths knows none at long ones.
        if held(run) >= arguments.least and not score_run(arguments, place, run, lengths, until):
            return


def key_of(row: dict[str, Any]) -> tuple[str, float, int]:
    return row["arm"], float(row["rate"]), int(row["seed"])


def score_run(
    arguments: argparse.Namespace, place: Path, run: dict[str, Any], lengths: list[int], until: float
) -> bool:
    """One run at the lengths that are to come; False where the time is over."""
    device = resolve_device(arguments.device)
    done = [row for row in rows_of(place) if key_of(row) == key_of(run)]
    if any(row["right"] == "" for row in done):
        return True
    model: Any = None
    for length in lengths:
        if any(int(row["length"]) == length for row in done):
            continue
        if time.perf_counter() > until:
            print(f"time is over before {run['arm']} {run['rate']:g} {run['seed']} at {length:,}", flush=True)
            return False
        if model is None:
            model = saved.load_language_model(run["folder"])
            narrow = resolve_precision(model.config.train.precision, device) == "bf16"
            corpus = SyntheticCorpus(model.config.data, length)
        if model.streaming != "constant" and length > arguments.most_growing:
            break
        sequences = arguments.sequences if length <= arguments.short else arguments.long_sequences
        (found,) = score_lengths(model, corpus, "test", [length], sequences, device=device, narrow=narrow)
        row = {name: run[name] for name in ("arm", "rate", "seed", "steps")} | found.model_dump()
        with place.open("a", newline="") as file:
            csv.DictWriter(file, FIELDS).writerow(row)
        shown = found.why if found.right is None else f"{100 * found.right:.1f} %"
        print(f"{run['arm']} {run['rate']:g} {run['seed']} at {length:,}: {shown}, {found.seconds:.1f} s", flush=True)
        if found.right is None:
            break
    return True


def best_runs(out: Path) -> dict[str, tuple[tuple[str, str, str], dict[int, str]]]:
    """Of each model the run with the highest mean over all lengths, and its share of right answers at each ("": it cannot)."""
    rows = rows_of(place_of(out))
    lengths = {int(row["length"]) for row in rows}
    by_run: dict[tuple[str, str, str], dict[int, str]] = {}
    for row in rows:
        by_run.setdefault((row["arm"], row["rate"], row["seed"]), {})[int(row["length"])] = row["right"]

    def mean(right: dict[int, str]) -> float:
        return sum(float(right.get(length) or 0) for length in lengths)

    best: dict[str, tuple[tuple[str, str, str], dict[int, str]]] = {}
    for key in sorted(by_run, key=lambda key: -mean(by_run[key])):
        best.setdefault(key[0], (key, by_run[key]))
    return best


def table(out: Path) -> str:
    """Percent right of the best run of each model, beside the paper's rows where the lengths are its."""
    best = best_runs(out)
    lengths = sorted({length for _, right in best.values() for length in right})
    lines = ["| model | rate, seed | " + " | ".join(f"2^{length.bit_length() - 1}" for length in lengths) + " |"]
    lines.append("|---" * (len(lengths) + 2) + "|")
    for arm, (key, right) in best.items():
        cells = [right.get(length) for length in lengths]
        shown = ["" if cell is None else "-" if cell == "" else f"{100 * float(cell):.1f}" for cell in cells]
        lines.append(f"| {arm} | {float(key[1]):g}, {key[2]} | " + " | ".join(shown) + " |")
    for name, published in PAPER.items():
        theirs = [published[length.bit_length() - 7] for length in lengths if 64 <= length <= 1 << 20]
        if len(theirs) == len(lengths):
            lines.append(f"| paper: {name} | | " + " | ".join(str(c or "-") for c in theirs) + " |")
    return "\n".join(lines)


def decays(out: Path) -> None:
    """Write OUT.decays.csv: of each run of Mamba how much of itself the slowest state of each layer loses at a symbol."""
    import torch
    import torch.nn.functional as F

    from mamba_bio_audio.layers.mamba import MambaLayer

    table = []
    for run in runs_of(out):
        model: Any = saved.load_language_model(run["folder"]).float().eval()
        tokens, _ = SyntheticCorpus(model.config.data, 4096).batch(0, 1, torch.arange(4), 4096)
        row: dict[str, Any] = {name: run[name] for name in ("arm", "rate", "seed", "steps")}

        def note(layer: Any, inputs: Any, _: Any, row: dict[str, Any] = row) -> None:
            weights = layer.weights()
            x = F.linear(inputs[0], weights.in_proj)[..., : layer.d_inner].mT
            taps = weights.conv[:, None]
            x = F.silu(F.conv1d(F.pad(x, (taps.shape[2] - 1, 0)), taps, weights.conv_bias, groups=layer.d_inner).mT)
            low = F.linear(x, weights.x_proj)[..., : weights.dt_proj.shape[1]]
            step = F.softplus(F.linear(low, weights.dt_proj, weights.dt_bias))
            # Behind what begins, before the trigger at the end.
            loss = step[:, 64:-1].mean((0, 1))[:, None] * weights.A_log.exp()
            row[f"layer_{len(row) - 3}"] = f"{loss.min().item():.2g}"

        hooks = [part.register_forward_hook(note) for part in model.modules() if isinstance(part, MambaLayer)]
        with torch.no_grad():
            model(tokens)
        if hooks:
            table.append(row)
    with out.with_name(f"{out.name}.decays.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, table[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)


def picture(out: Path, place: Path) -> None:
    """Draw the same: our best runs as lines, the paper's models dashed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.subplots()
    for arm, (_, right) in best_runs(out).items():
        there = sorted(length for length in right if right[length])
        axes.plot(there, [100 * float(right[length]) for length in there], marker=".", label=arm)
    for name, published in PAPER.items():
        shown = [(64 << at, value) for at, value in enumerate(published) if value is not None]
        axes.plot(*zip(*shown, strict=True), linestyle="--", linewidth=0.8, label=f"paper: {name}")
    axes.set(xlabel="length of the sequence (trained at 256)", ylabel="right answers, %")
    axes.set_xscale("log", base=2)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    figure.savefig(place, format="png", dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of mba compare")
    parser.add_argument("--lengths", default="2^6..2^20")
    parser.add_argument("--sequences", type=int, default=256)
    parser.add_argument("--long-sequences", type=int, default=64, help="sequences of lengths beyond --short")
    parser.add_argument(
        "--most-growing", type=int, default=1 << 14, help="longest sequences of models whose state grows"
    )
    parser.add_argument("--short", type=int, default=1 << 14, help="up to here every run is scored")
    parser.add_argument(
        "--least", type=float, default=0.5, help="mean share of right answers there to be scored beyond"
    )
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--picture", type=Path, help="PNG to draw")
    parser.add_argument("--decays", action="store_true", help="also what the slowest states of Mamba lose at a symbol")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    arguments = parser.parse_args()
    if (arguments.out / "compare.json").exists():
        print(CompareResult.model_validate(read_json(arguments.out / "compare.json")).text(), flush=True)
    score(arguments)
    print(table(arguments.out))
    if arguments.decays:
        decays(arguments.out)
    if arguments.picture is not None:
        picture(arguments.out, arguments.picture)


if __name__ == "__main__":
    main()
