#!/usr/bin/env bash
# Times `mba score` on 26 Mb of chrX on one H200: one strand in fp32 and bf16, and both strands; about three minutes in all.
# On the GPU machine with .device/human and .device/wheels (kit.sh); everything said goes to $OUT/score.txt.
# RUN is a run, also as a .tgz, an export or a packaged model. For a rehearsal: LOCAL=1 takes the Python at hand, FASTA another file.
set -uo pipefail
[ -n "${LOCAL:-}" ] || source benchmarks/device/env.sh
fasta=${FASTA:-.device/human/hg19.chrX_10788675-37098256.fa.gz} work=$(mktemp -d)
timed() {
  echo "== $*" | tee -a "$OUT/score.txt"
  python3 - "$@" 2>&1 <<'PYTHON' | tee -a "$OUT/score.txt"
import resource, subprocess, sys, time
since = time.perf_counter()
code = subprocess.run([sys.executable, "-m", "mamba_bio_audio", *sys.argv[1:]]).returncode
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
print(f"exit {code}, {time.perf_counter() - since:.1f} s, at most {peak:.2f} GiB of host memory")
PYTHON
}
model=${RUN:-human42mb-1m4}
if [ -f "$model" ]; then  # a run as human42mb.sh packs it
  mkdir "$work/run" && tar -C "$work/run" -xzf "$model" && model=$work/run
fi
timed score "$model" "$fasta" --out "$work/forward.bw"
timed score "$model" "$fasta" --out "$work/again.bw" --json
timed score "$model" "$fasta" --out "$work/bf16.bw" --precision bf16
timed score "$model" "$fasta" --out "$work/both.bw" --strand both
# Whole, in pieces, and base by base: the largest differences of single values, nats.
python3 - "$model" "$fasta" 2>&1 <<'PYTHON' | tee -a "$OUT/score.txt"
import sys

import numpy as np
import torch

import mamba_bio_audio as mba
from mamba_bio_audio.pipelines.dna.genome import Genome

genome = Genome(sys.argv[2])
(record, length), *_ = genome.records.items()
model = mba.load(sys.argv[1]).to("cuda" if torch.cuda.is_available() else "cpu")
for bases, chunks in ((min(length, 1 << 20), (1 << 17, 4096)), (2000, (100, 1))):
    ids = genome.fetch(record, 0, bases).astype(np.int64)
    whole = mba.log_likelihood(model, ids, chunk=bases).per_base
    for chunk in chunks:
        difference = (mba.log_likelihood(model, ids, chunk=chunk).per_base - whole).abs().nan_to_num().max()
        print(f"{bases:,} bases: pieces of {chunk:,} differ from the whole by at most {float(difference):.2e} nats")
PYTHON
ls -l "$work" | tee -a "$OUT/score.txt"
