"""Makes the data folders of two models from real data, which is not committed: `pretraining_data.py DATA OUT`.

    python scripts/pretraining_data.py DATA .device/pretrain

- `human56mb`: human sequence (42.4 Mb with its splits), the 30 contigs of `human_extra` and the training loci of chr22 of
  `apes` (human). Validation and test are those of the first part alone, so that losses compare with earlier models.
- `human56mb-microbes`: the same with `multispecies_pretrain`, of whose blocks 2 % are validation and 2 % test.

Training records that mostly repeat a sequence that anything here is tested on are left out: validation and test of the
human part, validation and test loci of the apes, the BRCA1 region, the LPA haplotypes. `leaks.json` says what share of each
of them training holds. Beside the folders stand recipes of 16 layers x 256, `human56mb-7m.yaml` and
`human56mb-microbes-7m.yaml`, for benchmarks/device/long_run.sh.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.dna.duplicates import find_duplicates, without
from mamba_bio_audio.pipelines.dna.genome import Genome
from mamba_bio_audio.pipelines.dna.intervals import read_intervals, split_blocks, write_intervals
from mamba_bio_audio.pipelines.dna.prepare import prepare_genome
from mamba_bio_audio.pipelines.dna.prepare_settings import GenomeSettings
from mamba_bio_audio.pipelines.spans import Interval, size_of
from mamba_bio_audio.plain_yaml import dump

NAMES = "human56mb", "human56mb-microbes"
LOCI, EXTRA = "human_chr22_loci", "human_extra_contigs"
# Of the training windows of the second folder, how many are human.
HUMAN_SHARE = 0.6
HELD_OUT = 0.02


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="holds dna, human_extra, apes, brca1_sge and multispecies_pretrain")
    parser.add_argument("out", type=Path, help="folder to make")
    given = parser.parse_args()
    try:
        make(given.data, given.out)
    except InputError as error:
        sys.exit(f"pretraining_data: {error}")


def make(data: Path, out: Path) -> None:
    """Copy the files, choose the intervals, prepare both folders, write their recipes, and say what there is."""
    human, microbes = out / "fasta-human", out / "fasta-microbes"
    copy({path.name: path for path in sorted((data / "dna" / "human").glob("hg*.fa.gz"))}, human)
    more = {EXTRA: data / "human_extra" / "ensembl_test_contigs.fa.gz", LOCI: data / "apes/human/chr22_epo.fa.gz"}
    copy({f"{name}.fa.gz": path for name, path in more.items()}, human)
    copy({path.name: path for path in sorted((data / "multispecies_pretrain").glob("*.fa.gz"))}, microbes)
    brca1 = data / "brca1_sge" / "BRCA1_megabase.GRCh38_chr17_42425000-43600000.fa.gz"
    haplotypes = data / "dna" / "human" / "LPA_locus.haplotypes.fa.gz"
    genome = Genome([str(path) for path in [*sorted(human.glob("*.gz")), brca1, haplotypes]])
    own = read_intervals(data / "dna" / "human" / "intervals.tsv", genome)
    loci = {name: list(records(genome, LOCI, f"split={name}")) for name in ("train", "val", "test")}
    train = [interval for interval in own if interval.split == "train"]
    train += as_split("train", [*records(genome, EXTRA), *loci["train"]])
    tested = {
        "human, validation": [interval for interval in own if interval.split == "valid"],
        "human, test": [interval for interval in own if interval.split == "test"],
        "apes, validation and test loci (human)": loci["val"] + loci["test"],
        "BRCA1 region": list(records(genome, brca1.name.removesuffix(".fa.gz"))),
        "LPA haplotypes": list(records(genome, haplotypes.name.removesuffix(".fa.gz"))),
    }
    held_out = [interval for rows in tested.values() for interval in as_split("test", rows)]
    found = find_duplicates(genome, train + held_out, leave_out=True)
    gone = [row for row in found.left_out if row.split == "train"]
    train = without(train, gone)
    leaks: dict[str, Any] = {"left_out": [{"record": row.record, "bases": row.bases} for row in gone]}
    for name, rows in tested.items():
        shared = find_duplicates(genome, train + as_split("test", rows))
        leaks[name] = {
            "bases": size_of(rows),
            "share_of_31mers_in_train": shared.shares["test"],
            "records_above_a_fifth": [f"{row.record}: {row.share:.1%}" for row in shared.records],
        }
    chosen = [*train, *(interval for interval in own if interval.split != "train")]
    (out / "leaks.json").write_text(json.dumps(leaks, indent=1) + "\n")
    print(json.dumps(leaks, indent=1))
    rows = write_intervals(chosen, genome)
    others = Genome([str(path) for path in sorted(microbes.glob("*.gz"))])
    blocks = split_blocks(others, seed=0, fractions={"valid": HELD_OUT, "test": HELD_OUT})
    prepare(out, NAMES[0], [human], rows)
    prepare(out, NAMES[1], [human, microbes], rows + write_intervals(blocks, others).split("\n", 1)[1])
    sizes = {
        name: sum(len(x) for x in chosen if x.split == "train" and of(genome, x) == name) for name in genome.genomes
    }
    share = HUMAN_SHARE / sum(sizes.values())
    weights = {name: round(bases * share, 6) for name, bases in sizes.items() if bases}
    bases = {
        name: sum(len(x) for x in blocks if x.split == "train" and of(others, x) == name) for name in others.genomes
    }
    weights |= {name: round(count * (1 - HUMAN_SHARE) / sum(bases.values()), 6) for name, count in bases.items()}
    recipe(out, NAMES[0], {})
    recipe(out, NAMES[1], {"weights": weights})


def copy(files: dict[str, Path], folder: Path) -> None:
    """Copy files under other names."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, path in files.items():
        shutil.copyfile(path, folder / name)


