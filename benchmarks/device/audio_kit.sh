#!/usr/bin/env bash
# Adds the audio data of the GPU runs to .device/: `digits` (FSDD as 8 kHz FLAC in one archive, split by speaker and take: 10 MB,
# read at 16 kHz) and `piano` (34 MB). With .device/wheels both travel in one call: .device/wheels, .device/digits.tgz, .device/piano.
set -euo pipefail
cd "$(dirname "$0")/../.."
data=${2:?folder with sc09/fsdd_8k and piano/}
python=${PYTHON:-.venv/bin/python}
mkdir -p .device
case ${1:?digits or piano} in
  digits)
    "$python" - "$data/sc09/fsdd_8k" .device/digits.tgz <<'PY'
import io, sys, tarfile
from pathlib import Path

import soundfile

source, archive = map(Path, sys.argv[1:])
rows = ["file\tsplit\n"]
with tarfile.open(archive, "w:gz") as tar:
    def add(name: str, content: bytes) -> None:
        entry = tarfile.TarInfo(f"digits/{name}")
        entry.size = len(content)
        tar.addfile(entry, io.BytesIO(content))

    for path in sorted(source.glob("*/*.wav")):
        audio, rate = soundfile.read(path, dtype="int16")
        packed = io.BytesIO()
        soundfile.write(packed, audio, rate, format="FLAC", subtype="PCM_16", compression_level=1.0)
        name = f"{path.parent.name}/{path.stem}.flac"
        add(name, packed.getvalue())
        _, speaker, take = path.stem.split("_")
        # One speaker is never heard in training: test. Takes 5 to 9 of the others are validation.
        split = "test" if speaker == "theo" else "valid" if 5 <= int(take) <= 9 else "train"
        rows.append(f"{name}\t{split}\n")
    add("intervals.tsv", "".join(rows).encode())
PY
    ls -l .device/digits.tgz ;;
  piano)
    mkdir -p .device/piano
    cp "$data"/piano/*.flac .device/piano/
    ( printf 'file\tsplit\n'
      cd .device/piano && for file in *.flac; do
        case $file in
          scarlatti_k525.flac|bach_bwv858_prelude.flac) split=valid ;;
          debussy_estampes_no1.flac) split=test ;;
          *) split=train ;;
        esac
        printf '%s\t%s\n' "$file" "$split"
      done ) > .device/piano/intervals.tsv
    chmod -R u+w .device/piano
    du -sh .device/piano ;;
esac
