#!/usr/bin/env bash
# Networks on the five species, side by side on one GPU (species_net.py), and beside them the k-mer bar (species_runs.py bar), in
# LIMIT seconds (450). JOBS names a file of lines NAME BACKBONE SEED [KEY=VALUE ...]; BAR= leaves the bar out.
# PART=lm trains only the language model that lines with BACKBONE lm begin with, to $OUT/species_lm.tgz; where .device has that file, it
# is not trained again.
# On the GPU machine with .device/species (species_kit.sh) and .device/human (kit.sh); elsewhere LOCAL=1, DATA and RUNS.
# All else goes to $OUT/species_net.tgz.
set -u
cd "$(dirname "$0")/../.."
LIMIT=${LIMIT:-450} JOBS=${JOBS:-benchmarks/device/species_net.txt}
export DEADLINE=$(($(date +%s) + LIMIT - 5)) OMP_NUM_THREADS=1
[ -n "${LOCAL:-}" ] || source benchmarks/device/env.sh
to=${OUT:?} human=${CHROMOSOME_X:-.device/human} given=${GIVEN:-.device/species_lm.tgz}
unset CHROMOSOME_X # The bar would take it for itself.
export RUNS=${RUNS:-/tmp/species} DATA=${DATA:-.device/species}
export OUT=$RUNS/net
rm -rf "$OUT" "$RUNS"/lm "$RUNS"/lm.*
mkdir -p "$OUT" "$RUNS"
one() { timeout $((DEADLINE - $(date +%s))) python3 benchmarks/device/species_net.py "$@" >>"$OUT/$1.txt" 2>&1 || echo "$1: exit $?" >>"$OUT/$1.txt"; }
if [ "${PART:-}" = lm ]; then
    CHROMOSOME_X=$human LEFT=10 LM_SHARE=1 one lm
    tail -n 3 "$OUT/lm.txt"
    tar -C "$RUNS" --exclude checkpoints --exclude tensorboard -czf "$to/species_lm.tgz" lm lm.tsv net
    echo "[$SECONDS s] $(ls -l "$to/species_lm.tgz")"
    exit
fi
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
if grep -q ' lm ' "$JOBS"; then
    if [ -e "$given" ]; then
        tar -C "$RUNS" -xzf "$given" && touch "$RUNS/lm.done"
    else
        { CHROMOSOME_X=$human one lm; [ -e "$RUNS/lm.done" ] || touch "$RUNS/lm.failed"; } &
    fi
fi
while read -r -a words; do
    [ -z "${words[0]:-}" ] || [ "${words[0]}" = '#' ] || one "${words[@]}" &
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