def records(genome: Genome, name: str, title: str = "") -> Iterable[Interval]:
    """Whole records of one file, those whose header says `title`."""
    for record, bases in genome.records.items():
        if genome.genomes[genome.genome_of(record)] == name and title in genome.title(record):
            yield Interval(record, 0, bases, "test")


def as_split(split: str, rows: Iterable[Interval]) -> list[Interval]:
    """The same intervals in another split."""
    return [Interval(row.record, row.start, row.end, split) for row in rows]


def of(genome: Genome, interval: Interval) -> str:
    """Name of the genome of an interval."""
    return genome.genomes[genome.genome_of(interval.record)]


def prepare(out: Path, name: str, folders: list[Path], rows: str) -> None:
    """A prepared folder with the given intervals; `mba prepare genome` compares its splits once more."""
    table = out / f"{name}.tsv"
    table.write_text(rows)
    settings = GenomeSettings(intervals=table, contigs=("all",))
    manifest = prepare_genome([str(folder) for folder in folders], out / name, settings, force=True)
    for split, counts in manifest["splits"].items():
        print(f"{name:<20}{split:<6}{counts['bases']:>13,} bases in {counts['intervals']:>6,} intervals")
    for split, share in manifest["duplicates"]["shares"].items():
        print(f"{name:<20}{split} found in train: {share:.2%} of its 31-mers")


def recipe(out: Path, name: str, data: dict[str, Any]) -> None:
    """A recipe for the folder; steps and what else depends on the budget are set by who trains."""
    keys = {"path": str(out / name), "windows": "random", "reverse_complement": True, "num_workers": 8}
    # The rate that gave the best loss of this size on the first part alone; a validation every 100 million bases.
    train = {"tokens_per_step": 131072, "lr": 3e-3, "validate_every": 763, "checkpoint_every": 763}
    values = {
        "name": f"{name}-7m",
        "extends": "dna/hg38@7m",
        "description": f"16 layers x 256 at 1,024 bases on {name}",
        "data": keys | data,
        "train": train,
    }
    (out / f"{name}-7m.yaml").write_text(dump(values))


if __name__ == "__main__":
    main()
