"""Batches of audio for training, windows for evaluation, and the numbers that describe a data set."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.audio.config import AudioDataConfig
from mamba_bio_audio.pipelines.audio.files import AudioFile, content_hash, list_files, open_files
from mamba_bio_audio.pipelines.audio.quantize import AudioCodec
from mamba_bio_audio.pipelines.audio.splits import INTERVALS_NAME, has_split_columns, read_splits, split_by_share
from mamba_bio_audio.pipelines.spans import Span, size_of
from mamba_bio_audio.pipelines.split_names import SPLITS
from mamba_bio_audio.pipelines.stream import StagedStream, Stretch, TrainingStream, loader, share
from mamba_bio_audio.pipelines.windows import EvaluationWindows, Windows, evenly_spaced, tile

IGNORED = -100
# With more files, results per file would be a wall of numbers, and batches of many small groups slow.
_MAX_GROUPS = 16


class Recordings:
    """The files of a data set as levels."""

    def __init__(self, files: Sequence[AudioFile], codec: AudioCodec, gain: float = 1.0) -> None:
        self.files = list(files)
        self.number = {file.name: at for at, file in enumerate(files)}
        self.codec = codec
        self.gain = gain

    def audio(self, span: Span) -> NDArray[np.float32]:
        """Samples of a span, mono, at the codec's rate, multiplied by the gain."""
        samples = self.files[self.number[span.record]].read(span.start, span.end, self.codec.sample_rate_hz)
        return samples if self.gain == 1 else samples * np.float32(self.gain)

    def ids(self, span: Span) -> NDArray[np.uint8 | np.int16]:
        """Levels of a span; in the quantiser's variant `sashimi` it is scaled by itself."""
        return self.codec.encode(self.audio(span))


class AudioStream(TrainingStream):
    """Training windows of recordings."""

    def __init__(self, windows: Windows, recordings: Recordings, *, score_padding: bool = False, **stream: int) -> None:
        super().__init__(windows, **stream)
        self.windows = windows
        self.recordings = recordings
        self.score_padding = score_padding

    def read(self, samples: range) -> dict[str, torch.Tensor]:
        """Tokens and targets, (B, L)."""
        return pad_and_shift(
            [self.recordings.ids(self.windows[self.window_index(sample)]) for sample in samples],
            self.windows.length,
            self.recordings.codec.zero_level,
            self.score_padding,
        )


class EvaluationDataset(Dataset[dict[str, torch.Tensor]]):
    """Windows of a split, one by one: tokens (L,), targets (L,), and `group`, an index into `group_names`."""

    def __init__(self, windows: Windows, recordings: Recordings) -> None:
        self.windows = windows
        self.recordings = recordings

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        span = self.windows[index]
        rows = pad_and_shift([self.recordings.ids(span)], self.windows.length, self.recordings.codec.zero_level)
        example = {name: row[0] for name, row in rows.items()}
        example["group"] = torch.tensor(
            self.recordings.number[span.record] if len(self.recordings.files) <= _MAX_GROUPS else 0
        )
        return example


