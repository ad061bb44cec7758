#!/usr/bin/env bash
# Times `mba embed` on 26 Mb of chrX on one H200, and compares pieces with the whole; about a minute and a half.
# On the GPU machine with .device/human and .device/wheels (kit.sh); everything said goes to $OUT/embed.txt.
# RUN is a run, an export or a packaged model. For a rehearsal: LOCAL=1 takes the Python at hand, FASTA another file.
set -uo pipefail
[ -n "${LOCAL:-}" ] || source benchmarks/device/env.sh
fasta=${FASTA:-.device/human/hg19.chrX_10788675-37098256.fa.gz} model=${RUN:-human42mb-1m4} work=$(mktemp -d)
for how in "--pool mean" "--pool last" "--pool bins:128 --strand both" "--pool mean --precision bf16"; do
  since=$(date +%s)
  python3 -m mamba_bio_audio embed "$model" "$fasta" $how --out "$work/vectors.npz" --force 2>&1 | tee -a "$OUT/embed.txt"
  echo "$how: $(($(date +%s) - since)) s" | tee -a "$OUT/embed.txt"
done
python3 - "$model" "$fasta" 2>&1 <<'PYTHON' | tee -a "$OUT/embed.txt"
import sys

import numpy as np
import torch

import mamba_bio_audio as mba
from mamba_bio_audio.pipelines.dna.genome import Genome

genome = Genome(sys.argv[2])
(record, length), *_ = genome.records.items()
model = mba.load(sys.argv[1]).to("cuda" if torch.cuda.is_available() else "cpu")
bases = min(length, 1 << 20)
ids = genome.fetch(record, 0, bases).astype(np.int64)
for pool in ("mean", "last", "bins:128", "none"):
    for layer in ("final", 5):
        whole, pieces = (mba.embed(model, ids, layer, pool, strand="both", chunk=chunk)[0] for chunk in (bases, 30_001))
        difference = (whole - pieces).abs().nan_to_num().max() / whole.abs().nan_to_num().max()
        print(f"{bases:,} bases, {pool}, layer {layer}: pieces differ by {float(difference):.1e} of the largest value")
PYTHON
