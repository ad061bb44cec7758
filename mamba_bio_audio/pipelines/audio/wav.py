"""The header of a WAV file that is still growing, or of an endless stream.

PCM, 16 bit, mono (IBM & Microsoft, Multimedia Programming Interface and Data Specifications 1.0, 1991). Rewritten
after every block, so that a file whose writer was killed plays up to its last block.
"""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

HEADER_BYTES = 44
SAMPLE_BYTES = 2
# The sizes in the header have 32 bits.
MAX_SAMPLES = (2**32 - 1 - HEADER_BYTES) // SAMPLE_BYTES
# Both sizes in the header of a stream whose end is not known, as players and ffmpeg understand them.
OPEN = 2**32 - 1


def header(samples: int | None, rate_hz: int) -> bytes:
    """The first 44 bytes of a file with this many samples; None for a stream that has no end yet."""
    data = OPEN if samples is None else samples * SAMPLE_BYTES
    return struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        b"RIFF",
        OPEN if samples is None else HEADER_BYTES - 8 + data,
        b"WAVE",
        b"fmt ",
        16,
        1,
        1,
        rate_hz,
        rate_hz * SAMPLE_BYTES,
        SAMPLE_BYTES,
        8 * SAMPLE_BYTES,
        b"data",
        data,
    )


def pcm(audio: NDArray[np.floating]) -> bytes:
    """Samples in [-1, 1] as little-endian 16-bit integers; values outside are clipped."""
    return np.clip(np.rint(np.asarray(audio, np.float64) * 32767), -32768, 32767).astype("<i2").tobytes()
