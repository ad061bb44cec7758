#!/usr/bin/env bash
# Trains the packaged model human42mb-1m4 as ../results/human_12x128_h200/ was trained, with the steps and the rate fixed, and
# evaluates it: both splits beside Markov models, and the loss against context. Two minutes of training, about five in all.
# On the GPU machine with .device/human and .device/wheels (kit.sh); the run goes to $OUT/human42mb-1m4.tgz.
# For a rehearsal: LOCAL=1 takes the Python at hand, DATA another folder, MORE more --set keys, CONTEXTS other contexts.
set -uo pipefail
[ -n "${LOCAL:-}" ] || source benchmarks/device/env.sh
mba() { timeout "${LIMIT:-260}" python3 -m mamba_bio_audio "$@"; }
name=human42mb-1m4 run=${RUN:-/tmp/human42mb-1m4}
log() { echo "[$SECONDS s] $*" | tee -a "$OUT/human42mb.txt"; }
pack() { tar -C "$run" --exclude checkpoints --exclude tensorboard -czf "$OUT/$name.tgz.part" . && mv "$OUT/$name.tgz.part" "$OUT/$name.tgz"; }
log pretrain
mba pretrain dna/hg38@1.4m --set name=$name --set data.path="${DATA:-.device/human}" --set data.reverse_complement=true \
  --set data.windows=random --set data.num_workers=8 --set train.tokens_per_step=131072 --set train.lr=4e-3 --set train.steps=3936 \
  --set train.validate_every=493 --set train.checkpoint_every=2000 --set train.log_every=25 ${MORE:-} --out "$run" --force 2>&1 |
  tee -a "$OUT/human42mb.txt"
pack  # should the call end before the rest
log evaluate
for split in valid test; do
  mba evaluate "$run" --split $split --no-baselines 2>&1 | tee -a "$OUT/human42mb.txt"
done
# Markov models to order 12 take a minute or two of a CPU.
for split in valid test; do
  mba evaluate "$run" --split $split --quiet >"$run/$split.txt" 2>&1 &
done
wait
cat "$run"/{valid,test}.txt | tee -a "$OUT/human42mb.txt"
log context
mba evaluate "$run" --split test \
  --context "${CONTEXTS:-64,256,1024,4096,16384}" --out "$run/context" --quiet 2>&1 | tee -a "$OUT/human42mb.txt"
pack
log "done: $(ls -l "$OUT/$name.tgz")"
