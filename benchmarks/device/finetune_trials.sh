# Trials of ways to fine-tune on short sequences (finetune_trials.py), side by side on one GPU.
#   DATA (folder of GUE), TRIALS (a file), JOBS (13), LIMIT (seconds, 80), MIXED (a second backbone, where there is one)
set -u
[ -n "${LOCAL:-}" ] || source benchmarks/device/env.sh
DATA=${DATA:-/tmp/data/gue} JOBS=${JOBS:-13} LIMIT=${LIMIT:-80} DEVICE=${DEVICE:-cuda}
export OMP_NUM_THREADS=1
report=$OUT/finetune_trials.txt
one() { python3 benchmarks/device/finetune_trials.py --data "$DATA" --device "$DEVICE" "$@"; }
if [ -e "${MIXED:-/nowhere}" ]; then sed "s#MIXED#$MIXED#" "$TRIALS" >/tmp/trials.txt; else grep -v MIXED "$TRIALS" >/tmp/trials.txt; fi
# Kernels are compiled once.
echo "task=mouse_2 epochs=1 batch=128" | one --limit "${WARM:-40}" >>"$report" 2>&1
echo "[$SECONDS s] compiled" >>"$report"
for at in $(seq 0 $((JOBS - 1))); do
  grep -v '^frozen' /tmp/trials.txt | one --share "$at/$JOBS" --limit $((LIMIT - SECONDS)) >>"$report" 2>&1 &
done
for at in 0 1; do grep '^frozen' /tmp/trials.txt | sed 's/^frozen //' | one --frozen --share "$at/2" --limit $((LIMIT - SECONDS)) >>"$report" 2>&1 & done
wait
echo "[$SECONDS s] done" >>"$report"
sort "$report"
