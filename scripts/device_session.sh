#!/usr/bin/env bash
# One call on the GPU machine: self-test, training benchmark, and a short pretraining on the human set. Results go to $OUT.
set -uo pipefail
source scripts/device_env.sh
mba doctor 2>&1 | tee "$OUT/doctor.txt"
mba bench train --seconds 2 --out "$OUT/train.csv" 2>&1 | tee "$OUT/bench.txt"
timeout "${TRAIN_SECONDS:-180}" python3 -c 'from mamba_bio_audio.cli.main import run; run()' pretrain dna/hg38-1.4m \
  --set data.path=.device/human --set data.num_workers=8 --set data.reverse_complement=true \
  --set train.tokens_per_step=65536 --set train.lr="${LR:-4e-3}" --set train.steps="${STEPS:-1500}" \
  --set train.validate_every=250 --set train.validation_tokens=2000000 --set train.checkpoint_every=500 \
  --out /tmp/run 2>&1 | tee "$OUT/pretrain.txt"
timeout 100 python3 -c 'from mamba_bio_audio.cli.main import run; run()' evaluate /tmp/run --split test --set data.num_workers=8 2>&1 | tee "$OUT/evaluate.txt"
cp /tmp/run/metrics.csv /tmp/run/config.yaml /tmp/run/manifest.json "$OUT/" 2>/dev/null
