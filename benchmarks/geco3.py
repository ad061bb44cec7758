"""What the DNA compressor GeCo3 takes a base, of the validation and test loci, with the training bases as its reference.

    ulimit -v 8000000; nice -n 19 python benchmarks/geco3.py GeCo3 --data data/human --out FILE.csv

`GeCo3` is the program, built outside of this project from github.com/cobilab/geco3 (d8246bf; GPL-3; GigaScience 2020, doi
10.1093/gigascience/giaa119). Sizes are those of its files, headers of a few hundred bytes included. All model sets are run on
all loci; the one that is `chosen` is the best on validation. Some GB and a few minutes of one core for each set.
"""

from __future__ import annotations

import csv
import math
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from mamba_bio_audio.pipelines.data import DataModule
from mamba_bio_audio.pipelines.dna.config import DnaDataConfig
from mamba_bio_audio.pipelines.dna.tokenizer import DnaTokenizer
from mamba_bio_audio.pipelines.scores import perplexity
from mamba_bio_audio.pipelines.spans import merge
from mamba_bio_audio.run.timing import provenance, write_rows

MIXER = "-lr 0.03 -hs 64"
# A model is order:1/alpha:strands:hash/substitutions:1/alpha:decay; -rm counts the reference, -tm the locus itself.
SHORT = " ".join(
    f"-rm {order}:{rest}"
    for order, rest in (
        (1, "1:1:0:0.9/0:0:0"),
        (2, "1:1:0:0.78/0:0:0"),
        (3, "1:1:0:0.9/0:0:0"),
        (4, "1:1:0:0.78/0:0:0"),
        (5, "10:1:1:0.90/0:0:0"),
        (6, "1:1:0:0.85/0:0:0"),
        (7, "1:1:0:0.85/0:0:0"),
        (8, "1:1:0:0.91/0:0:0"),
        (9, "10:1:0:0.9/0:0:0"),
        (10, "10:1:0:0.9/0:0:0"),
        (11, "10:1:0:0.9/0:0:0"),
        (12, "20:1:1:0.94/0:0:0"),
        (13, "10:1:0:0.95/0:0:0"),
    )
)
LONG = "-rm 16:200:1:10:0.95/1:50:0.95 -rm 20:500:1:10:0.95/2:20:0.95"
LOCUS = "-tm 12:20:1:1:0.94/0:0:0 -tm 16:200:1:6:0.95/1:50:0.95"
# Level 16 of the authors with both strands in every model, counted on the reference, without the orders 14 and 17 and with
# smaller hashes (memory); and what their benchmark gives for a reference, with a smaller hash of order 20 and both strands.
SETS = {
    "level 16 and locus": f"{SHORT} {LONG} {LOCUS} {MIXER}",
    "referential and locus": "-rm 20:500:1:14:0.95/3:100:0.95 -rm 13:200:1:1:0.95/0:0:0 -rm 10:10:1:0:0.95/0:0:0 "
    f"-tm 4:1:1:1:0.9/0:0:0 -tm 17:100:1:10:0.95/2:20:0.95 {MIXER}",
    "level 16": f"{SHORT} {LONG} {MIXER}",
    "level 16 and locus, rate 0.01": f"{SHORT} {LONG} {LOCUS} -lr 0.01 -hs 64",
}


def main(
    program: Annotated[Path, typer.Argument(help="GeCo3, built.")],
    data: Annotated[Path, typer.Option(help="data.path.")],
    out: Annotated[Path, typer.Option(help="CSV, written after each set; sets it has are not run again.")],
) -> None:
    module = DataModule(DnaDataConfig(path=str(data)), length=1024, batch_size=1, seed=0)
    module.setup()
    genome = module.corpus.genome
    where = provenance("cpu", "triton")
    facts = {key: where[key] for key in ("device", "torch", "triton", "commit", "started")}
    facts["splits_sha256"] = module.corpus.fingerprint()
    loci = [(split, span) for split in ("valid", "test") for span in merge(module.corpus.spans(split))]
    rows: list[dict[str, Any]] = list(csv.DictReader(out.open())) if out.exists() else []
    if any(row["splits_sha256"] != facts["splits_sha256"] for row in rows):
        raise SystemExit(f"{out} is of other data; give --out another name")
    with tempfile.TemporaryDirectory() as folder:

        def write(path: Path, spans: Any) -> Path:
            with path.open("w") as file:
                for span in spans:
                    file.write(DnaTokenizer().decode(genome.fetch(span.record, span.start, span.end)))
            return path

        reference = write(Path(folder) / "reference", merge(module.corpus.spans("train")))
        targets = [write(Path(folder) / str(n), [span]) for n, (_, span) in enumerate(loci)]
        bases = [sum(map(path.read_text().count, "ACGT")) for path in targets]
        for name, options in SETS.items():
            if any(row["models"] == name for row in rows):
                continue
            command = [str(program), *options.split(), "-r", str(reference), ":".join(map(str, targets))]
            running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            _, status, used = os.wait4(running.pid, 0)
            if status:
                raise SystemExit(f"{program} ended with status {status}: {' '.join(command)}")
            sizes = [Path(f"{path}.co").stat().st_size for path in targets]
            for split in ("valid", "test"):
                own = [n for n, (other, _) in enumerate(loci) if other == split]
                found = [(loci[n][1].record, sizes[n], bases[n]) for n in own]
                found.append(("all", sum(sizes[n] for n in own), sum(bases[n] for n in own)))
                for locus, size, count in found:
                    nats = 8 * math.log(2) * size / count
                    row: dict[str, Any] = {"yardstick": "geco3", "models": name, "split": split, "locus": locus}
                    row |= {"nats": f"{nats:.6f}", "bits": f"{8 * size / count:.6f}"}
                    row |= {"perplexity": f"{perplexity(nats):.5f}", "chosen": False, "scored": count, "bytes": size}
                    row |= {
                        "cpu_seconds": f"{used.ru_utime + used.ru_stime:.0f}",
                        "peak_gib": f"{used.ru_maxrss / 2**20:.2f}",
                    }
                    rows.append(row | facts)
                    print(", ".join(str(value) for value in row.values()), flush=True)
            best = min(
                (row for row in rows if row["split"] == "valid" and row["locus"] == "all"),
                key=lambda row: float(row["nats"]),
            )
            for row in rows:
                row["chosen"] = row["models"] == best["models"]
            write_rows(out, rows)


if __name__ == "__main__":
    typer.run(main)
