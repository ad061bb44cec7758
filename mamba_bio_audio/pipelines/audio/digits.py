"""Clips of spoken digits (SC09) with their labels, as a judge of generated digits is trained and asked on them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.audio.speech_commands import DIGITS, SPEECH_COMMANDS
from mamba_bio_audio.pipelines.scores import Digits
from mamba_bio_audio.pipelines.spans import Span
from mamba_bio_audio.pipelines.split_names import SPLITS

CLIP_SAMPLES, RATE_HZ = 16_000, 16_000


def one_second(audio: NDArray[np.floating], size: int = CLIP_SAMPLES) -> NDArray[np.float32]:
    """A clip cut or padded with silence to 16,000 samples."""
    clip = np.zeros(size, np.float32)
    clip[: len(audio)] = audio[:size]
    return clip


def judged(audio: NDArray[np.floating], rate_hz: int) -> NDArray[np.float32]:
    """A clip as the judge hears it: 16,000 samples at 16 kHz, of whatever rate it is."""
    if rate_hz != RATE_HZ:
        import torch

        from mamba_bio_audio.pipelines.audio.resampling import resampler

        audio = resampler(rate_hz, RATE_HZ)(torch.from_numpy(np.array(audio, np.float32))).numpy()
    return one_second(audio)


def digits(data: Any) -> Digits:
    """The clips of every split.

    Raises:
        InputError: the recordings are not in folders named after digits.
    """
    found = {split: labelled_clips(data, split) for split in SPLITS}
    return Digits(
        {split: clips for split, (clips, _) in found.items()},
        {split: labels for split, (_, labels) in found.items()},
        _differences(data),
    )


def labelled_clips(data: Any, split: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The clips of a split as (n, 16000), and which digit each is, by the name of its folder."""
    recordings, rate = data.corpus.recordings, data.codec.sample_rate_hz
    clips, labels = [], []
    for span in data.corpus.spans(split):
        name = span.record
        word = name.split("/")[-2] if "/" in name else ""
        if word not in DIGITS:
            raise InputError(f"--metrics sc09 needs clips in folders named {', '.join(DIGITS)}, got {name}")
        end = min(span.end, span.start + rate * CLIP_SAMPLES // RATE_HZ)
        clips.append(judged(recordings.audio(Span(span.record, span.start, end)), rate))
        labels.append(DIGITS.index(word))
    if not clips:
        raise InputError(f"--metrics sc09 needs clips in train, valid and test, got none in the {split} split")
    return np.stack(clips), np.array(labels, np.int64)


def _differences(data: Any) -> list[str]:
    """Why scores of these clips are not those of the published table."""
    reasons = ["the judge was trained here, not the published one"]
    described = data.summary()["splits"]
    counts = {split: described[split]["files"] for split in SPLITS}
    if counts not in [release.clips for release in SPEECH_COMMANDS.values()]:
        reasons.append(
            f"the clips are not SC09: {counts['train']:,} train, {counts['valid']:,} valid, {counts['test']:,} test"
        )
    if data.codec.variant != "sashimi":
        reasons.append(f"the bits are those of {data.codec.description}, the published ones of sashimi")
    return reasons
