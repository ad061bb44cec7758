"""Log-likelihood of every symbol of long records, on either strand, in constant memory.

    plan     which stretches of which records are read, and which of their symbols are scored
    score    runs them through the model; values go to a file per strand as they come, so that a killed run is continued
    blocks   the values again, in order of the records, of one strand or the mean of both

A value stands at the coordinate of the symbol that it scores, whichever strand was read. Reading the reverse strand of a
record of length n, the model predicts the complement of the base at n - 1 - t as its symbol number t, from the
complements of all bases behind it; that log-likelihood stands at n - 1 - t. So the first base is missing on the forward
strand (nothing precedes it), the last one on the reverse strand. `both` is the mean of the two, and missing where either is.

Legend: n values, B rows of a batch.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.files.tensors import load_tree, save_tree
from mamba_bio_audio.inference.streaming import Passes, Stopped, batches, log_likelihoods
from mamba_bio_audio.pipelines.contract import Strand, Symbols
from mamba_bio_audio.pipelines.corpus import Ids, Stored
from mamba_bio_audio.pipelines.spans import Span, merge

DONE_NAME, STATE_NAME = "done.txt", "state.safetensors"
# The state in a long unit is saved so often.
SAVE_SECONDS = 30
VALUE_BYTES = 4
BLOCK = 1 << 16


class Area(NamedTuple):
    """Symbols [start, end) of a record, all of which get a value; `first` is the number of the first value in its file."""

    record: str
    start: int
    end: int
    first: int


class Unit(NamedTuple):
    """A stretch that is read in one go: [low, high) of a record on one strand, whose symbols in `areas` are scored."""

    number: int
    strand: str
    record: str
    low: int
    high: int
    areas: Sequence[Area]

    @property
    def length(self) -> int:
        """Symbols that are read."""
        return self.high - self.low


@dataclass(frozen=True)
class Plan:
    """What is scored.

    Attributes:
        lengths: length of each record, in the order of the files.
        strand: strands that are read.
        areas: symbols that are scored, disjoint, in the order of the files.
        units: what is read, numbered from 0.
    """

    lengths: Mapping[str, int]
    strand: Strand
    areas: Sequence[Area]
    units: Sequence[Unit]

    @property
    def symbols(self) -> int:
        """Symbols that are read, over all units."""
        return sum(unit.length for unit in self.units)


def plan(
    lengths: Mapping[str, int], spans: Iterable[Span] | None = None, *, strand: Strand, context: int | None = None
) -> Plan:
    """Plan the scoring of whole records, or of spans of them.

    Args:
        lengths: length of each record, in the order of the files.
        spans: symbols that are scored, each once, in any order and overlapping; None for all.
        strand: strands that are read.
        context: symbols read before a span; None reads its record from the start of the strand, so that a symbol has the
            value that it has when the whole record is scored.
    """
    by_record: dict[str, list[Area]] = {}
    if spans is None:
        merged = [Span(record, 0, length) for record, length in lengths.items() if length]
    else:
        places = {record: number for number, record in enumerate(lengths)}
        merged = sorted(merge(spans), key=lambda span: (places[span.record], span.start))
    first = 0
    for record, start, end in merged:
        by_record.setdefault(record, []).append(Area(record, start, end, first))
        first += end - start
    units: list[Unit] = []
    for name in ("forward", "reverse") if strand == "both" else (strand,):
        for record, areas in by_record.items():
            length = lengths[record]
            # From the start of the strand to the last symbol that is scored.
            together = [areas] if context is None else [[area] for area in areas]
            for own in together:
                before = length if context is None else context
                start, end = own[0].start, own[-1].end
                low, high = (max(0, start - before), end) if name == "forward" else (start, min(length, end + before))
                units.append(Unit(len(units), name, record, low, high, own))
    return Plan(lengths, strand, [area for areas in by_record.values() for area in areas], units)


class _Row:
    """A unit as the model reads it. Inputs and targets of a piece overlap; what was read last is not read again."""

    def __init__(self, stored: Stored, unit: Unit, reverse: Callable[[Ids], Ids] | None) -> None:
        self.stored, self.unit, self.reverse = stored, unit, reverse
        self.low, self.ids = 0, np.zeros(0, np.uint8)

    def __len__(self) -> int:
        return self.unit.length

    def __getitem__(self, piece: slice) -> Ids:
        low, high, _ = piece.indices(len(self))
        again = self.ids[low - self.low :][: high - low] if low >= self.low else self.ids[:0]
        new = self._fetch(low + len(again), high)
        self.low, self.ids = low, np.concatenate([again, new]) if len(again) else new
        return self.ids

    def _fetch(self, low: int, high: int) -> Ids:
        record, start, end = self.unit.record, self.unit.low, self.unit.high
        if self.unit.strand == "forward":
            return self.stored.fetch(record, start + low, start + high)
        assert self.reverse is not None
        return self.reverse(self.stored.fetch(record, end - high, end - low))


def score(
    model: Any,
    stored: Stored,
    planned: Plan,
    symbols: Symbols,
    known: Sequence[int],
    folder: Path,
    passes: Passes,
) -> None:
    """Write the log-likelihoods, float32 nats, of every area of a plan, except those that an earlier call finished.

    Args:
        model: language model in eval mode, on the device of `passes`.
        stored: the records of the plan.
        planned: what is scored.
        symbols: meaning of the ids.
        known: ids that are scored; others are missing (NaN).
        folder: holds a file of values per strand; `done.txt`, the numbers of finished units; and from time to time the
            model's state in a long one.
        passes: how units are run through the model; short ones are batched to `passes.chunk` symbols.

    Raises:
        Stopped: `passes.stop` returned True; what was scored is kept.
    """
    assert passes.chunk is not None
    done = finished(folder)
    left = sorted((unit for unit in planned.units if unit.number not in done), key=_length)
    begun = _Begun.load(folder, model, passes.device)
    with ExitStack() as stack:
        files: dict[str, IO[bytes]] = {}
        for strand in {unit.strand for unit in left}:
            values_path(folder, strand).touch()
            files[strand] = stack.enter_context(values_path(folder, strand).open("r+b"))
        noted = stack.enter_context((folder / DONE_NAME).open("a", encoding="ascii"))
        for some in batches(left, _length, passes.chunk, passes.chunk):
            numbers, start = [unit.number for unit in some], _Begun(some[0].number)
            if begun is not None and numbers == [begun.number]:
                start, some = begun, [_rest(some[0], begun.read)]
            keep = _Keep(folder, start, files) if len(some) == 1 and some[0].length > passes.chunk else None
            pieces = log_likelihoods(
                model,
                [_Row(stored, unit, symbols.reverse) for unit in some],
                known=known,
                pad_id=symbols.pad_id,
                start_id=symbols.start_id if start.state is None else None,
                state=start.state,
                passes=replace(passes, chunk=max(1, passes.chunk // len(some))),
                keep=keep,
            )
            try:
                for low, values in pieces:
                    if low == 0 and start.state is not None:
                        # The first symbol was scored before the state was saved.
                        low, values = 1, values[:, 1:]
                    for unit, own in zip(some, values.astype("<f4"), strict=True):
                        _place(files[unit.strand], unit, low, own)
            except Stopped:
                if keep is not None:
                    keep.save()
                raise
            for file in files.values():
                file.flush()
            noted.write("".join(f"{number}\n" for number in numbers))
            noted.flush()


class _Begun(NamedTuple):
    """How far a unit was read: its first `read` symbols, with the state after them; the symbol that follows is scored too."""

    number: int
    read: int = 0
    state: Any = None

    @classmethod
    def load(cls, folder: Path, model: Any, device: str) -> _Begun | None:
        path = folder / STATE_NAME
        if not path.exists():
            return None
        remedy = "start again with --force"
        try:
            number, read, leaves = load_tree(path, remedy=remedy)
            structure = tree_flatten(model.init_state(1, device))[1]
            moved = [leaf.to(device) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            return cls(int(number), int(read), tree_unflatten(moved, structure))
        except (TypeError, ValueError) as error:
            raise InputError(f"{path}: damaged ({type(error).__name__}); {remedy}") from None


class _Keep:
    """Saves the state in a unit from time to time, so that a long one is continued where a kill or a signal ended it."""

    def __init__(self, folder: Path, start: _Begun, files: Mapping[str, IO[bytes]]) -> None:
        self.folder, self.start, self.files = folder, start, files
        self.latest, self.saved = start, time.monotonic()

    def __call__(self, read: int, state: Any) -> None:
        self.latest = _Begun(self.start.number, self.start.read + read, state)
        if time.monotonic() - self.saved > SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        if self.latest.state is None:
            return
        # The values that the state has passed have to be there first.
        for file in self.files.values():
            file.flush()
        leaves = tree_flatten(self.latest.state)[0]
        leaves = [leaf.cpu().clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        save_tree(self.folder / STATE_NAME, [self.latest.number, self.latest.read, leaves])
        self.saved = time.monotonic()


def _rest(unit: Unit, read: int) -> Unit:
    """A unit without its first symbols."""
    return unit._replace(low=unit.low + read) if unit.strand == "forward" else unit._replace(high=unit.high - read)


def finished(folder: Path) -> set[int]:
    """Numbers of the units that are finished; a line cut short by a kill does not count."""
    path = folder / DONE_NAME
    text = path.read_text("ascii") if path.exists() else ""
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole, "ascii")
    return {int(line) for line in whole.split()}


def values_path(folder: Path, strand: str) -> Path:
    """The file of a strand's values: float32, little-endian, nats, NaN where missing, areas one after another."""
    return folder / f"{strand}.f32"


