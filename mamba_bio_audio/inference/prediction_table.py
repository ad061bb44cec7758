"""The table of predictions: a row per record, in order; unfinished in `OUT.part`, from which it continues."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.files import Maker, begin_unfinished, begins_with, check_file, discard_unfinished, unfinished
from mamba_bio_audio.inference.predict import Prediction
from mamba_bio_audio.models.tasks import Outputs
from mamba_bio_audio.pipelines.contract import Item
from mamba_bio_audio.text import apart, cell, show

ROWS_NAME = "rows.tsv"
# In the place of a class: the model does not know what it is; it was not asked.
UNKNOWN, NOT_SCORED = "unknown", "not scored"
MAKER = Maker("predict", ("settings.json", ROWS_NAME))
# `used` is called by its unit: bases_used, samples_used.
COLUMNS = ("file", "record", "length", "used", "windows")
# Whether a file is a table of predictions.
ours = begins_with("\t".join(COLUMNS[:3]))


class PredictionTable(AbstractContextManager["PredictionTable"]):
    """Rows that go to standard output, or to `OUT.part`, which becomes `OUT` when `complete`.

    Columns: file, record, length, bases_used (by the unit), windows, those of the outputs (for classes: predicted and one
    p_<class> per class), note. A record that cannot be scored has nothing in those and the reason in `note`. Tabs, line ends
    and bytes that are not UTF-8 are written as backslash escapes.

    Args:
        out: None is standard output. The caller holds its lock.
        unit: unit of lengths.
        outputs: what is predicted: its columns.
        labels: names of the outputs.
        settings: everything that decides the rows; equal ones may be resumed.
        resume, force: continue or discard what is in `OUT.part`.

    Attributes:
        rows, used, scored, predicted, reasons: counts over all rows, including those of an earlier run; `predicted` by class
            or label, where there are any.
        shares: of each file, how many records and symbols of each class or label, and of those without; a record may have
            several labels.
        totals: of each file, how many records and symbols in all.
        complete: set when nothing is left to add.
    """

    def __init__(
        self,
        out: Path | None,
        unit: str,
        outputs: Outputs,
        labels: Sequence[str],
        settings: dict[str, Any],
        *,
        resume: bool,
        force: bool,
    ) -> None:
        self.out, self.complete = out, False
        self.outputs, self.labels = outputs, [cell(label) for label in labels]
        own = [*COLUMNS[:3], f"{unit}s_used", *COLUMNS[4:]]
        # Numbers may be called like a column of this table.
        taken = [*own, "note", *(["predicted"] if outputs.name == "numbers" else [])]
        self.columns = apart(outputs.columns(self.labels), taken)
        header = [*own, *self.columns, "note"]
        self.rows = self.used = self.scored = 0
        self.predicted, self.reasons = Counter[str](), Counter[str]()
        self.shares: dict[str, dict[str, list[int]]] = {}
        self.totals: dict[str, list[int]] = {}
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

    def add(self, item: Item, prediction: Prediction, unknown: bool = False) -> None:
        """Append the row of a record, and count it; one that is unknown is predicted as `UNKNOWN`."""
        row = [*_names(item), str(item.length), str(prediction.used), str(prediction.windows)]
        p = prediction.probabilities
        if p is None:
            row += [*("" for _ in self.columns), cell(prediction.reason)]
        else:
            cells = self.outputs.cells(p.tolist(), self.labels)
            if unknown:
                cells[self.columns.index("predicted")] = UNKNOWN
            row += [*cells, ""]
        self._write(row)
        self._count(row)

    def flush(self) -> None:
        """Make the rows so far visible to others."""
        self._stream.flush()

    def unfinished(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items after those that an earlier run wrote, which must be the same ones."""
        for number, item in enumerate(items):
            if number >= len(self._before):
                yield item
            elif self._before[number] != (*_names(item), str(item.length)):
                raise InputError(
                    f"{self.part}: its row {number + 1:,} is for {self._before[number][1]!r}, but that record is now "
                    f"{item.name!r}; the files have changed. Start again with --force"
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
        elif kind is not None and not self.rows:
            # Refused input leaves nothing to continue.
            discard_unfinished(self.folder)
        else:
            show(f"mba: {self.rows:,} rows are in {self.part}; use --resume to continue", file=sys.stderr)

    def _write(self, row: Sequence[str]) -> None:
        self._stream.write("\t".join(row) + "\n")

    def _count(self, row: Sequence[str]) -> None:
        self.rows += 1
        self.used += int(row[3])
        names = [NOT_SCORED]
        if row[-1]:
            self.reasons[row[-1]] += 1
        else:
            self.scored += 1
            names = []
            if "predicted" in self.columns:
                said = row[len(COLUMNS) + self.columns.index("predicted")]
                names = [said] if said in self.labels else said.split(";")
                self.predicted.update(names)
        total = self.totals.setdefault(row[0], [0, 0])
        total[0] += 1
        total[1] += int(row[2])
        for name in names:
            count = self.shares.setdefault(row[0], {}).setdefault(name, [0, 0])
            count[0] += 1
            count[1] += int(row[2])

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
            raise InputError(f"{self.part}: not an unfinished prediction; start again with --force")
        os.truncate(self.part, len(whole))
        for line in lines[1:]:
            row = line.split("\t")
            self._count(row)
            self._before.append((row[0], row[1], row[2]))


def _names(item: Item) -> tuple[str, str]:
    return cell(item.file), cell(item.name)
