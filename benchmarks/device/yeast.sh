#!/usr/bin/env bash
# Trains the yeast model of docs/guide-yeast.md on one H200 and scores both strands of the chromosomes that it did not see: 90
# seconds of training, about four minutes in all.
# On the GPU machine with .device/yeast/saccharomyces_cerevisiae.fa.gz and .device/wheels (kit.sh); the run goes to
# $OUT/yeast.tgz, the tracks to $OUT/{forward,reverse}.bw; what follows needs no GPU: ../yeast_guide.py.
# For a rehearsal: LOCAL=1 takes the Python at hand, GENOME another FASTA file, MORE more --set keys.
set -uo pipefail
[ -n "${LOCAL:-}" ] || source benchmarks/device/env.sh
mba() { timeout "${LIMIT:-260}" python3 -m mamba_bio_audio "$@" 2>&1 | tee -a "$OUT/yeast.txt"; }
data=${RUN:-/tmp/yeast}/data run=${RUN:-/tmp/yeast}/run
mkdir -p "${RUN:-/tmp/yeast}"
pack() { tar -C "$run" --exclude checkpoints --exclude tensorboard -czf "$OUT/yeast.tgz.part" . && mv "$OUT/yeast.tgz.part" "$OUT/yeast.tgz"; }
genome=${GENOME:-.device/yeast/saccharomyces_cerevisiae.fa.gz}
mba prepare genome "$genome" --out "$data" --force --split-by records --valid-fraction 0.08 \
  --test-fraction 0.15
mba pretrain dna/hg38@1.4m --set name=yeast --set data.path="$data" --set data.reverse_complement=true --set data.windows=random \
  --set data.num_workers=8 --set train.tokens_per_step=131072 --set train.lr=4e-3 --set train.steps=3000 --set train.validate_every=250 \
  --set train.checkpoint_every=1000 --set train.log_every=25 ${MORE:-} --out "$run" --force
pack  # should the call end before the rest
for split in valid test; do mba evaluate "$run" --split $split --quiet; done
pack
grep -w -e valid -e test "$data/intervals.tsv" | cut -f 2-4 >"${RUN:-/tmp/yeast}/held-out.bed"
for strand in forward reverse; do
  mba score "$run" "$genome" --regions "${RUN:-/tmp/yeast}/held-out.bed" --strand $strand --out "$OUT/$strand.bw"
done
ls -l "$OUT"
