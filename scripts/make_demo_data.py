"""Cut the packaged demo genomes from whole ones: `python scripts/make_demo_data.py --data FOLDER`.

Writes mamba_bio_audio/pipelines/dna/demo/*.fa.gz, the same bytes every time. Sources and licences: NOTICE.
"""

import argparse
import gzip
from pathlib import Path
from typing import NamedTuple

from Bio.bgzf import BgzfWriter

ROOT = Path(__file__).resolve().parent.parent
LINE_BASES = 80


class Slice(NamedTuple):
    """A stretch of one record: `start` is 0-based there, `origin` is its first base's position, 1-based."""

    output: str
    source: str
    record: str
    start: int
    bases: int
    chromosome: str
    origin: int


SLICES = (
    Slice(
        "human",
        "human/hg19.chr3_42000000-44000000.fa.gz",
        "chr3:42000000-44000000",
        1_000_000,
        200_000,
        "chr3",
        42_000_000,
    ),
    Slice(
        "fruit_fly",
        "other_species/drosophila_melanogaster.chr2R_2000001-7000000.fa.gz",
        "chr2R:2000001-7000000",
        0,
        200_000,
        "chr2R",
        2_000_001,
    ),
    Slice(
        "e_coli",
        "other_species/escherichia_coli_536.NC_008253.fa.gz",
        "NC_008253.1",
        0,
        200_000,
        "NC_008253.1",
        1,
    ),
    Slice(
        "p_falciparum",
        "other_species/plasmodium_falciparum.MAL4_MAL12.fa.gz",
        "MAL4:1-1204112",
        200_000,
        200_000,
        "MAL4",
        1,
    ),
    Slice(
        "phage_lambda",
        "other_species/phage_lambda.NC_001416.fa.gz",
        "NC_001416.1",
        0,
        48_502,
        "NC_001416.1",
        1,
    ),
)


def read_record(path: Path, name: str) -> str:
    """The sequence of one record."""
    with gzip.open(path, "rt") as handle:
        records = handle.read().split(">")[1:]
    for text in records:
        header, _, sequence = text.partition("\n")
        if header.split()[0] == name:
            return sequence.replace("\n", "")
    raise SystemExit(f"{path}: no record {name}")


def main() -> None:
    """Write every slice."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of the source files")
    parser.add_argument("--out", type=Path, default=ROOT / "mamba_bio_audio" / "pipelines" / "dna" / "demo")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for cut in SLICES:
        sequence = read_record(arguments.data / cut.source, cut.record)[cut.start : cut.start + cut.bases]
        assert len(sequence) == cut.bases, (cut.output, len(sequence))
        first = cut.origin + cut.start
        lines = [sequence[at : at + LINE_BASES] for at in range(0, len(sequence), LINE_BASES)]
        text = f">{cut.chromosome}:{first}-{first + cut.bases - 1}\n" + "\n".join(lines) + "\n"
        with BgzfWriter(str(arguments.out / f"{cut.output}.fa.gz"), "wb", compresslevel=9) as handle:
            handle.write(text.encode())
        print(f"{cut.output}.fa.gz: {cut.bases:,} bases of {cut.source}, {text[1 : text.index(chr(10))]}")


if __name__ == "__main__":
    main()
