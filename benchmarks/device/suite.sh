# The tasks of GUE on one GPU: the small network, our model from scratch, and backbones frozen and fine-tuned, three seeds.
# One process a task and model (`mba evaluate --suite`), many side by side; suite_join.py makes one table of them and the k-mers.
#   DATA (folder of the tasks), BACKBONES (words), JOBS (14), LIMIT (seconds, 500), TASKS (words), DEVICE (cuda), TRIALS (seconds, 65)
# First settings of fine-tuning are chosen on dev of three tasks with one seed (suite_trials.txt): pooling, smoothing, rates of layers,
# LoRA. Then each small task chooses its rate on its own dev; the large ones have the higher one.
set -u
[ -n "${LOCAL:-}" ] || source benchmarks/device/env.sh
DATA=${DATA:-/tmp/data/gue} JOBS=${JOBS:-14} LIMIT=${LIMIT:-500} DEVICE=${DEVICE:-cuda} TRIALS=${TRIALS:-65}
BACKBONES=${BACKBONES:-human42mb-1m4 /tmp/mixed138mb-1m4}
WORK=${WORK:-/tmp/suite} OUT=${OUT:-/tmp/suite-out} RECIPE=${RECIPE:-dna/short}
TASKS=${TASKS:-mouse_0 prom_core_tata mouse_2 mouse_4 prom_300_tata tf_3 tf_4 tf_0 tf_1 prom_core_notata prom_core_all}
mkdir -p "$WORK" "$OUT"
[ -e /tmp/mixed138mb-1m4 ] || [ ! -e .device/mixed138mb-1m4.tgz ] || { mkdir /tmp/mixed138mb-1m4 && tar -C /tmp/mixed138mb-1m4 -xzf .device/mixed138mb-1m4.tgz; }
export OMP_NUM_THREADS=1 DATA WORK LIMIT DEVICE RECIPE BEGAN=$(date +%s)
one() { # TASK NAME ARGUMENTS...
    local task=$1 name=$2 left began=$(date +%s)
    shift 2
    left=$((LIMIT - $(date +%s) + BEGAN))
    [ "$left" -gt 5 ] || return
    mkdir -p "$WORK/$task"
    timeout "$left" python3 -c 'from mamba_bio_audio.cli.main import run; run()' evaluate --suite gue "$DATA" --task "$task" --recipe "$RECIPE" \
        --out "$WORK/$task/$name" --device "$DEVICE" --quiet "$@" >"$WORK/$task/$name.txt" 2>&1
    echo "$task $name: exit $? from $((began - BEGAN)) to $(($(date +%s) - BEGAN)) s: $(grep -m1 AUROC "$WORK/$task/$name.txt" | tr -s ' ' | cut -c1-60)"
}
export -f one
queue() { xargs -P "$1" -d '\n' -I{} bash -c 'one {}'; }

# What needs no choice: the small network, the largest tasks first, and frozen backbones.
{
    for task in $(tac -s ' ' <<<"$TASKS " | tr '\n' ' '); do echo "$task cnn --arms cnn"; done
    for task in $TASKS; do
        for backbone in $BACKBONES; do echo "$task frozen-$(basename "$backbone") --arms frozen --pretrained $backbone"; done
    done
} | queue $((JOBS > 8 ? JOBS - 7 : 1)) &
# The choice on dev.
for at in 0 1 2 3 4 5 6; do
    python3 benchmarks/device/finetune_trials.py --data "$DATA" --device "$DEVICE" --share "$at/7" --limit "$TRIALS" <benchmarks/device/suite_trials.txt >"$WORK/trials-$at.txt" 2>&1 &
    trials[at]=$!
done
wait "${trials[@]}"
cat "$WORK"/trials-*.txt | sort | tee "$OUT/trials.txt"
python3 benchmarks/device/suite_join.py choose "$OUT/trials.txt" >"$WORK/chosen.sh"
cat "$WORK/chosen.sh"
source "$WORK/chosen.sh" # TUNED, RATES, SCRATCH
echo "[$(($(date +%s) - BEGAN)) s] chosen"
SHAPE="--set model.d_model=128 --set model.num_layers=12 --set model.ssm.d_state=16"
for task in $TASKS; do
    case $task in
    tf_* | prom_core_all | prom_core_notata) tuned=4 scratch=4 step=16384 rates=${RATES#*,} own=4e-3 ;;
    *) tuned=6 scratch=10 step=8192 rates=$RATES own=2e-3,5e-3 ;;
    esac
    common="--seeds ${SEEDS:-0,1,2} --set train.tokens_per_step=$step ${MORE:-}"
    for backbone in $BACKBONES; do
        echo "$task tuned-$(basename "$backbone") --arms finetuned --pretrained $backbone --epochs $tuned --rates $rates $common $TUNED"
    done
    echo "$task scratch --arms scratch --epochs $scratch --rates $own $common $SHAPE ${NARROW:-} $SCRATCH"
done | queue $((JOBS > 8 ? JOBS - 4 : JOBS))
wait
# Every table, result and prediction; runs stay.
tar -C "$WORK" -czf "$OUT/suite.tgz" $(cd "$WORK" && ls -d */*/suite.* */*/predictions */*/tasks */*.txt *.txt chosen.sh 2>/dev/null)
ls -l "$OUT"
echo "[$(($(date +%s) - BEGAN)) s] done"
