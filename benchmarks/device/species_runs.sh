#!/usr/bin/env bash
# The runs of docs/results/species.md: `bash benchmarks/device/species_runs.sh STEP...`, steps as benchmarks/device/species_runs.py lists them.
# On the GPU machine, with .device filled by benchmarks/device/species_kit.sh; results go to $OUT. Elsewhere DATA names a folder with dna/ and apes/.
set -uo pipefail
cd "$(dirname "$0")/../.."
if [ -d .device/wheels ]; then source benchmarks/device/env.sh; fi
export OUT=${OUT:-runs/species-results} DATA=${DATA:-.device/species}
mkdir -p "$OUT"
python3 benchmarks/device/species_runs.py "$@" 2>&1 | tee -a "$OUT/species_runs.txt"
