"""Splits of the chrX stretches in long intervals: `chrx_intervals.py FOLDER` writes FOLDER/intervals.tsv.

Train: three stretches whole (41.5 Mb). Validation and test: the halves of the fourth, 2.75 Mb each, so that windows
of 2^20 bases and contexts as long exist in both.
"""

import sys
from pathlib import Path

TRAIN = {
    "hg19.chrX_10788675-37098256": 26_309_582,
    "hg19.chrX_37148257-49242997": 12_094_741,
    "hg19.chrX_7673883-10738674": 3_064_792,
}
HELD_OUT, BASES = "hg19.chrX_2118239-7623882", 5_505_644


def main() -> None:
    """Write the file for the records as they are named in the FASTA."""
    folder = Path(sys.argv[1])

    def row(name: str, start: int, end: int, split: str) -> str:
        return f"{name}.fa.gz\t{record_of(folder / f'{name}.fa.gz')}\t{start}\t{end}\t{split}"

    rows = ["file\trecord\tstart0\tend\tsplit"]
    rows += [row(name, 0, bases, "train") for name, bases in TRAIN.items()]
    rows += [row(HELD_OUT, 0, BASES // 2, "valid"), row(HELD_OUT, BASES // 2, BASES, "test")]
    (folder / "intervals.tsv").write_text("\n".join(rows) + "\n")


def record_of(path: Path) -> str:
    """Name of the only record."""
    import gzip

    with gzip.open(path, "rt") as file:
        return file.readline()[1:].split()[0]


if __name__ == "__main__":
    main()
