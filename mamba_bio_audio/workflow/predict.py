"""Class probabilities of the records of files, as a table."""

from __future__ import annotations

import os
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mamba_bio_audio import checkpoint
from mamba_bio_audio.checkpoint import Which
from mamba_bio_audio.errors import InputError
from mamba_bio_audio.inference.classify import Strand
from mamba_bio_audio.inference.predict import Mode, Prediction, predict
from mamba_bio_audio.pipelines.dna.records import read_records
from mamba_bio_audio.pipelines.dna.tokenizer import DnaTokenizer
from mamba_bio_audio.training.fit import resolve_precision


class Item(NamedTuple):
    """One record of a file: its symbols, or why it has none."""

    file: str
    name: str
    length: int
    symbols: NDArray[np.uint8] | str


def predict_files(
    run: Path,
    files: Sequence[str],
    out: Path | None,
    *,
    which: Which = "best",
    device: str = "cpu",
    mode: Mode = "windows",
    length: int | None = None,
    strand: Strand = "both",
    max_unknown: float | None = None,
    chunk: int = 1 << 16,
    progress: Callable[[int, int | None], None] | None = None,
) -> dict[str, Any]:
    """Write one row per record, in the order of files and records, and return a summary.

    Columns: file, record, length, bases_used, windows, predicted, one p_<class> per class, note. A record that cannot
    be scored has empty probabilities and the reason in `note`. While it runs, rows stand in `<out>.partial`; an
    interrupt or a damaged file leaves them there.

    Args:
        run: classifier's run folder or export.
        files: FASTA or FASTQ, any gzip; `-` is standard input.
        out: TSV file; None is standard output.
        which: weights of a run folder.
        device: "cpu" or "cuda".
        mode: "windows" or "stream", see `inference/predict.py`.
        length: of the windows; None is the training length.
        strand: both, forward or reverse.
        max_unknown: share of unknown bases above which a window is left out; None is that of the training.
        chunk: positions read at once.
        progress: called with (records done, None).
    """
    if [str(file) for file in files].count("-") > 1:
        raise InputError("standard input (-) was given twice; it can be read once")
    for file in files:
        if str(file) != "-" and not os.path.exists(file):
            raise InputError(f"{file}: there is no such file")
    model = checkpoint.load_classifier(run, which)
    labels = model.labels
    if not isinstance(model.codec, DnaTokenizer):
        raise InputError(f"{run}: a classifier of {model.config.data.kind}; mba predict reads DNA")
    codec, config = model.codec, model.config
    if max_unknown is None:
        max_unknown = getattr(config.data, "max_unknown", 0.1)
    model.to(device)
    is_known = np.zeros(256, dtype=bool)
    is_known[list(codec.base_ids)] = True
    items: deque[Item] = deque()

    def symbols() -> Iterator[NDArray[np.uint8] | str]:
        # Kept until its prediction comes, which is in the same order.
        for item in _read(files, codec):
            items.append(item._replace(symbols=""))
            yield item.symbols

    found = predict(
        model,
        symbols(),
        pad_id=codec.pad_id,
        length=length or config.train.length,
        known=lambda ids: is_known[ids],
        reverse=codec.reverse_complement,
        mode=mode,
        strand=strand,
        max_unknown=max_unknown,
        device=device,
        narrow=resolve_precision(config.train.precision, device) == "bf16",
        chunk=chunk,
        batch_symbols=1 << (14 if device == "cpu" else 18),
    )
    predicted, reasons = Counter[str](), Counter[str]()
    done = bases = 0
    with _rows(out) as stream:
        stream.write("\t".join([*COLUMNS, *(f"p_{label}" for label in labels), "note"]) + "\n")
        for prediction in found:
            item = items.popleft()
            stream.write(_row(item, prediction, labels) + "\n")
            done, bases = done + 1, bases + prediction.used
            if prediction.probabilities is None:
                reasons[prediction.reason] += 1
            else:
                predicted[labels[int(prediction.probabilities.argmax())]] += 1
            if not items:
                stream.flush()
            if progress is not None:
                progress(done, None)
    return {
        "run": str(run),
        "which": which,
        "files": [str(file) for file in files],
        "mode": mode,
        "length": length or config.train.length,
        "trained_length": config.train.length,
        "strand": strand,
        "records": done,
        "bases_used": bases,
        "predicted": {label: predicted[label] for label in labels},
        "not_scored": dict(reasons),
    }


COLUMNS = ("file", "record", "length", "bases_used", "windows", "predicted")


def describe_predictions(summary: dict[str, Any]) -> str:
    """The summary for people."""
    counts = ", ".join(f"{label} {count:,}" for label, count in summary["predicted"].items() if count)
    records = f"{summary['records']:,} record{'s' if summary['records'] != 1 else ''}"
    lines = [f"{records}, {summary['bases_used']:,} bases used: {counts or 'none scored'}"]
    if summary["mode"] == "windows" and summary["length"] != summary["trained_length"]:
        lines.append(f"windows of {summary['length']:,} bases; the model was trained at {summary['trained_length']:,}")
    missing = sum(summary["not_scored"].values())
    if missing:
        reasons = "; ".join(f"{count:,} x {reason}" for reason, count in list(summary["not_scored"].items())[:5])
        lines.append(f"{missing:,} not scored: {reasons}")
    return "\n".join(lines)


def _read(files: Iterable[str], codec: DnaTokenizer) -> Iterator[Item]:
    for file in files:
        for record in read_records(file):
            foreign, upper = record.foreign_letter(), record.sequence.upper()
            symbols: NDArray[np.uint8] | str = codec.encode(record.sequence)
            if foreign is not None:
                symbols = f"{foreign[1]!r} at position {foreign[0]:,} is no base"
            elif b"U" in upper and b"T" not in upper:
                symbols = "RNA (U): write T for U"
            yield Item(str(file), record.name, len(record.sequence), symbols)


def _row(item: Item, prediction: Prediction, labels: Sequence[str]) -> str:
    values = [item.file, item.name, str(item.length), str(prediction.used), str(prediction.windows)]
    p = prediction.probabilities
    if p is None:
        return "\t".join([*values, "", *("" for _ in labels), prediction.reason])
    return "\t".join([*values, labels[int(p.argmax())], *(f"{value:.6g}" for value in p), ""])


@contextmanager
def _rows(out: Path | None) -> Iterator[IO[str]]:
    """Standard output, or a file that gets its name when it is complete."""
    if out is None:
        yield sys.stdout
        return
    partial = out.with_name(f"{out.name}.partial")
    with partial.open("w", encoding="utf-8") as stream:
        try:
            yield stream
        except BaseException:
            stream.flush()
            print(f"mba: the rows so far are in {partial}", file=sys.stderr)
            raise
    os.replace(partial, out)
