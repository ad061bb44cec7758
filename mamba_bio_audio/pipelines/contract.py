"""What a domain and its corpora are; nothing above `pipelines/` asks which domain it deals with.

A domain (DNA, audio) says how symbols of its kind are read, written and judged. A corpus is an opened data set: symbols
in splits, with labels or without. One data module (`pipelines/data.py`) makes batches of any corpus
(`pipelines/corpus.py`); what is special to a kind of data, such as a genome, is reached through `data.corpus`.

Laws: each symbol of a split is scored once; sample i depends on (seed, stage, i) alone; workers and ranks change nothing;
a short read is an error; decode(encode(x)) = x.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.scores import (
    ClassNotes,
    ClassYardstick,
    CopyBar,
    Digits,
    LikelihoodNotes,
    Measured,
    RecallTrials,
    Score,
    TargetBlocks,
    ValueYardstick,
)

# Configurations are read with this module; numpy can wait.
if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mamba_bio_audio.pipelines.corpus import Corpus, Ids, Stored
    from mamba_bio_audio.pipelines.sample_writer import SampleRequest, SampleWriter

# Called with (what, done, total) during long operations.
Progress = Callable[[str, int, int | None], None]

Strand = Literal["both", "forward", "reverse"]


class DataSection(BaseModel):
    """The `data` section of a configuration; each `data.kind` has a subclass.

    Attributes:
        tasks: what can be predicted of these data (`head.task`); empty: the next symbol, without a head.
        audible: whether samples of a model can be listened to during training (`train.listen`).
        answered: whether targets are answers, of which a model's first choice is right or wrong: accuracy is then told
            beside the loss.
        packaged: words that a key for files accepts besides file names, such as one for packaged data.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    tasks: ClassVar[tuple[str, ...]] = ()
    audible: ClassVar[bool] = False
    answered: ClassVar[bool] = False
    packaged: ClassVar[tuple[str, ...]] = ()
    kind: str

    @property
    def labelled(self) -> bool:
        """Whether the data have labels, which a head predicts."""
        return bool(self.tasks)

    if TYPE_CHECKING:  # of every kind that reads files, each with its own description
        path: Any = None
        intervals: str | None = None
        num_workers: int = 0


class Item(NamedTuple):
    """One record of a file.

    Attributes:
        file: as the user named it.
        name: name of the record.
        length: length in symbols.
        symbols: token ids (L,), or why the record has none.
    """

    file: str
    name: str
    length: int
    symbols: Ids | str


def _all_known(ids: Ids) -> NDArray[np.bool_]:
    import numpy as np

    return np.ones(len(ids), dtype=bool)


@dataclass(frozen=True)
class Symbols:
    """What a classifier needs to know about the ids that it reads.

    Attributes:
        unit: unit of lengths, singular.
        pad_id: fills batches on the right.
        known: ids -> which of them are known symbols (A, C, G, T).
        strands: strands that can be read, the default first.
        reverse: ids -> ids of the opposite strand; None where there is only one.
        start_id: precedes every window; None where inputs begin with their first symbol.
        max_unknown: windows with a larger share of unknown symbols were not trained on.
        bin, margin: of a model that predicts along sequences: symbols per value, and symbols read on either side.
        unknown_id: stands for symbols beyond the ends of a sequence.
        fill_to: shorter windows are filled to this length with `pad_id` as a signal, as clips of one length are with silence.
    """

    unit: str
    pad_id: int
    known: Callable[[Ids], NDArray[np.bool_]] = _all_known
    strands: tuple[Strand, ...] = ("forward",)
    reverse: Callable[[Ids], Ids] | None = None
    start_id: int | None = None
    max_unknown: float = 0.1
    fill_to: int = 0
    bin: int = 1
    margin: int = 0
    unknown_id: int = 0


class Listener(ABC):
    """Hears the samples that a model generates while it is trained (`train.listen`).

    Attributes:
        length: symbols per sample.
    """

    length: int

    @abstractmethod
    def distance(self, samples: Sequence[Ids]) -> float:
        """Distance of samples, ids of up to `length` symbols each, from recorded ones."""

    @abstractmethod
    def show(self, samples: Sequence[Ids], writer: Any, step: int) -> None:
        """Give samples to TensorBoard.

        Args:
            samples: as for `distance`.
            writer: TensorBoard's SummaryWriter.
            step: number of the training step.
        """


