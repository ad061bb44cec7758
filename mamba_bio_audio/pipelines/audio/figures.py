"""Figures of audio: waveforms and spectrograms."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mamba_bio_audio.files import atomic_path


def spectrograms(clips: Sequence[tuple[str, NDArray[np.floating]]], rate_hz: int, out: Path) -> None:
    """Draw each clip's waveform above its spectrogram (dB below the clip's loudest point), clips side by side.

    Args:
        clips: (title, samples in [-1, 1]) of each clip.
        rate_hz: sample rate of all clips.
        out: PNG file to write.
    """
    from matplotlib.figure import Figure
    from scipy.signal import spectrogram

    figure = Figure(figsize=(max(5, 4.5 * len(clips)), 5), layout="constrained")
    axes = figure.subplots(2, len(clips), squeeze=False, height_ratios=[1, 2])
    for column, (title, audio) in enumerate(clips):
        wave, picture = axes[0][column], axes[1][column]
        wave.plot(np.arange(len(audio)) / rate_hz, audio, linewidth=0.4)
        wave.set(title=title, ylim=(-1, 1), xlim=(0, len(audio) / rate_hz))
        window = min(512, len(audio))
        frequency, time, power = spectrogram(audio, rate_hz, nperseg=window, noverlap=window * 3 // 4)
        level = 10 * np.log10(np.maximum(power, 1e-12))
        picture.pcolormesh(time, frequency, level, vmin=level.max() - 80, vmax=level.max(), shading="auto")
        picture.set(xlabel="s", ylabel="Hz" if column == 0 else "", xlim=(0, len(audio) / rate_hz))
    with atomic_path(out) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
