#!/usr/bin/env bash
# The audio runs of issue 7 on the GPU machine, each within ten minutes; results go to $OUT. See audio_kit.sh for the data.
#   bash scripts/audio_runs.sh digits | judge | piano | lengths | train | sample | tests
# A run that is stopped saves; RUN=/tmp/runs keeps the folders while the machine is warm.
set -uo pipefail
source scripts/device_env.sh
RUN=${RUN:-/tmp/runs}
mkdir -p "$RUN" "$OUT"
export MAMBA_BIO_AUDIO_CACHE="$RUN/cache"
mba_for() { timeout -s INT -k 30 "$1" python3 -c 'from mamba_bio_audio.cli.main import run; run()' "${@:2}"; }
keep() { # run folder, name
  mkdir -p "$OUT/$2"
  cp -r "$1"/{metrics.csv,config.yaml,manifest.json,evaluate-*.json,model.safetensors} "$OUT/$2/" 2>/dev/null
}
pretrain() { # seconds, recipe, name, more
  local again=(); [ -f "$RUN/$3/config.yaml" ] && again=(--resume)
  mba_for "$1" pretrain "audio/$2" --out "$RUN/$3" --set data.num_workers=8 "${@:4}" "${again[@]}" 2>&1 | tee -a "$OUT/$3.txt"
  keep "$RUN/$3" "$3"
}
case ${1:?which run} in
  digits)
    pretrain "${SECONDS_MAX:-500}" digits digits --set data.path=.device/digits --set train.steps="${STEPS:-1500}"
    mba_for 90 evaluate "$RUN/digits" --quiet 2>&1 | tee "$OUT/digits-evaluate.txt"
    keep "$RUN/digits" digits ;;
  judge) # after digits, on the same warm machine
    mba_for 580 evaluate "$RUN/digits" --metrics sc09 --num-samples "${SAMPLES:-2048}" --quiet 2>&1 | tee "$OUT/judge.txt"
    mkdir -p "$OUT/sc09" && cp "$RUN"/digits/sc09/{metrics.json,first-samples.png} "$OUT/sc09/"
    for row in 0 1 2 3 4 5 6 7; do cp "$RUN"/digits/sc09/samples-*/sample-0000$row.flac "$OUT/sc09/"; done
    cp "$RUN"/digits/sc09/samples-*/index.tsv "$OUT/sc09/" ;;
  piano)
    pretrain "${SECONDS_MAX:-440}" piano piano --set data.path=.device/piano --set train.steps="${STEPS:-1000}"
    mba_for 90 evaluate "$RUN/piano" --quiet 2>&1 | tee "$OUT/piano-evaluate.txt"
    mba_for 60 sample "$RUN/piano" --length 80000 --num-samples 4 --out "$RUN/piano-samples" --force --quiet 2>&1 | tee "$OUT/piano-sample.txt"
    keep "$RUN/piano" piano; cp -r "$RUN/piano-samples" "$OUT/" ;;
  lengths) # equal steps and samples per step; every length scores all test samples once
    for length in ${LENGTHS:-8192 32768 131072}; do
      pretrain "${SECONDS_MAX:-170}" piano "piano-$length" --set data.path=.device/piano --set train.length="$length" \
        --set train.tokens_per_step=262144 --set train.steps="${STEPS:-400}" --set train.validate_every=100
      mba_for 60 evaluate "$RUN/piano-$length" --no-baselines --quiet 2>&1 | tee "$OUT/piano-$length-evaluate.txt"
    done ;;
  train) timeout 580 python3 benchmarks/bench_audio.py train --out "$OUT/train_audio.csv" 2>&1 | tee "$OUT/train_audio.txt" ;;
  sample) timeout 580 python3 benchmarks/bench_audio.py sample --out "$OUT/sample_audio.csv" 2>&1 | tee "$OUT/sample_audio.txt" ;;
  tests) timeout 580 python3 -m pytest -q tests/inference/test_decoding.py tests/models/test_unet.py 2>&1 | tee "$OUT/tests.txt" ;;
esac
