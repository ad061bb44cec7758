#!/usr/bin/env bash
# How runs of audio should be drawn, and ten clips of ten seconds at that setting and at temperature 1, measured beside held-out
# recordings; all runs at once:
#   bash benchmarks/device/sampling.sh RUN@GPU...
# PIECE (seconds of a fitted piece, 5), SECONDS_EACH (of a clip, 10), CLIPS (10), RATE (16000), DEVICE (cuda), THREADS (4). Into $OUT: NAME.tar a run.
set -uo pipefail
source benchmarks/device/env.sh
PIECE=${PIECE:-5} SECONDS_EACH=${SECONDS_EACH:-10} CLIPS=${CLIPS:-10} RATE=${RATE:-16000} DEVICE=${DEVICE:-cuda}
one() {
  local run=${1%@*} name work
  name=sampling-$(basename "$run") work=$(mktemp -d)
  export CUDA_VISIBLE_DEVICES=${1##*@} OMP_NUM_THREADS=${THREADS:-4}
  local draw=(mba sample "$run" --length $((SECONDS_EACH * RATE)) --num-samples "$CLIPS" --device "$DEVICE" --quiet --force)
  {
    date -u +%T
    time mba evaluate "$run" --metrics sampling --length $((PIECE * RATE)) --device "$DEVICE" --quiet
    time "${draw[@]}" --out "$work/fitted"
    time "${draw[@]}" --out "$work/plain" --temperature 1
    date -u +%T
  } >"$work/log.txt" 2>&1
  cp "$run/sampling.json" "$work/"
  tar -C "$work" -cf "$OUT/$name.tar" log.txt sampling.json fitted.report.json plain.report.json fitted.report.html \
    fitted/index.tsv fitted/samples.json fitted/sample-0000{0,1,2}.flac plain/samples.json plain/sample-0000{0,1,2}.flac
  tail -n 40 "$work/log.txt"
}
for run in "$@"; do one "$run" & done
wait
