"""Scores of labels and numbers of whole sequences on a held-out split, with every prediction."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.evaluation.classes import predict_split
from mamba_bio_audio.evaluation.reports import REPORTS
from mamba_bio_audio.inference.streaming import Passes
from mamba_bio_audio.pipelines.contract import Domain, Strand
from mamba_bio_audio.text import cell


def evaluate_values(
    model: Any,
    data: Any,
    domain: Domain,
    *,
    split: str,
    strand: Strand = "both",
    passes: Passes = Passes(),
    progress: Callable[[int, int | None], None] | None = None,
) -> dict[str, Any]:
    """Scores on the fixed sequences of a split (JSON-able), with every prediction as the text of a TSV.

    Args:
        model: with a head for labels or numbers of whole sequences, in eval mode.
        data, domain, split, strand, passes, progress: as for `classes.evaluate_classes`.

    Raises:
        InputError: the labels are not those of the model, or the strand does not exist.
    """
    names = data.corpus.classes
    if tuple(model.labels) != names:
        raise InputError(f"the model predicts {', '.join(model.labels)}, the data has {', '.join(names)}")
    dataset = data.evaluation_dataset(split)
    found, y, rows, strand = predict_split(model, data, domain, dataset, strand, passes, progress)
    symbols = domain.symbols(data.config, data.length)
    groups = np.unique([window.locus for window in dataset.windows], return_inverse=True)[1].reshape(-1)
    return {
        "task": model.head_config.task,
        "split": split,
        "length": data.length,
        "unit": symbols.unit,
        "strand": strand if len(symbols.strands) > 1 else None,
        "positions": sum(map(len, rows)),
        "model": REPORTS[model.outputs.name](found, y.astype(np.float64), names, groups),
        "predictions": _predictions(dataset, found, y, model),
    }


def _predictions(dataset: Any, found: NDArray[np.float64], y: NDArray[Any], model: Any) -> str:
    """A row for every sequence: what is known of it, and what is predicted."""
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    names = [cell(name) for name in model.labels]
    writer.writerow(
        ["record", "start0", "end", "locus", *(f"known_{name}" for name in names)]
        + [cell(column) for column in model.outputs.columns(names)]
    )
    for region, values, known in zip(dataset.windows, found, y, strict=True):
        truth = ["" if np.isnan(value) else f"{value:.6g}" for value in known]
        place = [cell(region.record), region.start, region.end, cell(region.locus)]
        writer.writerow([*place, *truth, *model.outputs.cells(values.tolist(), names)])
    return text.getvalue()
