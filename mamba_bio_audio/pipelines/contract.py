"""What a domain and its corpora are; nothing above `pipelines/` asks which domain it deals with.

A domain (DNA, audio) says how symbols of its kind are read, written and judged. A corpus is an opened data set: symbols
in splits, with labels or without. One data module (`pipelines/data.py`) makes batches of any corpus. What is special to one
kind of data (a genome, recordings, classes) is reached through `data.corpus`.

Laws: each symbol of a split is scored once; sample i depends on (seed, stage, i) alone; workers and ranks change nothing;
a short read is an error; decode(encode(x)) = x.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from mamba_bio_audio.errors import InputError

# Called with (what, done, in all) while something long goes on.
Progress = Callable[[str, int, int | None], None]

Ids = NDArray[Any]
Strand = Literal["both", "forward", "reverse"]


class DataSection(BaseModel):
    """The `data` section of a configuration; each `data.kind` has a subclass.

    Attributes:
        labelled: for classifiers.
        audible: whether samples of a model can be listened to during training (`train.listen`).
        packaged: words that a key for files accepts besides file names, such as one for packaged data.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    labelled: ClassVar[bool] = False
    audible: ClassVar[bool] = False
    packaged: ClassVar[tuple[str, ...]] = ()
    kind: str
    if TYPE_CHECKING:  # of every kind, each with its own description
        path: Any
        intervals: str | None
        num_workers: int


class Item(NamedTuple):
    """One record of a file.

    Attributes:
        file: as the user named it.
        name: of the record.
        length: in symbols.
        symbols: token ids (L,), or why the record has none.
    """

    file: str
    name: str
    length: int
    symbols: Ids | str


@dataclass(frozen=True)
class Symbols:
    """What a classifier needs to know of the ids that it reads.

    Attributes:
        unit: of lengths, singular.
        pad_id: fills batches on the right.
        known: ids -> which of them are known symbols (A, C, G, T).
        strands: that can be read, the default first.
        reverse: ids -> ids of the opposite strand; None where there is only one.
        start_id: precedes every window; None where inputs begin with their first symbol.
        fill_to: shorter windows are filled to this length with `pad_id` as a signal, as clips of one length are with silence.
    """

    unit: str
    pad_id: int
    known: Callable[[Ids], NDArray[np.bool_]] = lambda ids: np.ones(len(ids), dtype=bool)
    strands: tuple[Strand, ...] = ("forward",)
    reverse: Callable[[Ids], Ids] | None = None
    start_id: int | None = None
    fill_to: int = 0


class Domain(ABC):
    """One kind of sequence data. The module that defines it imports no torch; methods import what they need.

    Attributes:
        name: of the domain.
        unit: of lengths, singular: "base", "sample".
        first_sample: options of `mba sample` to suggest after a training.
        kinds: the classes of the `data` section by their `data.kind`; a class with `labelled = True` is for classifiers.
    """

    name: ClassVar[str]
    unit: ClassVar[str]
    first_sample: ClassVar[str]
    kinds: ClassVar[Mapping[str, type[DataSection]]]

    @abstractmethod
    def codec(self, config: Any) -> Any:
        """The codec (`encode`, `decode`, `vocab_size`, `pad_id`, `unit`) of a data section."""

    @abstractmethod
    def open(self, config: Any, *, length: int, batch_size: int, seed: int, progress: Progress | None = None) -> Any:
        """The data module of a data section; not yet set up.

        Args:
            config: of one of `kinds`.
            length: of training windows, in symbols.
            batch_size: windows per batch and rank.
            seed: of order and augmentation.
            progress: called while files are indexed, read and compared.
        """

    @abstractmethod
    def describe(self, summary: Mapping[str, Any]) -> list[tuple[str, str]]:
        """A data module's `summary()` as (what, value) lines for people."""

    # Records of files, which are predicted.

    def records(self, files: Iterable[str], config: Any) -> Iterator[Item]:
        """Records of files in order, whole, as the codec of a data section reads them.

        Args:
            files: paths; what a domain reads besides (`-` for standard input, folders) it says itself.
            config: the data section that the model was trained on.

        Raises:
            InputError: a file cannot be read as a whole. Where only a record cannot, its item gives the reason.
        """
        raise InputError(f"mba predict reads no files of {self.name}")

    def symbols(self, config: Any, length: int) -> Symbols:
        """What is known of the ids in `records`.

        Args:
            config: the data section that the model was trained on.
            length: of its training windows.
        """
        codec = self.codec(config)
        return Symbols(unit=self.unit, pad_id=codec.pad_id, start_id=getattr(codec, "start_id", None))

    # What an export says of a model and writes beside it.

    def card_symbols(self, codec: Any) -> str:
        """A paragraph of the model card: what the ids of a codec mean."""
        return f"The ids 0 to {codec.vocab_size - 1:,} of the codec {codec.name}."

    def card_data(self, summary: Mapping[str, Any]) -> list[str]:
        """Lines of the model card about a data module's `summary()`, besides its files."""
        return []

    def card_limits(self, config: Any, *, classifier: bool) -> list[str]:
        """What to know before a model of this domain is used, a sentence or two each.

        Args:
            config: the data section that it was trained on.
            classifier: the model gives classes, not sequences.
        """
        return []

    def write_tokenizer(self, codec: Any, folder: Path) -> None:  # noqa: B027
        """Write into an export what other programs need to encode as the codec does; nothing where there is no such thing."""
