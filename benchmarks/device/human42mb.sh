#!/usr/bin/env bash
# Trains the packaged model human42mb-1m4 as real_run.sh does, with the steps and the rate fixed, and
# evaluates it: both splits beside Markov models, and the loss against context. Two minutes of training, about five in all.
# On the GPU machine with .device/human and .device/wheels (kit.sh); the run goes to $OUT/human42mb-1m4.tgz.
# NAME=mixed138mb-1m4 MIXED=1 trains the same on human and other species (mixed_kit.py); QUICK=1 leaves Markov models and contexts out.
# For a rehearsal: LOCAL=1 takes the Python at hand, DATA another folder, MORE more --set keys, CONTEXTS other contexts.
set -uo pipefail
[ -n "${LOCAL:-}" ] || source benchmarks/device/env.sh
mba() { timeout "${LIMIT:-260}" python3 -m mamba_bio_audio "$@"; }
name=${NAME:-human42mb-1m4}
run=${RUN:-/tmp/$name} report=$OUT/${NAME:-human42mb}.txt
log() { echo "[$SECONDS s] $*" | tee -a "$report"; }
pack() { tar -C "$run" --exclude checkpoints --exclude tensorboard -czf "$OUT/$name.tgz.part" . && mv "$OUT/$name.tgz.part" "$OUT/$name.tgz"; }
if [ -n "${MIXED:-}" ]; then
  DATA=${MIXED_AT:-/tmp/data/mixed}
  mkdir -p "$DATA"
  ln -sf "$PWD"/.device/human/*.fa.gz "$PWD"/.device/mixed/* "$DATA"
fi
log pretrain
mba pretrain dna/hg38@1.4m --set name=$name --set data.path="${DATA:-.device/human}" --set data.reverse_complement=true \
  --set data.windows=random --set data.num_workers=8 --set train.tokens_per_step=131072 --set train.lr=4e-3 --set train.steps=3936 \
  --set train.validate_every=493 --set train.checkpoint_every=2000 --set train.log_every=25 ${MORE:-} --out "$run" --force 2>&1 |
  tee -a "$report"
pack  # should the call end before the rest
log evaluate
for split in valid test; do
  mba evaluate "$run" --split $split --no-baselines 2>&1 | tee -a "$report"
done
[ -z "${QUICK:-}" ] || { pack; log "done: $(ls -l "$OUT/$name.tgz")"; exit; }
# Markov models to order 16 and copies take two or three minutes of a CPU.
for split in valid test; do
  mba evaluate "$run" --split $split --quiet >"$run/$split.txt" 2>&1 &
done
wait
cat "$run"/{valid,test}.txt | tee -a "$report"
log context
mba evaluate "$run" --split test \
  --context "${CONTEXTS:-64,256,1024,4096,16384}" --out "$run/context" --quiet 2>&1 | tee -a "$report"
pack
log "done: $(ls -l "$OUT/$name.tgz")"
