"""The results of suite.sh: what was chosen on dev, and one table of all models of a task with their paired differences.

python benchmarks/device/suite_join.py choose TRIALS.txt             prints settings for suite.sh
    python benchmarks/device/suite_join.py join OUT.csv GAINS.csv FOLDER...    of folders TASK/NAME/ of a suite
"""

import csv
import re
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

SETTINGS = {
    "pool": "head.pool",
    "smooth": "head.label_smoothing",
    "decay": "train.lr_layer_decay",
    "lora": "head.lora_rank",
}


def choose(path):
    """The settings with the highest mean AUROC on dev of the tasks that all have ended."""
    found = defaultdict(dict)
    for line in Path(path).read_text().splitlines():
        match = re.match(r"TRIAL task=(\w+) ?([^:]*): nats \S+ auroc (\S+)", line)
        if match:
            words = tuple(word for word in match[2].split() if not word.startswith("epochs=") and word != "start=cnn")
            found[words][match[1]] = float(match[3])
    best = {}
    for scratch in (False, True):
        own = {words: scores for words, scores in found.items() if ("start=none" in words) == scratch}
        most = max(map(len, own.values()), default=0)
        means = {words: sum(scores.values()) / most for words, scores in own.items() if len(scores) == most}
        for words, mean in means.items():
            print(f"# {' '.join(words)}: {mean:.4f} on {most} tasks")
        best[scratch] = dict(word.split("=") for word in max(means, key=means.get)) if means else {}
    for name, own in (("TUNED", best[False]), ("SCRATCH", best[True])):
        words = [f"--set {SETTINGS[key]}={value}" for key, value in own.items() if key in SETTINGS]
        print(f'{name}="{" ".join(words)}"')
    print(f"RATES={'5e-3,1e-2' if 'lora' in best[False] else '2e-3,4e-3'}")


def join(out, gains, folders):
    """One row for each task, model, seed and part; and the paired differences."""
    from mamba_bio_audio.evaluation.suite import gain, verdict

    rows, predictions = [], defaultdict(dict)
    for folder in map(Path, folders):
        for table in sorted(folder.glob("*/*/suite.csv")) + sorted(folder.glob("*/suite.csv")):
            if not table.with_suffix(".json").exists():
                continue  # it was cut
            rows += list(csv.DictReader(table.open(newline="")))
            (place,) = (table.parent / "predictions").glob("*.csv")
            own = list(csv.DictReader(place.open(newline="")))
            fixed = [[row[key] for row in own] for key in ("label", "in_train", "group")]
            task = predictions[place.stem]
            assert task.setdefault("fixed", fixed) == fixed, table
            for column in own[0]:
                match = re.match(r"(.*), seed (\d+), p 1$", column)
                if match:
                    task.setdefault(match[1], {})[int(match[2])] = np.array([float(row[column]) for row in own])
    order = {row["model"]: None for row in rows}
    lines = []
    for name, task in sorted(predictions.items()):
        y = np.array([int(label) for label in task["fixed"][0]])
        groups = np.array([int(group) for group in task["fixed"][2]])
        models = {key: [np.stack([1 - p, p], 1) for p in task[key].values()] for key in order if key in task}
        for at in models:
            bars = ("k-mers", "CNN", "from scratch")
            if at in bars[:2]:
                continue
            for against in bars:
                if against == at or against not in models or (at == "from scratch" and against == "from scratch"):
                    continue
                row = gain(models[at], models[against], y, groups)
                low, high = (round(float(bound), 4) for bound in (row.low, row.high))
                lines.append([name, at, against, round(row.value, 4), low, high, verdict(row)])
    with open(out, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda row: (row["task"], list(order).index(row["model"]))))
    with open(gains, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["task", "model", "against", "difference", "low", "high", "verdict"])
        writer.writerows(lines)
    for at, against in dict.fromkeys((line[1], line[2]) for line in lines):
        found = [line[6] for line in lines if (line[1], line[2]) == (at, against)]
        print(
            f"{at} against {against}: "
            + ", ".join(f"{found.count(w)} {w}" for w in ("better", "worse", "not separated"))
        )


if sys.argv[1] == "choose":
    choose(sys.argv[2])
else:
    join(sys.argv[2], sys.argv[3], sys.argv[4:])
