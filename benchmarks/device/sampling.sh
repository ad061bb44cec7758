#!/usr/bin/env bash
# How runs of audio should be drawn, and clips at that setting and at temperature 1, all runs at once; within LIMIT seconds:
#   LIMIT=140 bash benchmarks/device/sampling.sh RUN@GPU...
# PIECE (seconds of a fitted piece, 4), SECONDS_EACH (of a clip, 10), CLIPS (10), RATE (16000), DEVICE (cuda), THREADS (4).
# Into $OUT: sampling-NAME.tar a run, with the fit and the clips, or what there is of them in fitted.part. They are measured where
# data and run are: mba report RUN --samples fitted.
set -uo pipefail
source benchmarks/device/env.sh
LIMIT=${LIMIT:-590} PIECE=${PIECE:-4} EACH=${SECONDS_EACH:-10} CLIPS=${CLIPS:-10} RATE=${RATE:-16000} DEVICE=${DEVICE:-cuda}
MBA=(python3 -c 'from mamba_bio_audio.cli.main import run; run()')
one() {
  local run=${1%@*} work
  work=/tmp/sampling/$(basename "$run")
  rm -rf "$work" && mkdir -p "$work"
  export CUDA_VISIBLE_DEVICES=${1##*@} OMP_NUM_THREADS=${THREADS:-4}
  left() { echo $((LIMIT - SECONDS)); }
  {
    date -u +%T
    time timeout "$(left)" "${MBA[@]}" evaluate "$run" --metrics sampling --length $((PIECE * RATE)) --device "$DEVICE" --quiet
    for draw in "fitted" "plain --temperature 1"; do
      # shellcheck disable=SC2086
      time timeout "$(left)" "${MBA[@]}" sample "$run" --length $((EACH * RATE)) --num-samples "$CLIPS" --device "$DEVICE" \
        --quiet --no-report --force --out "$work/"$draw
    done
    date -u +%T
  } >"$work/log.txt" 2>&1
  cp "$run/sampling.json" "$run/config.yaml" "$run/manifest.json" "$work/"
  tar -C "$work" -cf "$OUT/sampling-$(basename "$run").tar" .
  tail -n 45 "$work/log.txt"
}
for run in "$@"; do one "$run" & done
wait
