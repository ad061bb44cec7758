#!/usr/bin/env bash
# Networks on the five species, side by side on one GPU (species_net.py), and beside them the k-mer bar (species_runs.py bar), in
# LIMIT seconds (450). JOBS names a file of lines NAME BACKBONE SEED [KEY=VALUE ...]; BAR= leaves the bar out.
# On the GPU machine with .device/species (species_kit.sh), and .device/mixed138mb-1m4.tgz where a line names MIXED; elsewhere
# LOCAL=1 and DATA. All goes to $OUT/species_net.tgz.
set -u
cd "$(dirname "$0")/../.."
LIMIT=${LIMIT:-450} JOBS=${JOBS:-benchmarks/device/species_net.txt}
export DEADLINE=$(($(date +%s) + LIMIT - 5)) OMP_NUM_THREADS=1
[ -n "${LOCAL:-}" ] || source benchmarks/device/env.sh
to=${OUT:?} MIXED=${MIXED:-/tmp/mixed138mb-1m4}
export OUT=/tmp/species_net DATA=${DATA:-.device/species} RUNS=${RUNS:-/tmp/species}
mkdir -p "$OUT" "$RUNS"
! grep -q MIXED "$JOBS" || [ -e "$MIXED/config.yaml" ] || { mkdir -p "$MIXED" && tar -C "$MIXED" -xzf .device/mixed138mb-1m4.tgz; }
one() { timeout $((DEADLINE - $(date +%s))) python3 benchmarks/device/species_net.py "$@" >>"$OUT/$1.txt" 2>&1 || echo "$1: exit $?" >>"$OUT/$1.txt"; }
# The bar has its own place on the GPU, outside MPS; as many windows as the networks draw come first.
bar() {
    export OUT=$OUT/bar CUDA_MPS_PIPE_DIRECTORY=/nonexistent
    mkdir -p "$OUT"
    for windows in 160000,345600 ""; do
        [ "$(date +%s)" -lt "$DEADLINE" ] || break
        WINDOWS=$windows timeout $((DEADLINE - $(date +%s))) python3 benchmarks/device/species_runs.py bar
    done
}
[ -z "${BAR-yes}" ] || (bar) >"$OUT/bar.txt" 2>&1 &
grep -q ' lm ' "$JOBS" && { { one lm; [ -e "$RUNS/lm.done" ] || touch "$RUNS/lm.failed"; } & }
while read -r -a words; do
    [ -z "${words[0]:-}" ] || [ "${words[0]}" = '#' ] || one "${words[@]/#MIXED/$MIXED}" &
done <"$JOBS"
# Should the call end before the rest.
pack() { tar -C "$OUT" -czf "$to/species_net.part" . && mv "$to/species_net.part" "$to/species_net.tgz"; }
while sleep 30; do pack; done 2>/dev/null &
packer=$!
wait $(jobs -p | grep -vx $packer)
kill $packer
tail -qn 2 "$OUT"/*.txt
pack
echo "[$SECONDS s] $(ls -l "$to/species_net.tgz")"
