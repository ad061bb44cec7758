"""What `mba evaluate` leaves in a run, or in the folder of --out."""

from __future__ import annotations

import csv
import datetime
import io
import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.files import locked, write_json, write_text
from mamba_bio_audio.jobs.evaluate_results import ClassesResult, ContextResult, Kept
from mamba_bio_audio.jobs.recall_results import RecallResult
from mamba_bio_audio.jobs.values_results import ValuesResult
from mamba_bio_audio.text import cell

K = TypeVar("K", bound=Kept)


def keep(folder: Path, result: K, write: Callable[[], None], *, must: bool = False) -> K:
    """Write into a folder while nobody else does.

    Where another process writes to it, the result is returned all the same and says that it was not kept; with `must`,
    for a folder that was asked for, that is an error.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(folder))
        except InputError as error:
            if must:
                raise
            return result.model_copy(update={"not_kept": f"not written to {folder}: {error}"})
        write()
    return result


L = TypeVar("L", ClassesResult, ValuesResult)


def keep_labelled(run: Path, result: L) -> L:
    """Into the run folder: JSON, predictions, for classes a picture. Evaluations of a split are counted, this one included."""
    path = run / f"evaluate-{result.split}.json"
    kept = result

    def write() -> None:
        nonlocal kept
        before: list[str] = []
        if path.exists():
            try:
                before = list(json.loads(path.read_text(encoding="utf-8")).get("evaluations", []))
            except (ValueError, AttributeError):
                raise InputError(f"{path}: damaged; delete it to evaluate again") from None
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        kept = result.model_copy(update={"evaluations": (*before, now), **_picture(run, result)})
        write_json(path, kept.to_json())
        if result.predictions:
            write_text(run / f"predictions-{result.split}.tsv", result.predictions)

    refused = keep(run, result, write)
    return refused if refused.not_kept else kept


def _picture(run: Path, result: ClassesResult | ValuesResult) -> dict[str, Any]:
    """Draw the confusion of classes; what the result says of it."""
    if not isinstance(result, ClassesResult):
        return {}
    from mamba_bio_audio.evaluation.figures import confusion_picture

    picture = run / f"confusion-{result.split}.png"
    confusion_picture(result.model.model_dump(), picture)
    return {"pictures": (picture.name,)}


def keep_context(run: Path, out: Path | None, result: ContextResult) -> ContextResult:
    """`evaluate-context-<split>` as JSON, CSV (strata of the model and of copies; positions) and PNG."""
    from mamba_bio_audio.evaluation.figures import context_curves

    folder, stem = out or run, f"evaluate-context-{result.split}"
    paths = tuple(folder / f"{stem}{suffix}" for suffix in (".json", ".csv", "-position.csv", ".png"))

    def write() -> None:
        found = result.to_json()
        folder.mkdir(parents=True, exist_ok=True)
        write_json(paths[0], found | {"pictures": [paths[3].name]})
        rows = [{"model": "model"} | row for row in found["matched"]]
        rows += [{"model": found["bar"]} | row for row in found.get("copied", [])]
        write_text(paths[1], _csv(rows))
        write_text(paths[2], _csv(found["by_position"]))
        context_curves(found, paths[3])

    kept = keep(folder, result, write, must=out is not None)
    return kept if kept.not_kept else kept.model_copy(update={"written": paths})


def keep_recall(run: Path, out: Path | None, result: RecallResult) -> RecallResult:
    """`evaluate-recall-<split>` as JSON, CSV and PNG."""
    from mamba_bio_audio.evaluation.figures import recall_curves

    folder, stem = out or run, f"evaluate-recall-{result.split}"
    paths = tuple(folder / f"{stem}{suffix}" for suffix in (".json", ".csv", ".png"))

    def write() -> None:
        found = result.to_json()
        folder.mkdir(parents=True, exist_ok=True)
        write_json(paths[0], found | {"pictures": [paths[2].name]})
        write_text(paths[1], _csv([_flat(row) for row in found["recall"]]))
        recall_curves(found, paths[2])

    kept = keep(folder, result, write, must=out is not None)
    return kept if kept.not_kept else kept.model_copy(update={"written": paths})


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """A row whose intervals have a column for each number."""
    columns: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, dict):
            columns |= {key: value["value"], f"{key}_low": value["low"], f"{key}_high": value["high"]}
        else:
            columns[key] = value
    return columns


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {key: cell(value) if isinstance(value, str) else value for key, value in row.items()} for row in rows
    )
    return text.getvalue()
