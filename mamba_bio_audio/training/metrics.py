"""`metrics.csv`: one row per logged step, continued on resuming without duplicate steps.

Nothing in it depends on the clock, so the file of a resumed run equals that of an uninterrupted one.
"""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import Any

from mamba_bio_audio.files import name_full_disk, write_text
from mamba_bio_audio.pipelines.scores import perplexity

FIELDS = (
    "step",
    "tokens",
    "length",
    "lr",
    "grad_norm",
    "train_nats",
    "valid_nats",
    "valid_bits",
    "valid_perplexity",
    "sample_distance",  # if audio is generated at validations
    "class_nats",  # with model.classes: what a recording's class is worth, nats
    "class_named",  # and the share of recordings whose class is the most probable
    "valid_accuracy",  # if targets are answers
)


def start(path: Path, step: int) -> dict[str, str]:
    """Create the file, or drop the rows after the step from which training continues.

    Returns:
        The last row kept, or an empty dict.
    """
    rows = []
    if step and path.exists():
        with path.open(newline="") as file:
            # A power loss can leave a torn last row, which is then written again.
            rows = [row for row in csv.DictReader(file) if (row["step"] or "").isdigit() and int(row["step"]) <= step]
    text = io.StringIO()
    writer = csv.DictWriter(text, FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())
    return rows[-1] if rows else {}


def append(path: Path, row: dict[str, Any]) -> None:
    """Append one row."""
    with name_full_disk(path), path.open("a", newline="") as file:
        csv.DictWriter(file, FIELDS, lineterminator="\n").writerow(row)


def value_at(path: Path, step: int, name: str) -> float | None:
    """What stands in a column at a step; None where nothing does."""
    if not path.exists():
        return None
    with path.open(newline="") as file:
        found = [row.get(name) for row in csv.DictReader(file) if row["step"] == str(step)]
    return float(found[-1]) if found and found[-1] else None


def validation_fields(nats: float, *, likelihood: bool, accuracy: float | None = None) -> dict[str, str]:
    """The validation columns, from the mean loss per scored position, which may be no likelihood; of answers the accuracy."""
    found = {"valid_nats": f"{nats:.9g}"}
    if likelihood:
        found |= {"valid_bits": f"{nats / math.log(2):.9g}", "valid_perplexity": f"{perplexity(nats):.9g}"}
    return found if accuracy is None else found | {"valid_accuracy": f"{accuracy:.9g}"}
