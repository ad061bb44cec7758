"""Batches of DNA for training, windows for evaluation, and the numbers that describe a data set."""

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.coverage import Coverage
from mamba_bio_audio.pipelines.dna.config import DnaDataConfig
from mamba_bio_audio.pipelines.dna.genome import Genome
from mamba_bio_audio.pipelines.dna.intervals import (
    chosen_spans,
    read_intervals,
    split_blocks,
    without_records,
)
from mamba_bio_audio.pipelines.dna.policies import TrainingWindows, training_windows
from mamba_bio_audio.pipelines.dna.sources import locate
from mamba_bio_audio.pipelines.dna.statistics import composition, describe, describe_contigs
from mamba_bio_audio.pipelines.dna.tokenizer import PAD, DnaTokenizer, N
from mamba_bio_audio.pipelines.dna.windows import GenomeWindows, evaluation_windows
from mamba_bio_audio.pipelines.draws import Draws
from mamba_bio_audio.pipelines.spans import Interval, Span, merge, shared_symbols, size_of, subtract
from mamba_bio_audio.pipelines.split_names import SPLITS
from mamba_bio_audio.pipelines.stream import (
    StagedStream,
    Stretch,
    TrainingStream,
    loader,
    share,
)
from mamba_bio_audio.pipelines.windows import Windows, evenly_spaced, union_of

IGNORED = -100


class DnaStream(TrainingStream):
    """Training windows of a genome; strand, place and scored repeats of sample i depend on (seed, stage, i) alone.

    Args:
        windows: of the training split.
        genome: that they lie in.
        config: how they are read.
        stream: of `TrainingStream`.
    """

    def __init__(self, windows: Windows, genome: Genome, config: DnaDataConfig, **stream: int) -> None:
        super().__init__(windows, **stream)
        self.windows = windows
        self.genome = genome
        self.config = config
        # Under weights: per genome its windows and how many of them an epoch takes.
        self._shares: list[tuple[NDArray[np.int32], int]] = []
        if config.weights is not None:
            groups = np.array([genome.genome_of(record) for record in windows.records], dtype=np.int32)
            members = [
                np.flatnonzero(groups[windows.record] == at).astype(np.int32) for at in range(len(genome.genomes))
            ]
            quotas = apportion(len(windows), [config.weights.get(name, 0.0) for name in genome.genomes])
            self._shares = list(zip(members, quotas, strict=True))

    def order(self, epoch: int) -> NDArray[np.int32]:
        """Windows of an epoch in their order; under weights each genome gives its share, going round its own windows."""
        if not self._shares:
            return super().order(epoch)
        taken = []
        for number, (own, quota) in enumerate(self._shares, start=1):
            at = epoch * quota
            while at < (epoch + 1) * quota:
                round_, first = divmod(at, len(own))
                last = min(len(own), first + (epoch + 1) * quota - at)
                taken.append(self.permutation(own, round_, number)[first:last])
                at += last - first
        return self.permutation(np.concatenate(taken), epoch)

    def is_reversed(self, sample: int) -> bool:
        """Is sample number i read from the opposite strand?"""
        if not self.config.reverse_complement:
            return False
        return bool(Draws.STRAND.bits(self.seed, sample, self.stage).random_raw() & 1)

    def span_of(self, sample: int) -> Span:
        """Where sample number i is read: its window, moved at random where the window policy lets it."""
        index = self.window_index(sample)
        span = self.windows[index]
        if self.windows.back is None or self.windows.ahead is None:
            return span
        back, ahead = int(self.windows.back[index]), int(self.windows.ahead[index])
        shift = int(Draws.PLACE.random(self.seed, sample, self.stage).integers(-back, ahead, endpoint=True))
        moved = Span(span.record, span.start + shift, span.end + shift)
        size = span.end - span.start
        unknown = int(self.genome.count_unknown(*moved))
        if unknown > self.config.max_unknown * size or size - unknown < 2:
            return span
        if self.config.case == "drop" and int(self.genome.count_lower(*moved)) > self.config.max_lower * size:
            return span
        return moved

    def tokens_of(self, sample: int) -> NDArray[np.uint8]:
        """Token ids of sample number i, (2 .. L + 1,)."""
        ids = self.genome.fetch(*self.span_of(sample))
        return self.genome.codec.reverse_complement(ids) if self.is_reversed(sample) else ids

    def unscored(self, sample: int) -> NDArray[np.bool_]:
        """Which bases of sample number i are not scored this time, because they are in lower case; (2 .. L + 1,)."""
        lower = self.genome.lower_case(*self.span_of(sample))
        lower &= Draws.CASE.random(self.seed, sample, self.stage).random(len(lower)) >= self.config.lower_weight
        return lower[::-1] if self.is_reversed(sample) else lower

    def read(self, samples: range) -> dict[str, torch.Tensor]:
        """Tokens and targets, (B, L)."""
        batch = pad_and_shift([self.tokens_of(sample) for sample in samples], self.windows.length)
        if self.config.case == "weight":
            for row, sample in zip(batch["targets"], samples, strict=True):
                unscored = torch.from_numpy(self.unscored(sample)[1:].copy())
                row[: len(unscored)][unscored] = IGNORED
        return batch