class AudioDataModule(LightningDataModule):
    """Training batches and evaluation windows of recordings.

    Args:
        config: which data.
        length: samples per window, L.
        batch_size: windows per batch and rank.
        seed: of the order of training windows.
        start_sample: training samples (windows) already consumed, over all ranks; a resumed run continues with the
            next.
        rank, world_size: this process among those that train together.

    Attributes:
        codec: the quantiser.
        recordings, spans, windows: set by `setup()`; spans are those of each split.
        excluded: what was wrong with files left out, by name.
        skipped_windows: training windows left out because they are short.
        stretches: lengths to train at one after another, from where training goes on; empty is `length` throughout,
            from `start_sample` on.
    """

    recordings: Recordings
    spans: dict[str, list[Span]]
    windows: Windows

    def __init__(
        self,
        config: AudioDataConfig,
        *,
        length: int,
        batch_size: int,
        seed: int,
        start_sample: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__()
        if length < 1 or batch_size < 1 or not 0 <= rank < world_size or start_sample < 0 or not 0 <= seed < 2**63:
            raise ValueError(
                "needs length >= 1, batch_size >= 1, 0 <= rank < world_size, start_sample >= 0, 0 <= seed < "
                f"2^63; got {length}, {batch_size}, {rank} of {world_size}, {start_sample}, {seed}"
            )
        self.config = config
        self.length = length
        self.batch_size = batch_size
        self.seed = seed
        self.start_sample = start_sample
        self.rank = rank
        self.world_size = world_size
        self.codec = AudioCodec(config.bits, config.quantizer, config.variant, config.sample_rate_hz)
        self.excluded: dict[str, str] = {}
        self.skipped_windows = 0
        self.split_source = ""
        self.stretches: Sequence[Stretch] = ()
        self._evaluation: dict[str, EvaluationWindows] = {}
        self._ready = False

    @property
    def corpus(self) -> Self:
        """What is read; batching will part from it."""
        return self

    def setup(self, stage: str | None = None) -> None:
        """Read the files' headers, read or make the splits, lay out the training windows, before workers start."""
        if self._ready:
            return
        config = self.config
        if not config.path:
            raise InputError(
                "data.path is not set: give an audio file, a list of them, or a folder. For example "
                "--set data.path=recordings"
            )
        files, self.excluded = open_files(list_files(config.path), config.bad_files)
        self.recordings = Recordings(files, self.codec, config.gain)
        sizes = {file.name: file.num_samples(config.sample_rate_hz) for file in files}
        if config.max_duration_s is not None:
            most = max(1, round(config.max_duration_s * config.sample_rate_hz))
            sizes = {name: min(size, most) for name, size in sizes.items()}
        listed = self._intervals()
        if listed is None:
            self.spans, made = split_by_share(sizes, config.valid_fraction, config.test_fraction)
            self.split_source = f"{made}: train, valid {config.valid_fraction:.0%}, test {config.test_fraction:.0%}"
        else:
            self.spans = read_splits(listed, sizes)
            self.split_source = listed
        self.windows, self.skipped_windows = self._training_windows(self.length)
        self._ready = True

    def _training_windows(self, length: int) -> tuple[Windows, int]:
        windows = tile(self.spans["train"], length, shared=0)
        kept = windows.select(windows.size == length) if self.config.drop_short else windows
        return kept, len(windows) - len(kept)

    def training_windows(self, length: int) -> Windows:
        """Windows of the training split at some length."""
        self.setup()
        return self.windows if length == self.length else self._training_windows(length)[0]

    @property
    def group_names(self) -> list[str]:
        """Names of the groups in evaluation batches: the files, or one for all when there are many."""
        self.setup()
        files = self.recordings.files
        return [file.name for file in files] if len(files) <= _MAX_GROUPS else ["all"]

    def train_dataloader(self) -> DataLoader[dict[str, torch.Tensor]]:
        """Endless batches of int64 tokens (B, L) and targets (B, L), -100 on padding."""
        self.setup()
        if not len(self.windows):
            raise InputError(
                f"data.path: no window to train on: {self.samples('train'):,} samples in the training split, "
                f"{self.skipped_windows:,} windows shorter than train.length {self.length} skipped. "
                "Check the files and the splits, or set data.drop_short=false."
            )
        stretches = self.stretches or [Stretch(self.length, self.batch_size, start_sample=self.start_sample)]
        streams = [(self._stream(stretch), stretch.batches) for stretch in stretches]
        return loader(StagedStream(streams), None, self.config.num_workers)

    def _stream(self, stretch: Stretch) -> AudioStream:
        return AudioStream(
            self.training_windows(stretch.length),
            self.recordings,
            batch_size=stretch.batch_size,
            seed=self.seed,
            score_padding=self.config.pad_target == "silence",
            start_sample=stretch.start_sample,
            rank=self.rank,
            world_size=self.world_size,
            stage=stretch.stage,
        )

    def evaluation_windows(self, split: str) -> EvaluationWindows:
        """Windows that score each sample of a split once."""
        self.setup()
        if split not in SPLITS:
            raise InputError(f"split is one of {', '.join(SPLITS)}, not {split!r}.")
        if split not in self._evaluation:
            self._evaluation[split] = EvaluationWindows(
                tile(self.spans[split], self.length, shared=0), self.samples(split)
            )
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
            raise InputError(f"the {split} split has no sample. Check the splits: {self.split_source}.")
        if max_tokens is not None:
            windows = windows.select(evenly_spaced(len(windows), max(1, max_tokens // self.length)))
        return EvaluationDataset(windows, self.recordings)

    def evaluation_dataloader(
        self, split: str, batch_size: int | None = None, max_tokens: int | None = None
    ) -> DataLoader[dict[str, torch.Tensor]]:
        """Batches {tokens (B, L), targets (B, L), group (B,)} of a split in fixed order; this rank's share of them.

        The shares are disjoint and complete, so sums over ranks are exact; keep Lightning's own sampler off.
        """
        dataset = self.evaluation_dataset(split, max_tokens)
        return loader(
            share(dataset, self.rank, self.world_size), batch_size or self.batch_size, self.config.num_workers
        )

    def evaluation_spans(self, split: str) -> list[Span]:
        """A split in samples."""
        self.setup()
        return list(self.spans[split])

    def samples(self, split: str) -> int:
        """Samples in a split."""
        return size_of(self.evaluation_spans(split))

    def splits_fingerprint(self) -> str:
        """SHA-256 of the splits, whatever the length of the windows."""
        self.setup()
        rows = sorted(f"{s.record}\t{s.start}\t{s.end}\t{split}\n" for split in SPLITS for s in self.spans[split])
        return hashlib.sha256("".join(rows).encode()).hexdigest()

    def summary(self) -> dict[str, Any]:
        """The data set in numbers, ready for JSON."""
        self.setup()
        files, rate = self.recordings.files, self.config.sample_rate_hz
        return {
            "files": content_hash(self.config.path or [], files),
            "recordings": len(files),
            "seconds": round(sum(file.frames / file.native_rate_hz for file in files), 3),
            "native_rates_hz": sorted({file.native_rate_hz for file in files}),
            "channels": sorted({file.channels for file in files}),
            "sample_rate_hz": rate,
            "quantizer": self.codec.description,
            "gain": self.config.gain,
            "split_source": self.split_source,
            "splits_sha256": self.splits_fingerprint(),
            "splits": {
                split: {
                    "files": len({span.record for span in self.spans[split]}),
                    "samples": self.samples(split),
                    "seconds": round(self.samples(split) / rate, 3),
                    "evaluation_windows": len(self.evaluation_windows(split).windows),
                }
                for split in SPLITS
            },
            "length": self.length,
            "training_windows": len(self.windows),
            "skipped_windows": self.skipped_windows,
            "pad_target": self.config.pad_target,
            "excluded_files": self.excluded,
        }

    def _intervals(self) -> str | None:
        """The list of splits, if there is one."""
        given, path = self.config.intervals, self.config.path
        if given is not None:
            given = os.path.expanduser(given)
            if not os.path.isfile(given):
                raise InputError(f"data.intervals: {given}: there is no such file.")
            return given
        if isinstance(path, str):
            inside = os.path.join(os.path.expanduser(path), INTERVALS_NAME)
            if os.path.isfile(inside) and has_split_columns(inside):
                return inside
        return None


def summary_rows(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """`AudioDataModule.summary()` as lines for people: (what, value)."""
    rates = ", ".join(f"{rate:,}" for rate in summary["native_rates_hz"])
    rows = [
        ("recordings", f"{summary['recordings']:,}, {_duration(summary['seconds'])}"),
        ("rate", f"{summary['sample_rate_hz']:,} Hz (recorded at {rates} Hz)"),
        ("quantiser", summary["quantizer"]),
        ("split by", summary["split_source"]),
    ]
    for split in SPLITS:
        counts = summary["splits"][split]
        rows.append((split, f"{counts['files']:,} recordings, {_duration(counts['seconds'])}"))
    if summary["excluded_files"]:
        rows.append(("excluded files", f"{len(summary['excluded_files']):,}"))
    if "training_windows" in summary:
        skipped = f", {summary['skipped_windows']:,} short ones skipped" if summary["skipped_windows"] else ""
        rows.append(("training windows", f"{summary['training_windows']:,} of {summary['length']:,}{skipped}"))
    return rows


def _duration(seconds: float) -> str:
    return f"{seconds:,.1f} s" if seconds < 120 else f"{seconds / 60:,.1f} min"


def pad_and_shift(
    rows: Sequence[NDArray[np.uint8 | np.int16]], length: int, zero_level: int, score_padding: bool = False
) -> dict[str, torch.Tensor]:
    """Inputs zero, q0 .. q(L-2) and targets q0 .. q(L-1) of rows of up to L levels, padded on the right.

    Returns:
        tokens, targets: int64 (B, L); beyond a row's end the targets are -100, or with `score_padding` the zero level.
    """
    targets = np.full((len(rows), length), zero_level if score_padding else IGNORED, dtype=np.int64)
    tokens = np.full((len(rows), length), zero_level, dtype=np.int64)
    for target, token, values in zip(targets, tokens, rows, strict=True):
        target[: len(values)] = values
        token[1 : len(values) + 1] = values[: length - 1]
    return {"tokens": torch.from_numpy(tokens), "targets": torch.from_numpy(targets)}
