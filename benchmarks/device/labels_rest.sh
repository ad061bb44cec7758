# What is left of the labels in one call: jobs of suite.sh that were cut, fragments of mitochondria, and reads of species, side by side.
#   DATA (folder of GUE), MITO, SPECIES (folder with dna/human and dna/other_species), LIMIT (seconds, 245), JOBS (words TASK:MODEL)
set -u
[ -n "${LOCAL:-}" ] || source benchmarks/device/env.sh
DATA=${DATA:-/tmp/data/gue} MITO=${MITO:-/tmp/data/vertebrate_mito} SPECIES=${SPECIES:-/tmp/data/species} LIMIT=${LIMIT:-245} DEVICE=${DEVICE:-cuda}
WORK=${WORK:-/tmp/suite-rest} RECIPE=dna/short MIXED=${MIXED:-/tmp/mixed138mb-1m4}
mkdir -p "$WORK"
export OMP_NUM_THREADS=1
[ -e "$MIXED" ] || { mkdir "$MIXED" && tar -C "$MIXED" -xzf .device/mixed138mb-1m4.tgz; }
run() { timeout $((LIMIT - SECONDS)) python3 -c 'from mamba_bio_audio.cli.main import run; run()' "$@"; }
one() { # TASK MODEL EPOCHS RATES
    local task=$1 name=$2 how=
    case $name in
    scratch) how="--arms scratch --set model.d_model=128 --set model.num_layers=12 --set model.ssm.d_state=16" ;;
    human) name=tuned-human42mb-1m4 how="--arms finetuned --pretrained human42mb-1m4 --set head.label_smoothing=.1" ;;
    mixed) name=tuned-mixed138mb-1m4 how="--arms finetuned --pretrained $MIXED --set head.label_smoothing=.1" ;;
    esac
    mkdir -p "$WORK/$task"
    run evaluate --suite gue "$DATA" --task "$task" --recipe $RECIPE --out "$WORK/$task/$name" --device "$DEVICE" --quiet --seeds 0,1,2 \
        --epochs "$3" --rates "$4" --set train.tokens_per_step=16384 $how ${MORE:-} >"$WORK/$task/$name.txt" 2>&1
    echo "$task $name: exit $? at $SECONDS s: $(grep -m1 AUROC "$WORK/$task/$name.txt" | tr -s ' ' | cut -c1-40)"
}
ours="--set train.patience=4 --set train.validate_every=100 --set data.num_workers=1 ${OURS:-}"
one mouse_4 scratch 8 2e-3,5e-3 &
for model in scratch human mixed; do one prom_core_all $model 3 4e-3 & one prom_core_notata $model 3 4e-3 & one tf_1 $model 4 4e-3 & done
for model in scratch mixed; do one tf_0 $model 4 4e-3 & done
for length in 150 1000; do
    if [ -d "$MITO" ]; then
        timeout $((LIMIT - SECONDS)) python3 benchmarks/genomes.py --data "$MITO" --device "$DEVICE" --recipe dna/species --length $length --no-bars $ours \
            --set train.steps=${STEPS:-700} --out "$WORK/genomes-$length.csv" >"$WORK/genomes-$length.txt" 2>&1 &
    fi
    timeout $((LIMIT - SECONDS)) python3 benchmarks/reads.py --data "$SPECIES" --device "$DEVICE" --model ours --length $length $ours \
        --set train.steps=${STEPS:-500} --out "$WORK/reads-$length.csv" >"$WORK/reads-$length.txt" 2>&1 &
done
wait
tail -n 3 "$WORK"/genomes-*.txt "$WORK"/reads-*.txt
tar -C "$WORK" -czf "$OUT/suite_rest.tgz" $(cd "$WORK" && ls -d */*/suite.* */*/predictions */*/tasks */*.txt *.txt *.csv 2>/dev/null)
echo "[$SECONDS s] done"
