"""Class probabilities of the records of files, as a table."""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.files import (
    Maker,
    begin_unfinished,
    begins_with,
    check_file,
    discard_unfinished,
    locked,
    unfinished,
)
from mamba_bio_audio.inference.classify import Strand
from mamba_bio_audio.inference.predict import Mode, Prediction, predict
from mamba_bio_audio.jobs.predict_sources import Item, clips, open_source
from mamba_bio_audio.models.weights import weights_hash
from mamba_bio_audio.run import saved
from mamba_bio_audio.run.saved import Which
from mamba_bio_audio.signals import StopSignal
from mamba_bio_audio.text import cell, show
from mamba_bio_audio.training.fit import resolve_precision


def predict_files(
    run: Path,
    files: Sequence[str],
    out: Path | None,
    *,
    which: Which = "best",
    device: str = "cpu",
    mode: Mode = "windows",
    length: int | None = None,
    strand: Strand | None = None,
    max_unknown: float | None = None,
    chunk: int = 1 << 16,
    resume: bool = False,
    force: bool = False,
    progress: Callable[[str, int, int | None], None] | None = None,
) -> dict[str, Any]:
    """Write one row per record, in the order of files and records, and return a summary.

    Columns: file, record, length, bases_used, windows, predicted, one p_<class> per class, note. A record that cannot
    be scored has empty probabilities and the reason in `note`. Tabs, line ends and bytes that are no UTF-8 are written as
    backslash escapes. Rows stand in `OUT.part` until all are there; a signal,
    a kill or a damaged file leaves them, and `resume` continues after them.

    Args:
        run: classifier's run folder or export, or the folder of a judge or recogniser of digits, which `mba evaluate --metrics
            sc09-judge` names.
        files: FASTA or FASTQ, any gzip, `-` is standard input; or recordings, for a classifier of those.
        out: TSV file; None is standard output, which cannot be resumed.
        which: weights of a run folder.
        device: "cpu" or "cuda".
        mode: "windows" or "stream", see `inference/predict.py`.
        length: of the windows; None is the training length.
        strand: both, forward or reverse; None is both for DNA.
        max_unknown: share of unknown bases above which a window is left out; None is that of the training.
        chunk: positions read at once.
        resume: go on with `OUT.part`, of the same settings and records.
        force: discard `OUT.part`.
        progress: called with ("records", how many are done, None), and within them with ("bases read", so many of each
            strand, None).

    Returns:
        `stopped_by` is the name of the signal that ended it early, else None.
    """
    if [str(file) for file in files].count("-") > 1:
        raise InputError("standard input (-) was given twice; it can be read once")
    for file in files:
        if str(file) != "-" and not os.path.exists(file):
            raise InputError(f"{file}: there is no such file")
    if out is not None:
        check_file(out, "predict", ours, [run, *files], force=force or resume)
    if resume and out is None:
        raise InputError("--resume needs --out: what went to standard output cannot be continued")
    if (run / "judge.json").exists():
        if (which, mode, length, strand, max_unknown) != ("best", "windows", None, None, None):
            raise InputError(
                f"{run}: a judge of digits hears the first second of each file; leave out --which, --mode, --length, "
                f"--strand and --max-unknown"
            )
        return _ask_judge(run, files, out, device, resume, force, progress)
    model = saved.load_classifier(run, which)
    labels = [cell(label) for label in model.labels]
    config = model.config
    source = open_source(model.codec, config)
    strand = strand or source.strands[0]
    if strand not in source.strands:
        raise InputError(f"--strand {strand}: recordings have no strands; leave it out")
    settings: dict[str, Any] = {
        "weights": weights_hash(model),
        "mode": mode,
        "length": length or config.train.length,
        "strand": strand,
        "max_unknown": getattr(config.data, "max_unknown", 0.1) if max_unknown is None else max_unknown,
        "files": [str(file) for file in files],
    }
    model.to(device)
    items: deque[Item] = deque()
    header = [*COLUMNS[:3], f"{source.unit}s_used", *COLUMNS[4:], *(f"p_{label}" for label in labels), "note"]
    with (
        locked(out) if out else nullcontext(),
        StopSignal() as stop,
        _Table(out, header, settings, resume, force) as table,
    ):

        def symbols() -> Iterator[NDArray[np.uint8] | str]:
            # Kept until its prediction comes, which is in the same order.
            for item in table.unfinished(source.items(files)):
                items.append(item._replace(symbols=""))
                yield item.symbols

        read = 0

        def count(symbols: int) -> None:
            nonlocal read
            read += symbols
            assert progress is not None
            progress(f"{source.unit}s read", read, None)

        found = predict(
            model,
            symbols(),
            pad_id=source.pad_id,
            length=settings["length"],
            known=source.known,
            reverse=source.reverse,
            start_id=source.start_id,
            fill_to=source.fill_to,
            mode=mode,
            strand=strand,
            max_unknown=settings["max_unknown"],
            device=device,
            narrow=resolve_precision(config.train.precision, device) == "bf16",
            chunk=chunk,
            batch_symbols=1 << (14 if device == "cpu" else 18),
            stop=lambda: stop.number is not None,
            progress=None if progress is None else count,
        )
        for prediction in found:
            table.add(_row(items.popleft(), prediction, labels))
            if progress is not None:
                progress("records", table.rows, None)
            if not items:
                table.flush()
        table.complete = stop.number is None
    return settings | {
        "run": str(run),
        "which": which,
        "trained_length": config.train.length,
        "records": table.rows,
        "used": table.used,
        "unit": source.unit,
        "predicted": {label: table.predicted[label] for label in labels},
        "not_scored": dict(table.reasons),
        "stopped_by": None if stop.number is None else signal.Signals(stop.number).name,
    }


