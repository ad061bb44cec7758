"""Distance of generated audio from recordings, by the statistics of short frames, without labels or a judge.

    frame     32 mel bands over 64 ms in units of 10 dB down to -80 dB, and their change since the frame before (32 ms)
    distance  Frechet distance of the generated clips' frames and the recordings' (`pipelines/frechet.py`)

It tells whether the clips have the loudness, spectrum and short-time change of the recordings. It costs only the
generation of a few clips, so it is affordable at every validation. It misleads about everything longer than two frames:
words, notes, rhythm; and a model that copies its recordings scores best. With few clips it is noisy and too large:
compare only values of one run with the same number of clips.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from mamba_bio_audio.pipelines.frechet import frechet_distance

_MELS, _FLOOR = 32, 1e-8
_FRAME_S = 0.064


def frames(clips: Sequence[NDArray[np.float32]], rate_hz: int) -> NDArray[np.float64]:
    """Frames (n, 64) of clips in [-1, 1], each at least one sample long."""
    from torchaudio.transforms import MelSpectrogram

    size = 1 << round(np.log2(_FRAME_S * rate_hz))
    # At low sample rates the lowest bands are narrower than a frequency bin, and always empty.
    spectrum = MelSpectrogram(
        rate_hz, n_fft=size, hop_length=size // 2, n_mels=_MELS, power=2, normalized=True, pad_mode="constant"
    )
    found = []
    for clip in clips:
        level = torch.log10(spectrum(torch.from_numpy(np.asarray(clip, np.float32))).clamp(min=_FLOOR)).T.double()
        found.append(torch.cat([level, level.diff(dim=0, prepend=level[:1])], 1).numpy())
    return np.concatenate(found)


def frame_distance(generated: NDArray[np.float64], recorded: NDArray[np.float64]) -> float:
    """Frechet distance between two sets of frames, each of at least one frame."""
    # A single frame has a mean but no spread, just like the same frame twice.
    return frechet_distance(*(np.repeat(part, 2, 0) if len(part) == 1 else part for part in (generated, recorded)))
