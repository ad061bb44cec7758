#!/usr/bin/env bash
# The runs of docs/results/species.md: `bash scripts/species_runs.sh STEP...`, steps as scripts/species_runs.py lists them.
# On the GPU machine, with .device filled by scripts/species_kit.sh; results go to $OUT. Elsewhere DATA names ../shared/data.
set -uo pipefail
cd "$(dirname "$0")/.."
if [ -d .device/wheels ]; then source scripts/device_env.sh; fi
export OUT=${OUT:-runs/species-results} DATA=${DATA:-.device/species}
mkdir -p "$OUT"
python3 scripts/species_runs.py "$@" 2>&1 | tee -a "$OUT/species_runs.txt"
