# Whole genomes of mitochondria in one window, by a model of windows of 1,000 bases, by the same after STEPS steps on whole genomes, and by one that never
# saw anything else. Nothing is killed before its time: each training ends by its own deadline.
#   MITO, LIMIT (seconds, 190), STEPS (100), DEVICE, FEW (options of a small trial)
set -u
[ -n "${LOCAL:-}" ] || source benchmarks/device/env.sh
MITO=${MITO:-/tmp/data/vertebrate_mito} LIMIT=${LIMIT:-190} DEVICE=${DEVICE:-cuda} WORK=${WORK:-/tmp/genomes-whole}
mkdir -p "$WORK"
export OMP_NUM_THREADS=1
genomes() { # NAME (of the files), OPTIONS...
    local name=$1
    shift
    timeout -k 5 $((LIMIT - SECONDS)) python3 benchmarks/genomes.py --data "$MITO" --no-bars --device "$DEVICE" --out "$WORK/$name.csv" "$@" >"$WORK/$name.txt" 2>&1
    echo "$name: ends at $SECONDS s"
}
train=(--recipe dna/species --keep "$WORK" --set train.checkpoint_every=1000 --set data.num_workers=1)
# Validation reads 100 of the 388 genomes. Classes are as frequent as among the genomes, and weighed.
whole=(--length 0 "${train[@]}" --set train.validation_tokens=2900000 --set head.class_weights=balanced --set train.ema=0.98)
grown() {
    genomes windows "${train[@]}" --length 1000 --error 0.01 --name windows --seconds $((LIMIT * ${SHARE:-50} / 100)) --set train.validate_every=${EVERY:-40} \
        --set "train.length_warmup=[{length: 125, steps: ${WARM:-300}}]" ${FEW:-}
    genomes windows-whole --length 0 --run "$WORK/windows-1000" --name "windows of 1,000" &
    genomes grown "${whole[@]}" --name grown --seconds $((LIMIT - SECONDS - 40)) --set head.pretrained="$WORK/windows-1000" --set train.steps=${STEPS:-100} \
        --set train.validate_every=$((${STEPS:-100} / 3)) --set train.lr=5e-4 ${FEW:-}
    wait
}
grown &
genomes whole "${whole[@]}" --name whole --seconds $((LIMIT * 62 / 100)) --set train.validate_every=${EVERY:-40} ${FEW:-} &
wait
tail -n 4 "$WORK"/*.txt | cut -c1-500
cat "$WORK"/*.csv | awk 'NR == 1 || !/^data,/' >"$OUT/genomes_whole.csv"
echo "[$SECONDS s] done"
