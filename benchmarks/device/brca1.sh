#!/usr/bin/env bash
# Ratios of the BRCA1 variants at every context, and embeddings, on the GPU machine with .device filled by kit.sh and brca1_kit.sh.
# A few minutes; what is done stays in $OUT should the call end early. `python benchmarks/brca1.py report` then opens the labels.
# MODEL is a packaged name or a run (default human42mb-1m4); for a rehearsal LOCAL=1 takes the Python at hand, MORE more options.
set -uo pipefail
[ -n "${LOCAL:-}" ] || source benchmarks/device/env.sh
timeout "${LIMIT:-580}" python3 benchmarks/brca1.py score "${MODEL:-human42mb-1m4}" --genome .device/brca1/megabase.fa.gz \
  --sites .device/brca1/sites.tsv --out "$OUT" ${MORE:-} 2>&1 | tee -a "$OUT/brca1.txt"
