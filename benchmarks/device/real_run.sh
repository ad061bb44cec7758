#!/usr/bin/env bash
# On the GPU machine: sweep of the learning rate, then `mba pretrain` of 12 x 128 at L = 1024 on the human set alone on the GPU,
# its bare step before and after, validation and test likelihood. Everything goes to $OUT; the Markov baselines need no GPU:
# benchmarks/markov_baselines.py. RATES, SWEEP_STEPS, RUN_SECONDS, LR (skips the sweep), DEVICE, DATA, TOKENS, MORE can be set.
set -uo pipefail
source benchmarks/device/env.sh
tokens=${TOKENS:-131072} data=${DATA:-.device/human} device=${DEVICE:-cuda} run=/tmp/real_run sweep=/tmp/sweep
rm -rf "$run" "$sweep" && mkdir -p "$sweep"
settings=(--set data.path="$data" --set data.reverse_complement=true --set data.windows=random
  --set train.tokens_per_step="$tokens" --set train.checkpoint_every=2000 ${MORE:-})
log() { echo "[$SECONDS s] $*" | tee -a "$OUT/real_run.txt"; }
bare() { python3 benchmarks/sustained.py bare --out "$OUT/bare.csv" --batch $((tokens / 1024)) --device "$device" ${BARE:-} 2>&1 | tee -a "$OUT/real_run.txt"; }
pack() { tar -C "$run" --exclude checkpoints -czf "$OUT/real_run.tgz" .; }

# Index of the FASTA files and compiled kernels, once for all that follows.
python3 -c "from mamba_bio_audio.pipelines.dna.genome import Genome; Genome('$data')" &
bare
wait
if [ -z "${LR:-}" ]; then
  log sweep
  for rate in ${RATES:-2e-3 4e-3 8e-3 1.6e-2}; do
    timeout -k 5 "${SWEEP_LIMIT:-150}" python3 benchmarks/lr_sweep.py dna/hg38@1.4m --lr "$rate" --out "$sweep/$rate.csv" --device "$device" \
      "${settings[@]}" --set data.num_workers=3 --set train.steps="${SWEEP_STEPS:-350}" \
      --set train.validate_every="${SWEEP_STEPS:-350}" >"$sweep/$rate.log" 2>&1 &
  done
  wait
  tail -qn 2 "$sweep"/*.log | tee -a "$OUT/real_run.txt"
  awk 'FNR > 1 || !header++' "$sweep"/*.csv >"$OUT/lr_sweep_human_12x128.csv"
  LR=$(awk -F, 'NR > 1 && $8 != "" && (best == "" || $8 + 0 < best + 0) { best = $8; lr = $2 } END { print lr ? lr : "4e-3" }' "$OUT/lr_sweep_human_12x128.csv")
fi
steps=${STEPS:-$(python3 benchmarks/sustained.py steps "$OUT/bare.csv" --seconds "${RUN_SECONDS:-240}" --tokens-per-step "$tokens")}
steps=${steps:-4000}
log "pretrain, rate $LR, $steps steps"
begin=$(date +%s.%N)
timeout -s TERM -k 20 $((${RUN_SECONDS:-240} * 5 / 4 + 40)) python3 -c 'from mamba_bio_audio.cli.main import run; run()' pretrain dna/hg38@1.4m \
  "${settings[@]}" --set data.num_workers=8 --set train.lr="$LR" --set train.steps="$steps" \
  --set train.validate_every=$((steps / 8 + 1)) --set train.log_every=25 --out "$run" --device "$device" 2>&1 | tee -a "$OUT/real_run.txt"
wall=$(python3 -c "import time; print(time.time() - $begin)")
pack # should the call end before the rest
log "bare step again and evaluation"
bare
for split in valid test; do
  mba evaluate "$run" --split "$split" --no-baselines --json --device "$device" >"$run/likelihood-$split.json" 2>"$sweep/$split.txt" &
done
wait
cat "$sweep"/{valid,test}.txt | tee -a "$OUT/real_run.txt"
python3 benchmarks/sustained.py report "$run" "$OUT/bare.csv" --wall "$wall" --out "$OUT/sustained.json" 2>&1 | tee -a "$OUT/real_run.txt"
pack
log done
