# Whole genomes of mitochondria in one window, by a model of windows of 1,000 bases and by one that is trained on whole genomes; scored in new processes.
#   MITO, LIMIT (seconds, 200), DEVICE, FEW (options of a small trial)
set -u
[ -n "${LOCAL:-}" ] || source benchmarks/device/env.sh
MITO=${MITO:-/tmp/data/vertebrate_mito} LIMIT=${LIMIT:-200} DEVICE=${DEVICE:-cuda} WORK=${WORK:-/tmp/genomes-whole}
mkdir -p "$WORK"
export OMP_NUM_THREADS=1
one() { # NAME, RUN, OPTIONS of the training...
    local name=$1 run=$2
    shift 2
    local data=(--data "$MITO" --no-bars --device "$DEVICE" --out "$WORK/$name.csv")
    timeout -k 5 $((LIMIT - 45)) python3 benchmarks/genomes.py "${data[@]}" --recipe dna/species --seconds $(((LIMIT - 80) * ${SHARE:-100} / 100)) --keep "$WORK" "$@" \
        --set train.validate_every=50 --set train.checkpoint_every=1000 --set data.num_workers=1 ${FEW:-} >"$WORK/$name.txt" 2>&1
    echo "$name: training ends at $SECONDS s"
    timeout -k 5 $((LIMIT - SECONDS)) python3 benchmarks/genomes.py "${data[@]}" --length 0 --run "$WORK/$run" --name "$name" >>"$WORK/$name.txt" 2>&1
}
one windows windows-1000 --length 1000 --error 0.01 --name windows --set train.tokens_per_step=60000 --set "train.length_warmup=[{length: 125, steps: 400}]" &
one whole whole-0 --length 0 --error 0 --name whole &
wait
tail -n 3 "$WORK"/*.txt | cut -c1-500
cat "$WORK"/*.csv | awk 'NR == 1 || !/^data,/' >"$OUT/genomes_whole.csv"
echo "[$SECONDS s] done"
