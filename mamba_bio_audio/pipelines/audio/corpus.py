"""Recordings as a corpus: splits, windows that tile them, and how they are read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.audio.augment import faster, pitched
from mamba_bio_audio.pipelines.audio.config import AudioDataConfig
from mamba_bio_audio.pipelines.audio.files import AudioFile, content_hash, list_files, open_files
from mamba_bio_audio.pipelines.audio.labels import class_and_tags, split_by_class
from mamba_bio_audio.pipelines.audio.quantize import AudioCodec
from mamba_bio_audio.pipelines.audio.resampling import RESAMPLER
from mamba_bio_audio.pipelines.audio.splits import INTERVALS_NAME, has_split_columns, read_splits, split_by_share
from mamba_bio_audio.pipelines.corpus import Corpus, Example, Ids, Sample, begun
from mamba_bio_audio.pipelines.draws import Draws
from mamba_bio_audio.pipelines.spans import Span, size_of
from mamba_bio_audio.pipelines.split_names import SPLITS
from mamba_bio_audio.pipelines.windows import Windows, move, tile, with_room

# With more files, results per file would be a wall of numbers, and batches of many small groups slow.
_MAX_GROUPS = 16
# Share of training windows that do not show their class, so that a model also generates and scores without one.
_HIDDEN = 0.1


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


class AudioCorpus(Corpus):
    """Recordings and their splits.

    Args:
        config: which data, and how they are read.
        length: samples per window, L.

    Attributes:
        recordings: the files.
        excluded: what was wrong with files left out, by name.
        skipped_windows: training windows left out because they are short.
    """

    def __init__(self, config: AudioDataConfig, *, length: int) -> None:
        super().__init__(AudioCodec.of(config), length)
        self.config = config
        if not config.path:
            raise InputError(
                "data.path is not set: give an audio file, a list of them, or a folder. For example "
                "--set data.path=recordings"
            )
        files, self.excluded = open_files(list_files(config.path), config.bad_files)
        self.recordings = Recordings(files, self.codec, config.gain)
        self.files = [file.path for file in files]
        if len(files) <= _MAX_GROUPS:
            self.groups = [file.name for file in files]
        sizes = {file.name: self._size(file) for file in files}
        listed = self._intervals()
        if listed is None:
            self._spans, made = split_by_share(sizes, config.valid_fraction, config.test_fraction)
            self.split_source = f"{made}: train, valid {config.valid_fraction:.0%}, test {config.test_fraction:.0%}"
        else:
            whole = {file.name: file.num_samples(config.sample_rate_hz) for file in files}
            self._spans = _begun(read_splits(listed, whole, config.sample_rate_hz), sizes, listed)
            self.split_source = listed
        self.skipped_windows = self._skipped()
        self._class_of: dict[str, int] = {}
        # Noise is another matter: only inputs have it.
        keys = ("gain_db", "polarity", "speed", "pitch", "shift_s")
        self._changed = any(getattr(config, f"augment_{key}") for key in keys)

    def spans(self, split: str) -> list[Span]:
        """Samples of a split."""
        return self._spans[split]

    def fetch(self, span: Span) -> NDArray[np.uint8 | np.int16]:
        """Levels of a span."""
        return self.recordings.ids(span)

    def windows(self, length: int) -> Any:
        """Windows of the training split at some length."""
        lay_out = with_room if self.config.windows == "random" else tile
        windows = lay_out(self._spans["train"], length, shared=0)
        return windows.select(windows.size == length) if self.config.drop_short else windows

    def _skipped(self) -> int:
        return len(tile(self._spans["train"], self.length, shared=0)) - len(AudioCorpus.windows(self, self.length))

    def split_by_class(self, classes: Sequence[str]) -> None:
        """Make the splits anew: those of the folders, or the last recordings of each class."""
        sizes = {file.name: self._size(file) for file in self.recordings.files}
        shares = self.config.valid_fraction, self.config.test_fraction
        self._spans, self.split_source = split_by_class(self.recordings.files, sizes, classes, *shares)

    def condition(self, classes: Sequence[str] | str) -> None:
        """Show the class of each window from now on: the last folder of its file; recordings in other folders have none."""
        class_of = {file.name: class_and_tags(file)[0] for file in self.recordings.files}
        self.conditions = tuple(sorted(set(class_of.values()))) if isinstance(classes, str) else tuple(classes)
        if self._intervals() is None:
            self.split_by_class(sorted(set(class_of.values())))
            self.skipped_windows = self._skipped()
        numbers = {name: number for number, name in enumerate(self.conditions, 1)}
        self._class_of = {file: numbers.get(name, 0) for file, name in class_of.items()}

    def read(self, window: Span, ids: Ids | None = None) -> Example:
        """A window with the class of its recording, where classes are shown; `ids` are read in place of its own levels."""
        found = Example(begun(self.fetch(window) if ids is None else ids, self.codec.start_id))
        inputs = max(self.codec.vocab_size, self.codec.start_id + 1)
        return found._replace(shift=inputs * self._class_of.get(window.record, 0))

    def check_training(self) -> None:
        """Raise `InputError` when no window is left, or none of a class that is shown."""
        trained = {class_and_tags(self._file(span))[0] for span in self._spans["train"]} if self.conditions else set()
        if len(self.conditions) == 1:
            raise InputError(
                f"data.path: only one class, {self.conditions[0]}, but model.classes needs two or more, each a folder of "
                "recordings; set it to null"
            )
        for name in self.conditions:
            if name not in trained:
                raise InputError(
                    f"model.classes: no recording of {name!r} in the training split ({self.split_source}); there are "
                    f"{', '.join(sorted(trained))}; correct the list or the splits"
                )
        if not len(self.windows(self.length)):
            raise InputError(
                f"data.path: no window to train on: {size_of(self._spans['train']):,} samples in the training split, "
                f"{self.skipped_windows:,} windows shorter than train.length {self.length} skipped; "
                "check the files and the splits, or set data.drop_short=false"
            )

    def example(self, windows: Windows, sample: Sample) -> Example:
        """A training window; with `data.pad_target` silence what follows a short one is scored as silence."""
        window, ids = windows[sample.window], None
        if self.config.windows == "random":
            window = move(windows, sample.window, Draws.PLACE.random(sample.seed, sample.number, sample.stage))
        if self._changed:
            ids = self.codec.encode(self.augmented(self.recordings.audio(window), sample, windows.length))
        found = self.read(window, ids)
        if self.conditions and Draws.CLASS.random(sample.seed, sample.number, sample.stage).random() < _HIDDEN:
            found = found._replace(shift=0)
        if self.config.pad_target == "silence":
            found = self.filled(found, windows.length + 1)
        return found._replace(inputs=self.noisy(found.ids, sample)) if self.config.augment_noise else found

    def augmented(self, audio: NDArray[np.float32], sample: Sample, length: int) -> NDArray[np.float32]:
        """Samples of a training window, at most `length`: retimed, with their sign changed, louder or softer; none clips."""
        audio = self.retimed(audio, sample)[:length]
        draws = Draws.LOUDNESS.random(sample.seed, sample.number, sample.stage)
        negate, loudness = draws.integers(2), draws.uniform(-1, 1)
        gain = 10 ** (loudness * self.config.augment_gain_db / 20)
        gain = min(gain, max(1.0, 1 / max(float(np.abs(audio).max(initial=0)), 1e-9)))
        return audio * np.float32(-gain if negate and self.config.augment_polarity else gain)

    def retimed(self, audio: NDArray[np.float32], sample: Sample) -> NDArray[np.float32]:
        """Samples of a training window at another pitch, at another speed, and after silence."""
        config, rate = self.config, self.config.sample_rate_hz
        semitones, speed, later = Draws.TIMING.random(sample.seed, sample.number, sample.stage).uniform((-1, -1, 0), 1)
        if config.augment_pitch:
            audio = pitched(audio, semitones * config.augment_pitch, rate)
        if config.augment_speed:
            audio = faster(audio, 1 + speed * config.augment_speed)
        return np.pad(audio, (round(later * config.augment_shift_s * rate), 0))

    def noisy(self, ids: Ids, sample: Sample) -> Ids:
        """Levels of a training window (n,) with noise on all but the first, which it begins with."""
        draws = Draws.NOISE.random(sample.seed, sample.number, sample.stage)
        strength = draws.uniform(0, self.config.augment_noise)
        levels = ids[1:] + np.rint(strength * draws.standard_normal(len(ids) - 1)).astype(np.int64)
        return np.concatenate([ids[:1].astype(np.int64), levels.clip(0, self.codec.vocab_size - 1)])

    def filled(self, example: Example, size: int) -> Example:
        """An example with silence behind it, up to `size` symbols."""
        return example._replace(
            ids=np.pad(example.ids, (0, size - len(example.ids)), constant_values=self.codec.zero_level)
        )

    def group(self, window: Span) -> int:
        """Number of the file, where there are few."""
        return self.recordings.number[window.record] if len(self.groups) > 1 else 0

    def check_evaluation(self, split: str) -> None:
        """Raise `InputError` when there is nothing to evaluate on."""
        if not self._spans[split]:
            raise InputError(f"the {split} split has no sample; check the splits: {self.split_source}")

    def summary(self) -> dict[str, Any]:
        """The data set in numbers, ready for JSON."""
        files, rate = self.recordings.files, self.config.sample_rate_hz
        return {
            "files": content_hash(self.config.path or [], files),
            "recordings": len(files),
            "seconds": round(sum(file.frames / file.native_rate_hz for file in files), 3),
            "native_rates_hz": sorted({file.native_rate_hz for file in files}),
            "channels": sorted({file.channels for file in files}),
            "sample_rate_hz": rate,
            "resampler": RESAMPLER if any(file.native_rate_hz != rate for file in files) else None,
            "quantizer": self.codec.description,
            "gain": self.config.gain,
            "split_source": self.split_source,
            "splits_sha256": self.fingerprint(),
            "splits": {
                split: {
                    "files": len({span.record for span in self.spans(split)}),
                    "samples": size_of(self.spans(split)),
                    "seconds": round(size_of(self.spans(split)) / rate, 3),
                    "evaluation_windows": len(tile(self.spans(split), self.length, shared=0)),
                }
                for split in SPLITS
            },
            **self._unlisted(),
            **({"conditions": list(self.conditions)} if self.conditions else {}),
            "length": self.length,
            "training_windows": len(self.windows(self.length)),
            "skipped_windows": self.skipped_windows,
            "pad_target": self.config.pad_target,
            "excluded_files": self.excluded,
        }

    def _unlisted(self) -> dict[str, Any]:
        """Recordings that are in no split, by their number and the first of them, where there are any."""
        listed = {span.record for split in SPLITS for span in self.spans(split)}
        names = [file.name for file in self.recordings.files if file.name not in listed]
        return {"unlisted_files": {"count": len(names), "first": names[0]}} if names else {}

    def _file(self, span: Span) -> AudioFile:
        return self.recordings.files[self.recordings.number[span.record]]

    def _intervals(self) -> str | None:
        """The list of splits, if there is one."""
        given, path = self.config.intervals, self.config.path
        if given is not None:
            given = os.path.expanduser(given)
            if not os.path.isfile(given):
                raise InputError(f"data.intervals: {given}: there is no such file")
            return given
        if isinstance(path, str):
            inside = os.path.join(os.path.expanduser(path), INTERVALS_NAME)
            if os.path.isfile(inside) and has_split_columns(inside):
                return inside
        return None

    def _size(self, file: AudioFile) -> int:
        """Samples of a file that are used."""
        config, size = self.config, file.num_samples(self.config.sample_rate_hz)
        if config.max_duration_s is None:
            return size
        return min(size, max(1, round(config.max_duration_s * config.sample_rate_hz)))


def _begun(listed: dict[str, list[Span]], sizes: dict[str, int], path: str) -> dict[str, list[Span]]:
    """What `data.max_duration_s` leaves of listed samples."""
    for span in (span for own in listed.values() for span in own):
        if span.start >= sizes[span.record]:
            raise InputError(
                f"{path}: samples {span.start} to {span.end} of {span.record} lie beyond data.max_duration_s, of which "
                f"{sizes[span.record]} are used; choose more, or other splits"
            )
    return {
        split: [Span(span.record, span.start, min(span.end, sizes[span.record])) for span in own]
        for split, own in listed.items()
    }


def summary_rows(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """`AudioCorpus.summary()` as lines for people: (what, value)."""
    rates = ", ".join(f"{rate:,}" for rate in summary["native_rates_hz"])
    rows = [
        ("recordings", f"{summary['recordings']:,}, {_duration(summary['seconds'])}"),
        ("rate", f"{summary['sample_rate_hz']:,} Hz (recorded at {rates} Hz)"),
        ("quantiser", summary["quantizer"]),
        ("split by", summary["split_source"]),
    ]
    for split in SPLITS:
        counts = summary["splits"][split]
        plural = "s" * (counts["files"] != 1)
        rows.append((split, f"{counts['files']:,} recording{plural}, {_duration(counts['seconds'])}"))
    if unlisted := summary.get("unlisted_files"):
        such = "s, such as" if unlisted["count"] > 1 else ":"
        rows.append(("in no split", f"{unlisted['count']:,} recording{such} {unlisted['first']}"))
    if summary["excluded_files"]:
        rows.append(("excluded files", f"{len(summary['excluded_files']):,}"))
    if "conditions" in summary:
        rows.append(("classes", ", ".join(summary["conditions"])))
    if "training_windows" in summary:
        skipped = f", {summary['skipped_windows']:,} short ones skipped" if summary["skipped_windows"] else ""
        rows.append(("training windows", f"{summary['training_windows']:,} of {summary['length']:,}{skipped}"))
    return rows


def _duration(seconds: float) -> str:
    return f"{seconds:,.1f} s" if seconds < 120 else f"{seconds / 60:,.1f} min"