def blocks(
    folder: Path, strand: Strand, areas: Sequence[Area], multiple: int = 1, stop: Callable[[], bool] = lambda: False
) -> Iterator[tuple[str, int, NDArray[np.float32]]]:
    """The values of areas, each cut into blocks that begin at multiples of `multiple`, or with the area.

    Args:
        folder: as `score` wrote it, with every unit finished.
        strand: "both" takes the mean of the two strands.
        areas: in the order in which they are wanted.
        multiple: how blocks are cut.
        stop: called before every block; True raises `Stopped`.

    Yields:
        (record, start, values): float32 (n,), nats, NaN where missing.
    """
    size = multiple * max(1, BLOCK // multiple)
    paths = [values_path(folder, name) for name in (("forward", "reverse") if strand == "both" else (strand,))]
    files = [path.open("rb") for path in paths] if areas else []
    try:
        for record, start, end, first in areas:
            at = start
            while at < end:
                if stop():
                    raise Stopped
                high = min(end, (at // size + 1) * size)
                found = []
                for file in files:
                    file.seek((first + at - start) * VALUE_BYTES)
                    found.append(np.frombuffer(file.read((high - at) * VALUE_BYTES), "<f4"))
                yield record, at, found[0] if len(found) == 1 else (found[0] + found[1]) / 2
                at = high
    finally:
        for file in files:
            file.close()


def totals(folder: Path, planned: Plan, spans: Iterable[Span]) -> Iterator[tuple[int, float]]:
    """(number of scored symbols, sum of their values in nats) of each span, which lies in the areas of the plan."""
    by_record: dict[str, list[Area]] = {}
    for area in planned.areas:
        by_record.setdefault(area.record, []).append(area)
    starts = {record: [area.start for area in areas] for record, areas in by_record.items()}
    for record, start, end in spans:
        if start == end:
            yield 0, 0.0
            continue
        own = by_record[record][bisect_right(starts[record], start) - 1]
        scored, nats = 0, 0.0
        part = Area(record, start, end, own.first + start - own.start)
        for _, _, values in blocks(folder, planned.strand, [part]):
            there = values[np.isfinite(values)]
            scored += len(there)
            nats += float(there.sum(dtype=np.float64))
        yield scored, nats


def _length(unit: Unit) -> int:
    return unit.length


def _place(file: IO[bytes], unit: Unit, low: int, values: NDArray[np.float32]) -> None:
    """Write the values of symbols [low, low + n) of a unit, as far as they are in its areas, where they belong."""
    values = values[: max(0, unit.length - low)]
    if unit.strand == "forward":
        start = unit.low + low
    else:
        start, values = unit.high - low - len(values), values[::-1]
    end = start + len(values)
    for area in unit.areas:
        a, b = max(start, area.start), min(end, area.end)
        if a < b:
            file.seek((area.first + a - area.start) * VALUE_BYTES)
            file.write(values[a - start : b - start].tobytes())
