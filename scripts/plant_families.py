"""Make the positive control of species classification: FASTA with a repeat family of its own planted in every class.

For four apes, 60 Mb, in half a minute:

    python scripts/plant_families.py data/apes/*/chr22_epo.fa.gz --out runs/planted

The class of a file is the name of its folder. The headers stay, so `split=` goes on dividing the loci.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.synthetic.families import plant_files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FASTA", help="one per class, each in its own folder")
    parser.add_argument("--out", type=Path, required=True, help="folder to make; give it as data.path")
    parser.add_argument("--bases", type=int, default=300, help="length of a family (default 300)")
    parser.add_argument("--spacing", type=float, default=20_000, help="mean distance of copies (default 20000)")
    parser.add_argument("--divergence", type=float, default=0.1, help="share of exchanged bases (default 0.1)")
    parser.add_argument("--one-strand", action="store_true", help="all copies on the given strand")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--force", action="store_true", help="write into a folder that is not empty")
    given = parser.parse_args()
    files = {path.absolute().parent.name: path for path in given.files}
    if len(files) < len(given.files):
        parser.error("two files lie in folders of one name; the folder's name is the class")
    try:
        manifest = plant_files(
            files,
            given.out,
            bases=given.bases,
            spacing=given.spacing,
            divergence=given.divergence,
            both_strands=not given.one_strand,
            seed=given.seed,
            force=given.force,
        )
    except InputError as error:
        sys.exit(f"plant_families: {error}")
    for name, row in manifest["classes"].items():
        print(f"{name:<16}{row['records']:>6,} records {row['bases']:>12,} bases {row['copies']:>7,} copies")
    print("highest accuracy " + ", ".join(f"{int(n):,}: {value:.3f}" for n, value in manifest["ceiling"].items()))


if __name__ == "__main__":
    main()
