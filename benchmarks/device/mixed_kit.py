"""Adds the multi-species genomes to .device/mixed/, in two bits a base (24 MB), with the intervals of all.

The human files themselves stay in .device/human (kit.sh); human42mb.sh links both into one folder where DATA names it.

    python benchmarks/device/mixed_kit.py FOLDER_OF_FASTA HUMAN/intervals.tsv
"""

import gzip
import sys
from pathlib import Path

import numpy as np

CODES = np.full(256, 255, dtype=np.uint8)
CODES[np.frombuffer(b"TCAG", dtype=np.uint8)] = range(4)


def records(path):
    """(name, codes of its bases) of every record of a gzipped FASTA."""
    for part in gzip.decompress(path.read_bytes()).split(b">")[1:]:
        head, _, body = part.partition(b"\n")
        codes = CODES[np.frombuffer(body.replace(b"\n", b""), dtype=np.uint8)]
        assert codes.max() < 4, (path, head)
        yield f"{path.name.split('.')[0]}:{head.split()[0].decode()}", codes


def packed(codes):
    """Four bases a byte."""
    rows = np.pad(codes, (0, -len(codes) % 4)).reshape(-1, 4)
    return (rows[:, 0] << 6 | rows[:, 1] << 4 | rows[:, 2] << 2 | rows[:, 3]).astype(np.uint8).tobytes()


def main():
    source, human = map(Path, sys.argv[1:])
    to = Path(".device/mixed")
    to.mkdir(parents=True, exist_ok=True)
    found = [record for path in sorted(source.glob("*.fa.gz")) for record in records(path)]
    at = 16 + sum(1 + len(name) + 4 for name, _ in found)
    directory, data, lines = [], [], []
    for name, codes in found:
        directory.append(bytes([len(name)]) + name.encode() + at.to_bytes(4, "little"))
        # No runs of N or of lower case.
        data.append(len(codes).to_bytes(4, "little") + bytes(12) + packed(codes))
        at += len(data[-1])
        lines.append(f"multispecies.2bit\t{name}\t0\t{len(codes)}\ttrain\n")
    header = b"".join(word.to_bytes(4, "little") for word in (0x1A412743, 0, len(found), 0))
    (to / "multispecies.2bit").write_bytes(header + b"".join(directory) + b"".join(data))
    (to / "intervals.tsv").write_text(human.read_text() + "".join(lines))
    print(f"{to}: {len(found)} records, {sum(len(codes) for _, codes in found):,} bases, {at / 1e6:.1f} MB")


main()
