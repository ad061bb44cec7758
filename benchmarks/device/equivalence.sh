#!/usr/bin/env bash
# On the GPU machine: the four arms of benchmarks/train_equivalence.py at once on one GPU; curves and verdict in $OUT.
# STEPS, BATCH (sequences of 1,024 a step), EACH (seconds after which an arm stops, saved), DEVICE, DATA can be set.
set -uo pipefail
source benchmarks/device/env.sh
arms=/tmp/equivalence
rm -rf "$arms" && mkdir -p "$arms"
for arm in "torch 0" "triton 0" "triton 1" "triton 2"; do
  read -r kernels seed <<<"$arm"
  timeout -k 20 "$((${EACH:-280} + 60))" python3 benchmarks/train_equivalence.py arm "$kernels" --seed "$seed" --out "$arms" \
    --data "${DATA:-.device/human}" --steps "${STEPS:-2000}" --batch "${BATCH:-16}" --seconds "${EACH:-280}" \
    --device "${DEVICE:-cuda}" ${MORE:-} >"$arms/$kernels-$seed.log" 2>&1 &
done
wait
for log in "$arms"/*.log; do echo "== $log"; tail -n 12 "$log"; done | tee "$OUT/train_equivalence.log"
python3 benchmarks/train_equivalence.py compare "$arms" --out "$OUT/train_equivalence" 2>&1 | tee -a "$OUT/train_equivalence.log"
