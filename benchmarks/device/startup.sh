#!/usr/bin/env bash
# Where the wall time of `mba sample` goes on one GPU, about a minute; all of it goes to $OUT/startup.txt.
set -uo pipefail
[ -n "${LOCAL:-}" ] || source benchmarks/device/env.sh
python3 benchmarks/device/startup.py --budget "${BUDGET:-60}" --device "${DEVICE:-cuda}" --out "$OUT/startup.txt"