def _ask_judge(
    folder: Path,
    files: Sequence[str],
    out: Path | None,
    device: str,
    resume: bool,
    force: bool,
    progress: Callable[[str, int, int | None], None] | None,
) -> dict[str, Any]:
    """`predict_files` by the judge or recogniser of generated digits: the first second of each recording."""
    from mamba_bio_audio.evaluation.judge import CLIP_SAMPLES, RATE_HZ, judge_clips, one_second
    from mamba_bio_audio.jobs.sc09 import open_judge
    from mamba_bio_audio.pipelines.audio.prepare import DIGITS

    judge, _ = open_judge(folder, device)
    # A recogniser's last class is none of them.
    labels = [*DIGITS, "none"][: judge.head.out_features]
    settings = {"weights": weights_hash(judge), "mode": "judge", "files": [str(file) for file in files]}
    header = [*COLUMNS[:3], "samples_used", *COLUMNS[4:], *(f"p_{label}" for label in labels), "note"]
    with (
        locked(out) if out else nullcontext(),
        StopSignal() as stop,
        _Table(out, header, settings, resume, force) as table,
    ):
        for item in table.unfinished(clips(files, RATE_HZ, CLIP_SAMPLES)):
            if isinstance(item.symbols, str):
                found = Prediction(None, item.length, 0, 0, item.symbols)
            else:
                p = judge_clips(judge, one_second(item.symbols)[None]).probabilities[0]
                found = Prediction(p, item.length, len(item.symbols), 1, "")
            table.add(_row(item, found, labels))
            table.flush()
            if progress is not None:
                progress("records", table.rows, None)
            if stop.number is not None:
                break
        table.complete = stop.number is None
    return settings | {
        "run": str(folder),
        "records": table.rows,
        "used": table.used,
        "unit": "sample",
        "predicted": {label: table.predicted[label] for label in labels},
        "not_scored": dict(table.reasons),
        "stopped_by": None if stop.number is None else signal.Signals(stop.number).name,
    }


# `used` is called by its unit: bases_used, samples_used.
ROWS_NAME = "rows.tsv"
MAKER = Maker("predict", ("settings.json", ROWS_NAME))
COLUMNS = ("file", "record", "length", "used", "windows", "predicted")
# Whether a file is a table of predictions.
ours = begins_with("\t".join(COLUMNS[:3]))


