#!/usr/bin/env bash
# `mba demo --audio` at other sample rates, steps and seeds, one thread each, side by side; nothing on the GPU:
#   bash benchmarks/device/demo_trials.sh RATE:STEPS:SEED[:KEY=VALUE]...
# Into $OUT: demo_trials.csv, a row for each that ended. LIMIT (seconds, 290).
set -uo pipefail
source benchmarks/device/env.sh
one() {
  local rate steps seed more tree
  IFS=: read -r rate steps seed more <<<"$1"
  tree=/tmp/demo_trials/$(echo "$1" | tr ':=' '__')
  mkdir -p "$tree" && cp -r mamba_bio_audio benchmarks pyproject.toml "$tree/"
  cd "$tree" || exit
  sed -i "s/^RATE_HZ = .*/RATE_HZ = $rate/" mamba_bio_audio/pipelines/synthetic/tones.py
  find . -name demo.yaml -path '*audio*' -exec sed -i "s/sample_rate_hz: .*/sample_rate_hz: $rate/" {} +
  PYTHONPATH="$tree:$PYTHONPATH" OMP_NUM_THREADS=1 timeout "${LIMIT:-290}" nice python3 benchmarks/bench_demo_audio.py --seed "$seed" \
    --set "train.steps=$steps" ${more:+--set "$more"} --out "$tree/demo.csv" >"$tree/log.txt" 2>&1
  (
    flock 9
    if [ -e demo.csv ]; then tail -n 1 demo.csv | sed "s/^/$rate,/" | tee -a "$OUT/demo_trials.csv"; else echo "$1: $(tail -n 1 log.txt)"; fi
  ) 9>/tmp/demo_trials.lock
}
for trial in "$@"; do (one "$trial") & done
wait