class Match(NamedTuple):
    """How near generated pieces are to recorded ones.

    Attributes:
        distance: sum of `parts`.
        parts: distance by measure; 0 is equal, 1 about as far as recorded pieces are spread.
        values: median of the generated pieces by measure.
        inside: share of the generated pieces that lie, as wholes, within the range of recorded ones, by measure.
        safely: the same where each end of the range is unsure by a tenth of it: what lies at an end counts as half.
    """

    distance: float
    parts: Mapping[str, float]
    values: Mapping[str, float]
    inside: Mapping[str, float]
    safely: Mapping[str, float]


class Matcher(ABC):
    """Compares generated pieces of `length` symbols with recorded ones, to find out how a model should draw them."""

    length: int

    @abstractmethod
    def measure(self, sample: Ids) -> Any:
        """What `match` needs of a sample, ids (length,); several threads may ask at once."""

    @abstractmethod
    def match(self, measured: Sequence[Any], weights: Sequence[float] | None = None) -> Match:
        """How near measured samples are to held-out data; `weights` add up to 1, None counts all alike."""

    @abstractmethod
    def recorded_values(self) -> Mapping[str, Sequence[float]]:
        """5 %, median and 95 % of held-out data by measure."""


class Clip(NamedTuple):
    """A recording in a report."""

    title: str
    picture: bytes  # PNG
    sound: bytes  # FLAC


class SampleView(NamedTuple):
    """What a report shows of samples; what is empty is not shown."""

    text: str
    table: str = ""
    pictures: Sequence[tuple[str, bytes]] = ()  # (description, PNG)
    clips: Sequence[Clip] = ()


