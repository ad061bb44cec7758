"""Scores of labels and numbers of whole sequences, or along sequences, on a held-out split."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.evaluation.classes import predict_split
from mamba_bio_audio.evaluation.reports import REPORTS, gain
from mamba_bio_audio.inference.positions import Layout, window_values
from mamba_bio_audio.inference.streaming import Passes, positions
from mamba_bio_audio.pipelines.contract import Domain, Strand, Symbols
from mamba_bio_audio.text import apart, cell

# With fewer intervals than that an interval over them would say little.
FEW_INTERVALS = 10


def evaluate_values(
    model: Any,
    data: Any,
    domain: Domain,
    *,
    split: str,
    strand: Strand = "both",
    passes: Passes = Passes(),
    baselines: bool = True,
    progress: Callable[[int, int | None], None] | None = None,
) -> dict[str, Any]:
    """Scores on the fixed sequences of a split (JSON-able); of whole sequences with every prediction as the text of a TSV.

    Beside the scores of whole sequences are those of the domain's simple model, where it has one, and the differences.

    Args:
        model: with a head for labels or numbers, or for the classes of bases, in eval mode.
        data, domain, split, strand, passes, baselines, progress: as for `classes.evaluate_classes`.

    Raises:
        InputError: the labels are not those of the model, or the strand does not exist.
    """
    names = data.corpus.classes
    if tuple(model.labels) != names:
        raise InputError(f"the model predicts {', '.join(model.labels)}, the data has {', '.join(names)}")
    dataset = data.evaluation_dataset(split)
    symbols = domain.symbols(data.config, data.length)
    report, kind = REPORTS[model.outputs.name], model.outputs.name
    beside: dict[str, Any] = {}
    if model.task.rows:
        found, y, rows, strand = predict_split(model, data, domain, dataset, strand, passes, progress)
        groups, table = _loci(dataset), _predictions(dataset, found, y, model)
        size = sum(map(len, rows))
        yardstick = domain.value_yardstick(data) if baselines else None
        if yardstick is not None:
            bar, known = yardstick.values(rows), y.astype(np.float64)
            beside["kmers"] = yardstick.to_dict() | report(bar, known, names, groups)
            beside["gain"] = gain(kind, found, bar, known, groups)
    else:
        found, y, groups, strand = _along(model, dataset, symbols, strand, passes, progress)
        table, size = "", len(y) * symbols.bin
    return {
        "task": model.head_config.task,
        "split": split,
        "length": data.length,
        "unit": symbols.unit,
        "strand": strand if len(symbols.strands) > 1 else None,
        "positions": size,
        "rows": f"{model.task.per if not model.task.rows else 'sequence'}s",
        "model": report(found, y.astype(np.float64), names, groups),
        "predictions": table,
    } | beside


def _loci(dataset: Any) -> NDArray[np.int64]:
    """Number of the locus of each window."""
    return np.unique([window.locus for window in dataset.windows], return_inverse=True)[1].reshape(-1)


def _along(
    model: Any,
    dataset: Any,
    symbols: Symbols,
    strand: Strand,
    passes: Passes,
    progress: Callable[[int, int | None], None] | None,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64], Strand]:
    """What is said of every base or bin of the windows (n, K), what is known, groups, and the strand that was read.

    Groups are the intervals that the windows lie in, or the windows where there are few intervals.
    """
    if strand == "both":
        strand = symbols.strands[0]
    if strand == "reverse" and "both" not in symbols.strands:
        raise InputError("--strand reverse: labels of a strand are evaluated on the forward strand; leave it out")
    layout = Layout(dataset.corpus.length, symbols.bin, symbols.margin, strand)
    loci = _loci(dataset)
    if len(np.unique(loci)) < FEW_INTERVALS:
        loci = np.arange(len(loci))
    model.to(passes.device)
    per_batch = max(1, positions(passes.device) // layout.length)
    found, known, groups = [], [], []
    for low in range(0, len(dataset.windows), per_batch):
        examples = [dataset.corpus.read(window) for window in dataset.windows[low : low + per_batch]]
        values = window_values(model, [example.ids for example in examples], layout, symbols, passes)
        for at, (example, own) in enumerate(zip(examples, values, strict=True)):
            label = example.label[layout.margin + layout.bin - 1 : len(example.ids) - layout.margin : layout.bin]
            if label.ndim == 1:
                label = np.where(label[:, None] < 0, np.nan, label[:, None] == np.arange(own.shape[1]))
            found.append(own)
            known.append(label)
            groups.append(np.full(len(own), loci[low + at]))
        if progress is not None:
            progress(min(len(dataset.windows), low + per_batch), len(dataset.windows))
    return np.concatenate(found), np.concatenate(known), np.concatenate(groups), strand


def _predictions(dataset: Any, found: NDArray[np.float64], y: NDArray[Any], model: Any) -> str:
    """A row for every sequence: what is known of it, and what is predicted."""
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    names = [cell(name) for name in model.labels]
    own = ["record", "start0", "end", "locus", *(f"known_{name}" for name in names)]
    writer.writerow(own + apart([cell(column) for column in model.outputs.columns(names)], own))
    for region, values, known in zip(dataset.windows, found, y, strict=True):
        truth = ["" if np.isnan(value) else f"{value:.6g}" for value in known]
        place = [cell(region.record), region.start, region.end, cell(region.locus)]
        writer.writerow([*place, *truth, *model.outputs.cells(values.tolist(), names)])
    return text.getvalue()
