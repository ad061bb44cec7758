"""Files to try the tools with: the packaged slices of genomes, calls and labels made from them."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import numpy as np

from mamba_bio_audio.files.folders import Maker, new_folder
from mamba_bio_audio.pipelines.dna.sources import demo_folder
from mamba_bio_audio.pipelines.draws import for_synthesis

# Too small to be split as the others are; no classifier of the others knows it.
STRANGER = "phage_lambda"
# Of the slice that calls are made for, and the classes of the table of labels.
GENOME, LABELLED = "human", ("fruit_fly", "human")
CALLS, FIRST_CALL = 20, 4000
PIECE, PIECES, SPACING = 200, 120, 1600


def write_examples(out: Path, *, force: bool = False) -> dict[str, str]:
    """Make the folder `out`; nothing is fetched, and every call writes the same.

    Args:
        out: new or empty, or with `force` made by an earlier call.

    Returns:
        What lies in it: name, and what it is.

    Raises:
        InputError: `out` holds something else.
    """
    slices = sorted(Path(demo_folder()).glob("*.fa.gz"))
    with new_folder(out, Maker("prepare examples"), force=force) as folder:
        (folder / "genomes").mkdir()
        for path in slices:
            shutil.copyfile(path, folder / ("" if path.name.startswith(STRANGER) else "genomes") / path.name)
        text = {path.name.removesuffix(".fa.gz"): gzip.decompress(path.read_bytes()).decode("ascii") for path in slices}
        (folder / "genome.fa").write_text(text[GENOME], encoding="ascii", newline="\n")
        (folder / "calls.vcf").write_text(_calls(text[GENOME]), encoding="ascii", newline="\n")
        (folder / "splits.bed").write_text(_splits(text[GENOME]), encoding="ascii", newline="\n")
        (folder / "labels.tsv").write_text(_labels(text), encoding="ascii", newline="\n")
    return {
        "genomes/": f"slices of {len(slices) - 1} genomes, a file each: a class each for a classifier",
        f"{STRANGER}.fa.gz": "a genome of another kind",
        "genome.fa": f"the {GENOME} slice, plain, as genome browsers open it",
        "calls.vcf": f"{CALLS} made-up variants of it; they mean nothing",
        "splits.bed": "a split of it into training, validation and test",
        "labels.tsv": f"{PIECES * len(LABELLED)} pieces of {PIECE} bases: sequence, label (which slice), group",
    }


def _letters(fasta: str) -> tuple[str, str]:
    header, _, rest = fasta.partition("\n")
    return header[1:].split()[0], rest.replace("\n", "")


def _calls(fasta: str) -> str:
    """Substitutions at equal distances, every fourth a base deleted or inserted instead."""
    record, letters = _letters(fasta)
    draws = for_synthesis(0)
    lines = ["##fileformat=VCFv4.2", f"##contig=<ID={record},length={len(letters)}>"]
    lines += ["\t".join(("#CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO"))]
    step = (len(letters) - 2 * FIRST_CALL) // CALLS
    for number in range(CALLS):
        at = FIRST_CALL + number * step
        base = letters[at].upper()
        other = str(draws.choice([letter for letter in "ACGT" if letter != base]))
        reference, alternative = base, other
        if number % 4 == 3:
            reference, alternative = (letters[at : at + 2].upper(), base) if number % 8 == 3 else (base, base + other)
        lines.append("\t".join((record, str(at + 1), ".", reference, alternative, ".", ".", ".")))
    return "\n".join(lines) + "\n"


def _splits(fasta: str) -> str:
    record, letters = _letters(fasta)
    ends = [0, int(0.7 * len(letters)), int(0.85 * len(letters)), len(letters)]
    rows = zip(ends, ends[1:], ("train", "valid", "test"), strict=False)
    return "".join(f"{record}\t{start}\t{end}\t{split}\n" for start, end, split in rows)


def _labels(slices: dict[str, str]) -> str:
    """Pieces of either slice; those of one stretch share a group, so that a split never divides it."""
    rows = ["sequence\tlabel\tgroup"]
    for label in LABELLED:
        letters = _letters(slices[label])[1].upper()
        for start in (np.arange(PIECES) * SPACING).tolist():
            rows.append(f"{letters[start : start + PIECE]}\t{label}\t{label}-{start // (10 * SPACING)}")
    return "\n".join(rows) + "\n"