class Domain(ABC):
    """One kind of sequence data. The module that defines it imports no torch; methods import what they need.

    Attributes:
        name: name of the domain.
        unit: unit of lengths, singular: "base", "sample".
        told_by: by which of a score's figures models are told: "perplexity", "bits".
        record: what one sequence of its files is called, singular.
        groups: what is resampled as wholes for the intervals of a classifier's accuracy, plural.
        first_sample: options of `mba sample` to suggest after a training; empty where it writes no samples.
        samples_key: key of the path of samples in their measurements.
        kinds: the classes of the `data` section by their `data.kind`; those with `tasks` are for models with a head.
    """

    name: ClassVar[str]
    unit: ClassVar[str]
    told_by: ClassVar[str] = "perplexity"
    record: ClassVar[str] = "record"
    groups: ClassVar[str] = "loci"
    first_sample: ClassVar[str]
    samples_key: ClassVar[str] = "out"
    kinds: ClassVar[Mapping[str, type[DataSection]]]

    @abstractmethod
    def codec(self, config: Any) -> Any:
        """The codec of a data section.

        It has `encode`, `decode`, `check_sequence` (refuses what `encode` should not be given by a user), `check_prompt`,
        `name` (the domain's), `unit`, `vocab_size`, `sample_ids` (known symbols: what is sampled and scored), `start_id`
        (what inputs begin with, or None) and `pad_id` (fills short windows).
        """

    @abstractmethod
    def open(self, config: Any, *, length: int, task: str | None = None, progress: Progress | None = None) -> Corpus:
        """Open the data set of a data section: read or index the files, read or make the splits.

        Args:
            config: a configuration of one of `kinds`.
            length: length of the windows, in symbols.
            task: what labels are read for, one of the section's `tasks`; None is the first one.
            progress: called while files are indexed, read and compared.

        Raises:
            InputError: naming what is wrong with which file, and what to do.
        """

    @abstractmethod
    def describe(self, summary: Mapping[str, Any]) -> list[tuple[str, str]]:
        """A corpus's `summary()` as (what, value) lines for people."""

    # Records of files, which are predicted, embedded or scored.

    def records(self, files: Iterable[str], config: Any) -> Iterator[Item]:
        """Records of files in order, whole, as the codec of a data section reads them.

        Args:
            files: paths; a domain may also read `-` as standard input, or folders.
            config: the data section that the model was trained on.

        Raises:
            InputError: a file cannot be read as a whole. Where only a record cannot, its item gives the reason.
        """
        raise InputError(f"files of {self.name} cannot be read record by record; use Python, with token ids")

    def pairs(self, files: Iterable[str], config: Any) -> Iterator[tuple[Item, Item]]:
        """Records that belong together, of files that come two by two, such as the reads of one fragment; both under one name.

        Raises:
            InputError: this domain has no pairs, or those of two files do not fit.
        """
        raise InputError(f"--paired is for reads of DNA, not for {self.name}; leave it out")

    def stored(self, files: Sequence[str], config: Any, progress: Progress | None = None) -> Stored:
        """Records of files, to be read in pieces as the codec of a data section reads them.

        Args:
            files: paths; a domain may also read folders.
            config: the data section that the model was trained on.
            progress: called while files are indexed.

        Raises:
            InputError: a file cannot be read in pieces, or this domain has no such files.
        """
        raise InputError(f"files of {self.name} are not read in pieces")

    def symbols(self, config: Any, length: int) -> Symbols:
        """Meaning of the ids in `records`.

        Args:
            config: the data section that the model was trained on.
            length: length of its training windows.
        """
        codec = self.codec(config)
        return Symbols(unit=self.unit, pad_id=codec.pad_id, start_id=codec.start_id)

    def genome(self, path: Path, progress: Progress | None = None) -> Any:
        """The sequences that variants are changes of.

        Raises:
            InputError: they cannot be read, or this domain has no such sequences.
        """
        raise InputError(f"mba variants needs a language model of DNA, got one of {self.name}")

    def listener(self, codec: Any, length: int, recorded: Any) -> Listener:
        """Listener to the samples of a model in training; for data sections that are `audible`.

        Args:
            codec: codec of the data.
            length: length of the training windows, in symbols.
            recorded: examples of the validation split by number, at least one, with `targets` as ids and -100.
        """
        raise NotImplementedError

    def matcher(self, corpus: Corpus, length: int | None = None) -> Matcher | None:
        """What generated pieces are compared with; None where nothing but the likelihood tells how to draw.

        Args:
            corpus: of a run, with a validation split; held-out data of any split are compared with.
            length: symbols per generated piece; None is what suits the domain.

        Raises:
            InputError: the validation split has nothing to compare with.
        """
        return None

    # Samples of a model: written, found in a run folder, measured, shown.

    def rate_hz(self, config: Any) -> int | None:
        """Symbols of one second of what they describe; None where they have no duration."""
        return None

    def writer(self, request: SampleRequest) -> SampleWriter:
        """Writer of the requested samples.

        Raises:
            InputError: a bad prompt or target.
        """
        raise InputError(f"mba sample has no file format for {self.name} data; use mba.generate")

    def run_files(self) -> tuple[str, ...]:
        """Shell patterns of files that commands write into run folders of this domain alone."""
        return ()

    def find_samples(self, run: Path) -> Path | None:
        """Where a run folder holds samples; None if there are none."""
        return None

    def sample_command(self, run: Path) -> str:
        """A command that makes samples where `find_samples` finds them."""
        return f"mba sample {run} --length 1000 --out {run / 'samples'}"

    def measures(self, samples: Path) -> Path | None:
        """Where measurements of a file or folder of samples are kept; None where there are none of such samples."""
        return None

    def measure(
        self,
        samples: Path,
        config: Any,
        corpus: Corpus | None,
        progress: Callable[[int, int | None], None] | None = None,
    ) -> dict[str, Any]:
        """Measure samples, beside the data of the run where they are given (JSON-able).

        Args:
            samples: file or folder for which `measures` gives a path.
            config: the data section that the model was trained on.
            corpus: the run's corpus, set up; None leaves out the comparisons.
            progress: called with (symbols read, None).
        """
        raise InputError(f"{samples}: samples of {self.name} are not measured")

    def show_measured(self, measured: Mapping[str, Any]) -> str:
        """The result of `measure` for people."""
        return ""

    def show_samples(
        self, samples: Path, measured: Mapping[str, Any] | None, corpus: Corpus | None = None
    ) -> SampleView:
        """What a report shows of samples.

        Args:
            samples: file or folder that `mba sample` wrote.
            measured: result of `measure`, where there is one.
            corpus: of the run, where its data are still those of training.
        """
        return SampleView(f"{samples}")

    # What an export says of a model and writes beside it.

    def card_symbols(self, codec: Any) -> str:
        """A paragraph of the model card: what the ids of a codec mean."""
        return f"The ids 0 to {codec.vocab_size - 1:,} of the codec {codec.name}."

    def card_data(self, summary: Mapping[str, Any]) -> list[str]:
        """Lines of the model card about a corpus's `summary()`, besides its files."""
        return []

    def card_limits(self, config: Any, *, classifier: bool) -> list[str]:
        """What to know before a model of this domain is used, a sentence or two each.

        Args:
            config: the data section that it was trained on.
            classifier: the model gives classes, not sequences.
        """
        return []

    def write_tokenizer(self, codec: Any, folder: Path) -> int | None:
        """Write into an export what other programs need to encode as the codec does, where there is such a thing.

        Returns:
            The id that these programs pad with.
        """
        return None

    # What an evaluation says beside the scores of a model. `data` is a data module of this domain, set up.

    likelihood_notes: ClassVar[type[LikelihoodNotes]] = LikelihoodNotes
    class_notes: ClassVar[type[ClassNotes]] = ClassNotes

    def check_yardsticks(self, data: Any) -> None:  # noqa: B027
        """Refuse data that no yardstick can be fitted on, before a model is scored.

        Raises:
            InputError: there are too few; the message says what is missing.
        """

    def beside_likelihood(
        self, data: Any, found: Measured, score: Score, progress: Progress | None = None
    ) -> LikelihoodNotes:
        """What was scored and, where `found.yardsticks`, what simple models reach on the very same symbols.

        Args:
            data: data module of a language model.
            found: what the model reached.
            score: scores other windows with the same model.
            progress: called while yardsticks are fitted.
        """
        return LikelihoodNotes()

    def class_yardstick(self, data: Any) -> ClassYardstick | None:
        """A simple classifier fitted on the training sequences; None where the domain has none."""
        return None

    def value_yardstick(self, data: Any) -> ValueYardstick | None:
        """A simple model of labels or numbers of sequences, fitted to those of training; None where the domain has none."""
        return None

    def beside_classes(self, data: Any) -> ClassNotes:
        """Bounds on the accuracy of any classifier on these data."""
        return ClassNotes()

    def target_blocks(self, data: Any, split: str, *, size: int, context: int, count: int) -> TargetBlocks:
        """Up to `count` blocks of `size` symbols of a split with at least `context` symbols before each.

        Raises:
            InputError: there is no such block, or the domain has no such blocks at all.
        """
        raise InputError(f"--context needs a language model of DNA, got one of {self.name}; leave --context out")

    def copy_bar(self, data: Any, contexts: Sequence[int], progress: Progress | None = None) -> CopyBar | None:
        """A model that copies, fitted and chosen on training and validation for each context; None where there is none."""
        return None

    def recall_trials(
        self, data: Any, split: str, distance: int, *, count: int, copies: Sequence[int], mutated: float, seed: int
    ) -> RecallTrials:
        """Stretches of a split in which a piece comes again after a distance.

        Args:
            data: data module of a language model.
            split: they are drawn from.
            distance: symbols between the piece and its return.
            count: number of stretches.
            copies: how often the piece stands before the gap, end to end, in each variant.
            mutated: share of substituted symbols in the variant "mutated".
            seed: of the draws.

        Raises:
            InputError: no stretch of the split is long enough, or the domain has no such trials.
        """
        raise InputError(f"--recall needs a language model of DNA, got one of {self.name}; leave --recall out")

    def digits(self, data: Any) -> Digits:
        """Clips of spoken digits, for scores of generated ones.

        Raises:
            InputError: the data are something else.
        """
        raise InputError(
            f"--metrics sc09 needs a language model of recordings of spoken digits, got one of {self.name}; "
            "leave --metrics out"
        )
