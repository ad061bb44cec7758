# Windows and whole genomes of mitochondria, dengue viruses, and reads of five species, side by side, each in a process of its own, for a time.
#   MITO, DENGUE, SPECIES (folder with dna/human and dna/other_species), LIMIT (seconds, 480), DEVICE, FEW (options of a small trial), ONLY (words: names; none: all)
# Of each task every arm is in the CSV with its share of right validation windows, by which one is chosen.
set -u
[ -n "${LOCAL:-}" ] || source benchmarks/device/env.sh
MITO=${MITO:-/tmp/data/vertebrate_mito} DENGUE=${DENGUE:-/tmp/data/dengue_subtypes} SPECIES=${SPECIES:-/tmp/data/species} LIMIT=${LIMIT:-480} DEVICE=${DEVICE:-cuda}
WORK=${WORK:-/tmp/labels-more} MIXED=${MIXED:-/tmp/mixed138mb-1m4}
mkdir -p "$WORK"
export OMP_NUM_THREADS=1
[ -e "$MIXED" ] || { mkdir "$MIXED" && tar -C "$MIXED" -xzf .device/mixed138mb-1m4.tgz; }
train=$((LIMIT * ${SHARE:-72} / 100)) # The rest: reading the data, compiling, scoring.
every="--set train.validate_every=100 --set train.checkpoint_every=1000 --set data.num_workers=1 --device $DEVICE ${FEW:-}"
start() { # PERCENT of the time of training, NAME, SCRIPT, OPTIONS...
    local percent=$1 name=$2 script=$3
    shift 3
    [[ -n "${ONLY:-}" && " $ONLY " != *" $name "* ]] && return
    timeout -k 5 "$LIMIT" python3 "benchmarks/$script.py" $every --seconds $((train * percent / 100)) "$@" --out "$WORK/$script-$name.csv" >"$WORK/$name.txt" 2>&1 &
}
mixed=(--set head.pretrained="$MIXED")
# 480 windows of 125 bases or 60 of 1,000 a step. Short windows first: a step then has more labels.
both=(--set train.tokens_per_step=60000)
warm=("${both[@]}" --set "train.length_warmup=[{length: 125, steps: ${WARM:-400}}]")
mito=(--data "$MITO" --recipe dna/species --no-bars)
start 100 m1000-mixed genomes "${mito[@]}" --length 1000 --name mixed "${warm[@]}" "${mixed[@]}"
start 100 m1000-scratch genomes "${mito[@]}" --length 1000 --name scratch "${warm[@]}"
start 70 m150-mixed genomes "${mito[@]}" --length 150 --name mixed "${both[@]}" "${mixed[@]}"
start 50 mwhole-mixed genomes "${mito[@]}" --length 0 --name mixed "${mixed[@]}" --set train.validate_every=50
start 30 dengue genomes --data "$DENGUE" --recipe dna/species --no-bars --length 0 --name mixed "${mixed[@]}" --set train.validate_every=20
reads=(--data "$SPECIES" --model ours)
start 100 r1000-mixed reads "${reads[@]}" --length 1000 --only all --name mixed "${warm[@]}" "${mixed[@]}"
start 80 r1000-near-mixed reads "${reads[@]}" --length 1000 --only near --name mixed "${warm[@]}" "${mixed[@]}"
start 70 r150-mixed reads "${reads[@]}" --length 150 --only all --name mixed "${both[@]}" "${mixed[@]}"
start 60 r150-near-mixed reads "${reads[@]}" --length 150 --only near --name mixed "${both[@]}" "${mixed[@]}"
# The backbone has read human sequence and other Plasmodium chromosomes, without labels; these have not.
start 100 r1000-scratch reads "${reads[@]}" --length 1000 --only all --name scratch "${warm[@]}"
start 80 r1000-near-scratch reads "${reads[@]}" --length 1000 --only near --name scratch "${warm[@]}"
start 70 r150-scratch reads "${reads[@]}" --length 150 --only all --name scratch "${both[@]}"
start 60 r150-near-scratch reads "${reads[@]}" --length 150 --only near --name scratch "${both[@]}"
# The recipe of reads as it is, as far as the time lasts.
start 100 r150-recipe reads "${reads[@]}" --recipe dna/reads --length 150 --only all --name dna/reads --set train.tokens_per_step=9600 --set train.steps=${STEPS:-3000}
wait
for name in "$WORK"/*.txt; do echo "== $(basename "$name")"; tail -n 4 "$name" | cut -c1-700; done
for script in genomes reads; do
    cat "$WORK"/$script-*.csv 2>/dev/null | awk 'NR == 1 || !/^(data|length),/' >"$OUT/$script.csv"
done
tar -C "$WORK" -czf "$OUT/labels_more.tgz" $(cd "$WORK" && ls *.txt *.csv)
echo "[$SECONDS s] done"
