#!/usr/bin/env bash
# How runs of audio should be drawn, and clips at that setting and at the next best, all runs at once; within LIMIT seconds:
#   LIMIT=140 bash benchmarks/device/sampling.sh RUN@GPU...
# PIECE (seconds of a fitted piece, 10), SECONDS_EACH (of a clip, 10), CLIPS (10), RATE (16000), DEVICE (cuda), THREADS (4).
# Into $OUT: sampling.tar, of each run the fit and the clips, or what there is of them in fitted.part; written anew whenever a run is
# ready. Clips are measured where data and run are: mba report RUN --samples fitted. A fit that had no time leaves no clips.
set -uo pipefail
source benchmarks/device/env.sh
LIMIT=${LIMIT:-590} PIECE=${PIECE:-10} EACH=${SECONDS_EACH:-10} CLIPS=${CLIPS:-10} RATE=${RATE:-16000} DEVICE=${DEVICE:-cuda}
WORK=${WORK:-/tmp/sampling}
MBA=(python3 -c 'from mamba_bio_audio.cli.main import run; run()')
rm -rf "$WORK" && mkdir -p "$WORK"
one() {
  local run=${1%@*} work
  work=$WORK/$(basename "$run")
  mkdir -p "$work"
  export CUDA_VISIBLE_DEVICES=${1##*@} OMP_NUM_THREADS=${THREADS:-4}
  left() { echo $((LIMIT - SECONDS)); }
  {
    date -u +%T
    time timeout "$(left)" "${MBA[@]}" evaluate "$run" --metrics sampling --length $((PIECE * RATE)) --device "$DEVICE" --quiet
    second=$(python3 -c 'import json, sys; rows = sorted(json.load(open(sys.argv[1]))["grid"], key=lambda row: row["distance"])
print("--temperature", rows[1]["temperature"], "--top-p", rows[1]["top_p"])' "$run/sampling.json")
    for draw in "fitted" "second $second"; do
      # shellcheck disable=SC2086
      time timeout "$(left)" "${MBA[@]}" sample "$run" --length $((EACH * RATE)) --num-samples "$CLIPS" --device "$DEVICE" \
        --quiet --no-report --force --out "$work/"$draw
    done
    date -u +%T
  } >"$work/log.txt" 2>&1
  cp "$run/sampling.json" "$run/config.yaml" "$run/manifest.json" "$work/"
  (
    flock 9
    tar -C "$WORK" -cf "$OUT/sampling.tar.part" . && mv "$OUT/sampling.tar.part" "$OUT/sampling.tar"
  ) 9>/tmp/sampling.lock
  tail -n 45 "$work/log.txt"
}
for run in "$@"; do one "$run" & done
wait
