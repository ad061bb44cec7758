"""What is wrong with the sound of a recording, though every sample can be decoded.

    silence          no sample beyond one step of 16 bits, or half of them
    cancellation     the mean of the channels is 20 dB below them: one is the other with its sign changed
    integer scale    samples beyond 4: floats that were meant as integers
    clipping         0.1 % of the samples lie beyond full scale, or in runs of equal ones at the recording's own peak
    DC               a mean of 0.1 % of full scale, and a tenth of the standard deviation
    level            a standard deviation below -60 dB of full scale

The limits are ours. Square waves and 8-bit sounds count as clipped; a finding says what to listen to, not what is wrong.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from mamba_bio_audio.pipelines.audio.decoding import Frames

_STEP = 2.0**-15
_CANCELLED, _INTEGERS, _CLIPPED, _SILENT = 0.1, 4.0, 1e-3, 0.5
_DC, _DC_OF_LEVEL, _QUIET = 1e-3, 0.1, 1e-3
# Equal samples below this are coarse steps of a quiet recording.
_LEAST_PEAK = 0.1


class Health:
    """Collects what is known of a recording, block by block; memory does not depend on its length.

    Args:
        channels: number of channels.
        mixed: whether their mean is taken, so that they can cancel each other out.
    """

    def __init__(self, channels: int, *, mixed: bool = True) -> None:
        self._mixed = mixed
        self._count = self._still = self._beyond = self._flat = 0
        self._peak = self._sum = self._squares = 0.0
        self._of_channels = np.zeros(channels)

    def add(self, frames: Frames, mono: Frames) -> None:
        """The next samples.

        Args:
            frames: shape (samples, channels).
            mono: what they are mixed to, shape (samples).
        """
        size = np.abs(frames)
        peak = float(size.max())
        if 0.99 * peak > self._peak:
            self._flat = 0
        self._peak = max(self._peak, peak)
        if self._peak >= _LEAST_PEAK:
            equal = (frames[1:-1] == frames[:-2]) & (frames[1:-1] == frames[2:])
            self._flat += int((equal & (size[1:-1] >= 0.99 * self._peak)).any(1).sum())
        self._beyond += int((size > 1).any(1).sum())
        self._count += len(mono)
        self._still += int((np.abs(mono) <= _STEP).sum())
        self._sum += float(mono.sum(dtype=np.float64))
        self._squares += float(np.square(mono, dtype=np.float64).sum())
        self._of_channels += np.square(frames, dtype=np.float64).sum(0)

    def report(self) -> dict[str, Any]:
        """The recording in numbers, and `findings`: a list of sentences, empty for a healthy one."""
        mean = self._sum / self._count
        level = math.sqrt(max(0.0, self._squares / self._count - mean**2))
        loudest = math.sqrt(self._of_channels.max() / self._count)
        clipped = max(self._beyond, self._flat) / self._count
        findings = []
        if self._mixed and math.sqrt(self._squares / self._count) < _CANCELLED * loudest and loudest > _STEP:
            findings.append(
                f"its channels cancel each other out when mixed ({_db(level / loudest)}); take one, as mba prepare audio "
                "--channels left does"
            )
        elif self._still == self._count:
            findings.append("silent")
        elif self._still > _SILENT * self._count:
            findings.append(f"{self._still / self._count:.0%} of it is silence")
        if self._peak > _INTEGERS:
            findings.append(
                f"samples up to {self._peak:,.0f} instead of 1, as of integers; divide them by 32,768 or 2^31"
            )
        elif clipped >= _CLIPPED:
            findings.append(
                f"clipped: {clipped:.1%} of the samples at the peak of {self._peak:.3f} or beyond full scale"
            )
        if abs(mean) >= max(_DC, _DC_OF_LEVEL * level):
            findings.append(f"a constant offset (DC) of {mean:.4f}; remove it with a high-pass filter")
        if _STEP < level < _QUIET:
            findings.append(f"very quiet ({_db(level)}); make it louder, or set data.gain")
        return {
            "level_db": round(20 * math.log10(max(level, 1e-9)), 2),
            "peak": round(self._peak, 5),
            "dc": round(mean, 6),
            "clipped_share": round(clipped, 6),
            "silent_share": round(self._still / self._count, 4),
            "findings": findings,
        }


def health_line(report: dict[str, Any]) -> str:
    """A report as one line for people."""
    return f"level {report['level_db']:.1f} dB, peak {report['peak']:.3g}: " + (
        "; ".join(report["findings"]) or "healthy"
    )


def _db(ratio: float) -> str:
    return f"{20 * math.log10(max(ratio, 1e-9)):.0f} dB"
