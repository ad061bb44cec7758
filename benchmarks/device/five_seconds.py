"""The first five seconds of the first ten clips of a folder, one after another with half a second of silence, as one Opus file.

    python3 benchmarks/device/five_seconds.py CLIPS FILE.ogg

CLIPS is a folder that `mba sample` wrote: chosen by number, so by seed.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import soundfile

# libsndfile's scale for Opus, from 256 down to 6 kbit/s; this is about 10.
_LEVEL = 0.984


def main(folder: Path, out: Path) -> None:
    paths = sorted(path for path in folder.iterdir() if path.suffix in (".flac", ".wav"))[:10]
    parts, rate = [], 0
    for path in paths:
        audio, rate = soundfile.read(path, dtype="float32", stop=5 * soundfile.info(path).samplerate)
        parts += [audio, np.zeros(rate // 2, np.float32)]
    soundfile.write(out, np.concatenate(parts[:-1]), rate, format="OGG", subtype="OPUS", compression_level=_LEVEL)
    print(f"{out}: {len(paths)} clips, {out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
