"""A genome as a corpus: splits, training windows under a policy, and how they are read."""

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.contract import Progress
from mamba_bio_audio.pipelines.corpus import Corpus, Example, Sample
from mamba_bio_audio.pipelines.coverage import Coverage
from mamba_bio_audio.pipelines.dna.config import DnaDataConfig
from mamba_bio_audio.pipelines.dna.intervals import chosen_spans, read_intervals, split_blocks, without_records
from mamba_bio_audio.pipelines.dna.policies import TrainingWindows, training_windows
from mamba_bio_audio.pipelines.dna.repeats import with_repeats
from mamba_bio_audio.pipelines.dna.sources import locate
from mamba_bio_audio.pipelines.dna.statistics import composition, describe, describe_contigs
from mamba_bio_audio.pipelines.dna.tokenizer import DnaTokenizer, N
from mamba_bio_audio.pipelines.draws import Draws
from mamba_bio_audio.pipelines.spans import Interval, Span, merge, shared_symbols, size_of, subtract
from mamba_bio_audio.pipelines.split_names import SPLITS
from mamba_bio_audio.pipelines.windows import EvaluationWindows, Windows, evaluation_windows, move, union_of


class DnaCorpus(Corpus):
    """A genome and its splits.

    Args:
        config: which data, and how they are read.
        length: inputs per window, L; a window reads up to L + 1 bases.
        progress: called while files are indexed.

    Attributes:
        genome: the reader.
        intervals: of all splits; under `data.shared_bases` drop and trim, those of train and valid without the bases of a
            later split.
        laid_out: training windows at `length`, with the counts of those left out.
    """

    def __init__(self, config: DnaDataConfig, *, length: int, progress: Progress | None = None) -> None:
        super().__init__(DnaTokenizer(), length)
        self.config = config
        source = locate(config.path, config.intervals)
        self.genome = source.open(progress)
        self.groups = self.genome.genomes
        self.files = list(self.genome.paths)
        self._contigs: str | list[str] = config.contigs
        prepared = {}
        if source.manifest is not None and config.contigs == "primary":
            # What was let in when the folder was prepared.
            prepared = source.manifest.get("contigs", {})
            self._contigs = prepared.get("policy", "primary")
        self.contigs = without_records(
            self.genome,
            chosen_spans(self.genome, self._contigs),
            prepared.get("exclude", []),
            prepared.get("min_length", 0),
        )
        if source.intervals:
            self.intervals = read_intervals(source.intervals, self.genome, self.contigs)
            self.split_source = f"{source.intervals} ({source.intervals_origin})"
        else:
            self.intervals = split_blocks(
                self.genome,
                seed=config.split_seed,
                fractions={"valid": config.valid_fraction, "test": config.test_fraction},
                block_bases=config.block_bases,
                spans=self.contigs,
                whole=config.split_by == "records",
            )
            self.split_source = f"{config.split_by} chosen by split_seed {config.split_seed}"
        # Windows are laid out in the intervals as given; everything else sees them without shared bases.
        self._given = self.intervals
        self.shared = shared_symbols(self.intervals)
        if any(self.shared.values()) and config.shared_bases == "error":
            counts = ", ".join(
                f"{count:,} between {pair.replace('/', ' and ')}" for pair, count in self.shared.items() if count
            )
            raise InputError(
                f"{source.intervals}: the splits have bases in common: {counts}. A model would be tested on "
                "what it was trained on; correct the intervals, or choose data.shared_bases: drop, trim or allow"
            )
        if any(self.shared.values()) and config.shared_bases in ("drop", "trim"):
            own = {split: self._of(split) for split in SPLITS}
            own["valid"] = subtract(own["valid"], own["test"])
            own["train"] = subtract(own["train"], [*own["valid"], *own["test"]])
            self.intervals = [interval for split in SPLITS for interval in own[split]]
        if config.weights is not None:
            unknown_names = [name for name in config.weights if name not in self.genome.genomes]
            if unknown_names:
                raise InputError(
                    f"data.weights: no genome {', '.join(map(repr, unknown_names))}; there are "
                    f"{', '.join(self.genome.genomes)} (file names without FASTA suffixes)"
                )
        self.laid_out = self._lay_out_training(length)
        self.shared |= self.laid_out.shared_bases

    def spans(self, split: str) -> list[Span]:
        """The union of a split's intervals."""
        return merge(self._of(split))

    def fetch(self, span: Span) -> NDArray[np.uint8]:
        """Token ids of a span."""
        return self.genome.fetch(*span)

    def _lay_out_training(self, length: int) -> TrainingWindows:
        return training_windows(
            self._given,
            self.genome,
            length,
            policy=self.config.windows,
            grow_to=self.config.grow_to,
            shared=self.config.shared_bases,
            max_unknown=self.config.max_unknown,
            max_lower=self.config.max_lower if self.config.case == "drop" else 1.0,
        )

    def windows(self, length: int) -> Windows:
        """Windows of the training split at some length."""
        return (self.laid_out if length == self.length else self._lay_out_training(length)).windows

    def check_training(self) -> None:
        """Raise `InputError` when no window is left, with what became of all of them."""
        if not len(self.laid_out.windows):
            raise InputError(
                f"data.path: no window to train on: {size_of(self.spans('train')):,} bases in the training split give "
                f"{self.laid_out.laid_out:,} windows; {self.laid_out.too_unknown:,} skipped because more than "
                f"{self.config.max_unknown:.0%} of their bases are not A, C, G or T (data.max_unknown), "
                f"{self.laid_out.dropped:,} because they hold bases of other splits (data.shared_bases); "
                "check the file and the splits"
            )

    def shares(self, windows: Windows) -> list[tuple[NDArray[np.int32], int]]:
        """Of each genome under `data.weights`: its windows, and how many of them an epoch takes."""
        weights = self.config.weights
        if weights is None:
            return []
        per_genome = self._per_genome(windows)
        for name, weight in weights.items():
            if weight > 0 and not per_genome[name]:
                raise InputError(
                    f"data.weights: {name} has no training window of {windows.length:,} bases; give it the weight 0"
                )
        genomes = self._genome_of_windows(windows)
        members = [np.flatnonzero(genomes == at).astype(np.int32) for at in range(len(self.genome.genomes))]
        quotas = apportion(len(windows), [weights.get(name, 0.0) for name in self.genome.genomes])
        return list(zip(members, quotas, strict=True))

    def _per_genome(self, windows: Windows) -> dict[str, int]:
        """Training windows of each genome."""
        counts = np.bincount(self._genome_of_windows(windows), minlength=len(self.genome.genomes))
        return dict(zip(self.genome.genomes, counts.tolist(), strict=True))

    def _genome_of_windows(self, windows: Windows) -> NDArray[np.int64]:
        """Number of the genome of each window, (n,)."""
        genomes = np.array([self.genome.genome_of(record) for record in windows.records], dtype=np.int64)
        return genomes[windows.record]

    def example(self, windows: Windows, sample: Sample) -> Example:
        """A training window: its place, strand, which lower-case bases are scored and copies in it are drawn at random."""
        span = self.place(windows, sample)
        ids = self.fetch(span)
        unscored = ids == N
        if self.config.case == "weight":
            lower = self.genome.lower_case(*span)
            draws = Draws.CASE.random(sample.seed, sample.number, sample.stage).random(len(lower))
            unscored = unscored | (lower & (draws >= self.config.lower_weight))
        if self.is_reversed(sample):
            ids, unscored = self.codec.reverse_complement(ids), unscored[::-1]
        if self.config.repeats:
            ids = with_repeats(
                ids,
                Draws.REPEATS.random(sample.seed, sample.number, sample.stage),
                share=self.config.repeats,
                substituted=self.config.repeat_substitutions,
                reverse=self.config.repeat_reverse,
            )
            unscored = unscored | (ids == N)
        return Example(ids, unscored=unscored)

    def is_reversed(self, sample: Sample) -> bool:
        """Is it read from the opposite strand?"""
        if not self.config.reverse_complement:
            return False
        return bool(Draws.STRAND.bits(sample.seed, sample.number, sample.stage).random_raw() & 1)

    def place(self, windows: Windows, sample: Sample) -> Span:
        """Where a training window is read: at its place, or moved at random where the window policy allows it."""
        index = sample.window
        span = windows[index]
        if windows.back is None or windows.ahead is None:
            return span
        moved = move(windows, index, Draws.PLACE.random(sample.seed, sample.number, sample.stage))
        unknown = int(self.genome.count_unknown(*moved))
        if unknown > self.config.max_unknown * len(span) or len(span) - unknown < 2:
            return span
        if self.config.case == "drop" and int(self.genome.count_lower(*moved)) > self.config.max_lower * len(span):
            return span
        return moved

    def read(self, window: Span) -> Example:
        """A window as it is; unknown bases are not scored."""
        ids = self.fetch(window)
        return Example(ids, unscored=ids == N)

    def lay_out(self, split: str) -> EvaluationWindows:
        """Windows that score each known base of a split's union once."""
        return self._windows_of(self.spans(split))

    def _windows_of(self, spans: Sequence[Span]) -> EvaluationWindows:
        return evaluation_windows(spans, self.length, unknown=lambda span: int(self.genome.count_unknown(*span)))

    def group(self, window: Span) -> int:
        """Number of the genome file."""
        return self.genome.genome_of(window.record)

    def unread_windows(self, split: str, train_length: int, part: Sequence[Span] | None = None) -> Windows | None:
        """Windows that score the bases of a split, or of a part of it, that no training window of `train_length` holds.

        None where there is nothing to tell apart: no training window holds any base of the split, or some holds each.
        """
        read = Coverage(union_of(self.windows(train_length)))
        own: Sequence[Span] = self._of(split) if part is None else part
        if not read.shared(own):
            return None
        windows: Any = self._windows_of(merge(subtract(own, read.spans))).windows
        return windows if len(windows) else None

    def fingerprint(self) -> str:
        """SHA-256 of the intervals and their splits, whatever the length of the windows."""
        rows = sorted(f"{i.record}\t{i.start}\t{i.end}\t{i.split}\n" for i in self.intervals)
        return hashlib.sha256("".join(rows).encode()).hexdigest()

    def summary(self) -> dict[str, Any]:
        """The data set in numbers, ready for JSON."""
        splits: dict[str, dict[str, int | str]] = {}
        for split in SPLITS:
            evaluation = self.evaluation_windows(split)
            windows: Any = evaluation.windows
            splits[split] = {
                "intervals": len(self._of(split)),
                "bases": evaluation.symbols,
                "scored_bases": evaluation.scored,
                "unknown_bases": evaluation.unknown,
                "first_of_record_bases": evaluation.first_of_record,
                "evaluation_windows": len(windows),
                "evaluation_windows_sha256": windows.fingerprint(),
            }
        return {
            **describe(self.genome),
            **describe_contigs(self.genome, self._contigs, self.contigs),
            "split_source": self.split_source,
            "splits": splits,
            "splits_sha256": self.fingerprint(),
            "shared_bases": self.shared,
            "length": self.length,
            "training_windows": len(self.laid_out.windows),
            "window_policy": self.config.windows,
            "laid_out_windows": self.laid_out.laid_out,
            "clean_windows": self.laid_out.clean,
            "slid_windows": self.laid_out.slid,
            "shared_policy": self.config.shared_bases,
            "dropped_windows": self.laid_out.dropped,
            "trimmed_windows": self.laid_out.trimmed,
            "skipped_windows": self.laid_out.too_unknown,
            "lower_windows": self.laid_out.too_lower,
            "windows_per_genome": self._per_genome(self.laid_out.windows),
            "weights": self.config.weights,
            "case": self.config.case,
            "lower_weight": self.config.lower_weight if self.config.case == "weight" else None,
            "max_lower": self.config.max_lower if self.config.case == "drop" else None,
            "max_unknown": self.config.max_unknown,
            "reverse_complement": self.config.reverse_complement,
            "repeats": self.config.repeats,
            "composition": composition(self.genome, self.spans("train")),
        }

    def _of(self, split: str) -> list[Interval]:
        return [interval for interval in self.intervals if interval.split == split]


def apportion(total: int, weights: Sequence[float]) -> list[int]:
    """Whole shares of `total` in the ratio of the weights, by largest remainder."""
    exact = [total * weight / sum(weights) for weight in weights]
    shares = [math.floor(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda at: shares[at] - exact[at])
    for at in by_remainder[: total - sum(shares)]:
        shares[at] += 1
    return shares
