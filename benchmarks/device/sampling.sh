#!/usr/bin/env bash
# How runs of audio should be drawn, and clips drawn so, all runs at once; within LIMIT seconds:
#   LIMIT=360 bash benchmarks/device/sampling.sh RUN@GPU[@DATA]...
# DATA is a prepared folder, where that is not the one of training; held-out recordings suffice. PIECE (seconds of a fitted piece,
# 10), PIECES (of a setting, 8), SECONDS_EACH (of a clip, 10), CLIPS (20), SEED (2, of the clips; fits use 0), RATE (16000), DEVICE (cuda), THREADS (4).
# Into $OUT: sampling.tar, of each run the fit and the clips, or what there is of them in fitted.part; written anew whenever a run is
# ready. A run that has its fit already keeps it. Clips are measured where data and run are: benchmarks/device/clips.py, mba report.
set -uo pipefail
source benchmarks/device/env.sh
LIMIT=${LIMIT:-590} PIECE=${PIECE:-10} EACH=${SECONDS_EACH:-10} CLIPS=${CLIPS:-20} SEED=${SEED:-2} RATE=${RATE:-16000} DEVICE=${DEVICE:-cuda}
WORK=${WORK:-/tmp/sampling}
MBA=(python3 -c 'from mamba_bio_audio.cli.main import run; run()')
rm -rf "$WORK" && mkdir -p "$WORK"
one() {
  local run gpu data work
  IFS=@ read -r run gpu data <<<"$1"
  work=$WORK/$(basename "$run")
  mkdir -p "$work"
  export CUDA_VISIBLE_DEVICES=$gpu OMP_NUM_THREADS=${THREADS:-4}
  left() { echo $((LIMIT - SECONDS)); }
  {
    date -u +%T
    [ -e "$run/sampling.json" ] || time timeout -k 5 "$(left)" "${MBA[@]}" evaluate "$run" --metrics sampling --length $((PIECE * RATE)) \
      --num-samples "${PIECES:-8}" --device "$DEVICE" --quiet ${data:+--set "data.path=$data"}
    cp "$run/sampling.json" "$run/config.yaml" "$run/manifest.json" "$work/"
    # All in one batch, the best of eight included.
    time timeout -k 5 "$(left)" "${MBA[@]}" sample "$run" --length $((EACH * RATE)) --num-samples "$CLIPS" --batch-size $((8 * CLIPS)) \
      --seed "$SEED" --device "$DEVICE" --quiet --no-report --force --out "$work/fitted"
    date -u +%T
  } >"$work/log.txt" 2>&1
  (
    flock 9
    tar -C "$WORK" -cf "$OUT/sampling.tar.part" . && mv "$OUT/sampling.tar.part" "$OUT/sampling.tar"
  ) 9>/tmp/sampling.lock
  tail -n 130 "$work/log.txt"
}
for run in "$@"; do one "$run" & done
wait