class EvaluationDataset(Dataset[dict[str, torch.Tensor]]):
    """Windows of a split, one by one: tokens (L,), targets (L,), and `group`, the genome file's number."""

    def __init__(self, windows: Windows, genome: Genome) -> None:
        self.windows = windows
        self.genome = genome
        self._groups = [genome.genome_of(record) for record in windows.records]

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        span = self.windows[index]
        example = {
            name: rows[0] for name, rows in pad_and_shift([self.genome.fetch(*span)], self.windows.length).items()
        }
        example["group"] = torch.tensor(self._groups[self.windows.record[index]])
        return example


class DnaDataModule(LightningDataModule):
    """Training batches and evaluation windows of a genome.

    Args:
        config: which data.
        length: inputs per window, L; a window reads up to L + 1 bases.
        batch_size: windows per batch and rank.
        seed: of the order of training windows and their strands.
        start_sample: training samples already consumed, over all ranks; a resumed run continues with the
            next.
        rank, world_size: this process among those that train together.
        progress: called with (what, bytes read, bytes in all) while files are indexed for the first time.

    Attributes:
        codec: the tokeniser.
        genome, intervals: set by `setup()`; under `data.shared_bases` drop and trim, intervals of train and valid
            without the bases of a later split.
        laid_out: the training windows with the count of those left out, set by `setup()`.
        stretches: lengths to train at one after another, from where training goes on; empty is `length` throughout,
            from `start_sample` on.
    """

    genome: Genome
    intervals: list[Interval]
    laid_out: TrainingWindows

    def __init__(
        self,
        config: DnaDataConfig,
        *,
        length: int,
        batch_size: int,
        seed: int,
        start_sample: int = 0,
        rank: int = 0,
        world_size: int = 1,
        progress: Callable[[str, int, int | None], None] | None = None,
    ) -> None:
        super().__init__()
        if length < 1 or batch_size < 1 or not 0 <= rank < world_size or start_sample < 0 or not 0 <= seed < 2**63:
            raise ValueError(
                "needs length >= 1, batch_size >= 1, 0 <= rank < world_size, start_sample >= 0, 0 <= seed < "
                "2^63; got "
                f"{length}, {batch_size}, {rank} of {world_size}, {start_sample}, {seed}"
            )
        self.config = config
        self.length = length
        self.batch_size = batch_size
        self.seed = seed
        self.start_sample = start_sample
        self.rank = rank
        self.world_size = world_size
        self.progress = progress
        self.codec = DnaTokenizer()
        self.split_source = ""
        self.shared: dict[str, int] = {}
        self.stretches: Sequence[Stretch] = ()
        self._evaluation: dict[str, GenomeWindows] = {}
        self._ready = False

    @property
    def corpus(self) -> Self:
        """What is read; batching will part from it."""
        return self

    def setup(self, stage: str | None = None) -> None:
        """Index the files, read or make the splits, lay out the training windows, before workers start."""
        if self._ready:
            return
        config = self.config
        source = locate(config.path, config.intervals)
        self.genome = source.open(self.progress)
        # Workers get a copy of this object, and a callback need not be copied.
        self.progress = None
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
                "what it was trained on. Correct the intervals, or choose data.shared_bases: drop, trim or allow."
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
                    f"{', '.join(self.genome.genomes)} (file names without FASTA suffixes)."
                )
        self.laid_out = self._training_windows(self.length)
        self.shared |= self.laid_out.shared_bases
        self._ready = True

    def _training_windows(self, length: int) -> TrainingWindows:
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

    @property
    def windows(self) -> Windows:
        """Windows of the training split at `length`."""
        return self.laid_out.windows

    def training_windows(self, length: int) -> Windows:
        """Windows of the training split at some length."""
        self.setup()
        return self.windows if length == self.length else self._training_windows(length).windows

    def train_dataloader(self) -> DataLoader[dict[str, torch.Tensor]]:
        """Endless batches of int64 tokens (B, L) and targets (B, L), -100 on padding and unknown bases."""
        self.setup()
        if not len(self.windows):
            raise InputError(
                f"data.path: no window to train on: {self.bases('train'):,} bases in the training split give "
                f"{self.laid_out.laid_out:,} windows; {self.laid_out.too_unknown:,} skipped because more than "
                f"{self.config.max_unknown:.0%} of their bases are not A, C, G or T (data.max_unknown), "
                f"{self.laid_out.dropped:,} because they hold bases of other splits (data.shared_bases). "
                "Check the file and the splits."
            )
        stretches = self.stretches or [Stretch(self.length, self.batch_size, start_sample=self.start_sample)]
        streams = [(self._stream(stretch), stretch.batches) for stretch in stretches]
        return loader(StagedStream(streams), None, self.config.num_workers)

    def _stream(self, stretch: Stretch) -> DnaStream:
        windows = self.training_windows(stretch.length)
        per_genome = self._per_genome(windows)
        for name, weight in (self.config.weights or {}).items():
            if weight > 0 and not per_genome[name]:
                raise InputError(
                    f"data.weights: {name} has no training window of {stretch.length:,} bases; give it the weight 0."
                )
        return DnaStream(
            windows,
            self.genome,
            self.config,
            batch_size=stretch.batch_size,
            seed=self.seed,
            start_sample=stretch.start_sample,
            rank=self.rank,
            world_size=self.world_size,
            stage=stretch.stage,
        )

    def _per_genome(self, windows: Windows) -> dict[str, int]:
        """Training windows of each genome."""
        groups = np.array([self.genome.genome_of(record) for record in windows.records], dtype=np.int64)
        counts = (
            np.bincount(groups[windows.record], minlength=len(self.genome.genomes)).tolist() if len(windows) else []
        )
        return dict(zip(self.genome.genomes, counts or [0] * len(self.genome.genomes), strict=True))

    def evaluation_windows(self, split: str) -> GenomeWindows:
        """Windows that score each base of a split's union once, with the counts of what is not scored."""
        self.setup()
        if split not in SPLITS:
            raise InputError(f"split is one of {', '.join(SPLITS)}, not {split!r}.")
        if split not in self._evaluation:
            self._evaluation[split] = evaluation_windows(self._of(split), self.genome, self.length)
        return self._evaluation[split]

    def evaluation_dataset(self, split: str, max_tokens: int | None = None) -> EvaluationDataset:
        """Examples of a split, always the same.

        Args:
            split: train, valid or test.
            max_tokens: keep only so many windows, evenly spaced, that their positions are at most this many
                (one at least).
        """
        windows = self.evaluation_windows(split).windows
        if not len(windows):
            raise InputError(f"the {split} split has no base that can be scored. Check {self.split_source}.")
        if max_tokens is not None:
            windows = windows.select(evenly_spaced(len(windows), max(1, max_tokens // self.length)))
        return EvaluationDataset(windows, self.genome)

    def evaluation_dataloader(
        self, split: str, batch_size: int | None = None, max_tokens: int | None = None
    ) -> DataLoader[dict[str, torch.Tensor]]:
        """Batches {tokens (B, L), targets (B, L), group (B,)} of a split in fixed order; this rank's share of
        them.

        The shares are disjoint and complete, so sums over ranks are exact; keep Lightning's own sampler off.
        """
        dataset = self.evaluation_dataset(split, max_tokens)
        return loader(
            share(dataset, self.rank, self.world_size), batch_size or self.batch_size, self.config.num_workers
        )

    def unread_dataset(
        self, split: str, train_length: int, part: Sequence[Span] | None = None
    ) -> EvaluationDataset | None:
        """The bases of a split, or of a part of it, that no training window of `train_length` holds, each scored once.

        None where there is nothing to tell apart: no training window holds any base of the split, or some holds each.
        """
        read = Coverage(union_of(self.training_windows(train_length)))
        own: list[Span] = [*self._of(split)] if part is None else list(part)
        if not read.shared(own):
            return None
        left = subtract(own, read.spans)
        windows = evaluation_windows(left, self.genome, self.length).windows
        return EvaluationDataset(windows, self.genome) if len(windows) else None

    def evaluation_spans(self, split: str) -> list[Span]:
        """The union of a split's intervals as (record, start, end)."""
        self.setup()
        return merge(self._of(split))

    def bases(self, split: str) -> int:
        """Bases in the union of a split's intervals."""
        return size_of(self.evaluation_spans(split))

    def splits_fingerprint(self) -> str:
        """SHA-256 of the intervals and their splits, whatever the length of the windows."""
        self.setup()
        rows = sorted(f"{i.record}\t{i.start}\t{i.end}\t{i.split}\n" for i in self.intervals)
        return hashlib.sha256("".join(rows).encode()).hexdigest()

    def summary(self) -> dict[str, Any]:
        """The data set in numbers, ready for JSON."""
        self.setup()
        splits: dict[str, dict[str, int | str]] = {}
        for split in SPLITS:
            evaluation = self.evaluation_windows(split)
            splits[split] = {
                "intervals": len(self._of(split)),
                "bases": evaluation.symbols,
                "scored_bases": evaluation.scored,
                "unknown_bases": evaluation.unknown,
                "first_of_record_bases": evaluation.first_of_record,
                "evaluation_windows": len(evaluation.windows),
                "evaluation_windows_sha256": evaluation.windows.fingerprint(),
            }
        return {
            **describe(self.genome),
            **describe_contigs(self.genome, self._contigs, self.contigs),
            "split_source": self.split_source,
            "splits": splits,
            "splits_sha256": self.splits_fingerprint(),
            "shared_bases": self.shared,
            "length": self.length,
            "training_windows": len(self.windows),
            "window_policy": self.config.windows,
            "laid_out_windows": self.laid_out.laid_out,
            "clean_windows": self.laid_out.clean,
            "slid_windows": self.laid_out.slid,
            "shared_policy": self.config.shared_bases,
            "dropped_windows": self.laid_out.dropped,
            "trimmed_windows": self.laid_out.trimmed,
            "skipped_windows": self.laid_out.too_unknown,
            "lower_windows": self.laid_out.too_lower,
            "windows_per_genome": self._per_genome(self.windows),
            "weights": self.config.weights,
            "case": self.config.case,
            "lower_weight": self.config.lower_weight if self.config.case == "weight" else None,
            "max_lower": self.config.max_lower if self.config.case == "drop" else None,
            "max_unknown": self.config.max_unknown,
            "reverse_complement": self.config.reverse_complement,
            "composition": composition(self.genome, self.evaluation_spans("train")),
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


def pad_and_shift(rows: list[NDArray[np.uint8]], length: int) -> dict[str, torch.Tensor]:
    """Tokens s0 .. s(L-1) and targets s1 .. sL of rows of up to L + 1 ids, padded on the right.

    Returns:
        tokens, targets: int64 (B, L); targets are -100 where the next base is unknown or there is none.
    """
    ids = np.full((len(rows), length + 1), PAD, dtype=np.uint8)
    for row, values in zip(ids, rows, strict=True):
        row[: len(values)] = values
    wide = ids.astype(np.int64)
    # A full row's last base is a target only; a short row's last base keeps its place as an input.
    tokens, targets = wide[:, :-1].copy(), wide[:, 1:].copy()
    targets[(targets == PAD) | (targets == N)] = IGNORED
    return {"tokens": torch.from_numpy(tokens), "targets": torch.from_numpy(targets)}
