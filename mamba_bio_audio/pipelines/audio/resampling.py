"""Resampling by a windowed sinc: torchaudio's, with the settings of resampy's "kaiser_best" (McFee 2016).

With the lower of the two Nyquist frequencies as 1, the gain is within 0.03 dB up to 0.9, and what lies beyond 1.02 is
suppressed by more than 130 dB; torchaudio's default (a Hann window of width 6) loses 2.4 dB at 0.9 and lets pass most of
what lies just beyond 1. Measured by benchmarks/bench_sound.py and tests/pipelines/audio/test_resampling.py.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

from mamba_bio_audio.errors import InputError

# Zero crossings on either side, cut-off, and shape of the Kaiser window.
_WIDTH, _ROLLOFF, _BETA = 64, 0.9475937167399596, 14.769656459379492
# For manifests: recordings that were prepared before this stood there were resampled with the default.
RESAMPLER = f"torchaudio sinc_interp_kaiser, width {_WIDTH}, rolloff {_ROLLOFF:.4f}, beta {_BETA:.4f}"
_MAX_KERNEL = 1 << 26


@lru_cache(maxsize=8)
def resampler(native_rate_hz: int, rate_hz: int, path: str = "") -> Any:
    """torchaudio's resampler, whose kernel is computed only once.

    Raises:
        InputError: the two rates have no short common period; names `path`.
    """
    common = math.gcd(native_rate_hz, rate_hz)
    if (native_rate_hz // common) * (rate_hz // common) > _MAX_KERNEL:
        raise InputError(
            f"{path}: resampling from {native_rate_hz} Hz to {rate_hz} Hz has no short period (greatest common divisor "
            f"{common}); resample it to a common rate first, or choose {native_rate_hz} Hz"
        )
    import torch
    from torchaudio.transforms import Resample

    # Single precision would place the taps only to about 1e-5 of a sample.
    return Resample(
        native_rate_hz,
        rate_hz,
        resampling_method="sinc_interp_kaiser",
        lowpass_filter_width=_WIDTH,
        rolloff=_ROLLOFF,
        beta=_BETA,
        dtype=torch.float64,
    ).float()