def describe_predictions(summary: dict[str, Any]) -> str:
    """The summary for people."""
    counts = ", ".join(f"{label} {count:,}" for label, count in summary["predicted"].items() if count)
    records = f"{summary['records']:,} record{'s' if summary['records'] != 1 else ''}"
    lines = [f"{records}, {summary['used']:,} {summary['unit']}s used: {counts or 'none scored'}"]
    if summary["mode"] == "windows" and summary["length"] != summary["trained_length"]:
        lines.append(
            f"windows of {summary['length']:,} {summary['unit']}s; the model was trained at "
            f"{summary['trained_length']:,}"
        )
    missing = sum(summary["not_scored"].values())
    if missing:
        reasons = "; ".join(f"{count:,} x {reason}" for reason, count in list(summary["not_scored"].items())[:5])
        lines.append(f"{missing:,} not scored: {reasons}")
    return "\n".join(lines)


def _names(item: Item) -> tuple[str, str]:
    return cell(item.file), cell(item.name)


def _row(item: Item, prediction: Prediction, labels: Sequence[str]) -> list[str]:
    values = [*_names(item), str(item.length), str(prediction.used), str(prediction.windows)]
    p = prediction.probabilities
    if p is None:
        return [*values, "", *("" for _ in labels), cell(prediction.reason)]
    return [*values, labels[int(p.argmax())], *(f"{value:.6g}" for value in p), ""]


class _Table(AbstractContextManager["_Table"]):
    """Rows that go to standard output, or to `OUT.part`, which becomes `OUT` when `complete`.

    Attributes:
        rows, used, predicted, reasons: counts over all rows, those of an earlier run too.
        complete: set when nothing is left to add.
    """

    def __init__(
        self, out: Path | None, header: Sequence[str], settings: dict[str, Any], resume: bool, force: bool
    ) -> None:
        self.out, self.complete = out, False
        self.rows = self.used = 0
        self.predicted, self.reasons = Counter[str](), Counter[str]()
        self._before: list[tuple[str, str, str]] = []
        self._stream: IO[str] = sys.stdout
        if out is None:
            self._write(header)
            return
        self.folder = unfinished(out)
        self.part = self.folder / ROWS_NAME
        begun = begin_unfinished(self.folder, MAKER, settings, resume=resume, force=force)
        if begun and self.part.exists():
            self._recover(header)
            self._stream = self.part.open("a", encoding="utf-8")
        else:
            self._stream = self.part.open("w", encoding="utf-8")
            self._write(header)

    def add(self, row: list[str]) -> None:
        """Append a row and count it."""
        self._write(row)
        self._count(row)

    def flush(self) -> None:
        """Let others see the rows so far."""
        self._stream.flush()

    def unfinished(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items behind those that an earlier run wrote, which must be the same ones."""
        for number, item in enumerate(items):
            if number >= len(self._before):
                yield item
            elif self._before[number] != (*_names(item), str(item.length)):
                raise InputError(
                    f"{self.part}: its row {number + 1:,} is of {self._before[number][1]!r}, the record there is "
                    f"{item.name!r}; the files changed. Start anew with --force"
                )

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.out is None:
            return
        self._stream.close()
        if kind is None and self.complete:
            # Again: hours may have gone by.
            check_file(self.out, "predict", ours, force=True)
            os.replace(self.part, self.out)
            discard_unfinished(self.folder)
        else:
            show(f"mba: {self.rows:,} rows are in {self.part}; use --resume to continue", file=sys.stderr)

    def _write(self, row: Sequence[str]) -> None:
        self._stream.write("\t".join(row) + "\n")

    def _count(self, row: Sequence[str]) -> None:
        self.rows += 1
        self.used += int(row[3])
        predicted = row[COLUMNS.index("predicted")]
        if predicted:
            self.predicted[predicted] += 1
        else:
            self.reasons[row[-1]] += 1

    def _recover(self, header: Sequence[str]) -> None:
        """Count the whole rows of an earlier run; a row cut short by a kill is cut off."""
        data = self.part.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        lines = whole.decode("utf-8").split("\n")[:-1] or ["\t".join(header)]
        if not whole:
            # Killed while the header was written.
            whole = (lines[0] + "\n").encode()
            self.part.write_bytes(whole)
        if lines[0].split("\t") != list(header):
            raise InputError(f"{self.part}: not an unfinished prediction; start anew with --force")
        os.truncate(self.part, len(whole))
        for line in lines[1:]:
            row = line.split("\t")
            self._count(row)
            self._before.append((row[0], row[1], row[2]))
