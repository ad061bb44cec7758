# What `mba finetune dna/short` reaches in five minutes of one CPU core on prom_core_tata (official splits), beside 5-mers (.817 AUROC).
#   DATA (folder of GUE), MORE (words of --set), LIMIT (seconds of each training, 330)
# One core for each of four settings, then the speed of prediction on one core. No GPU.
set -u
[ -n "${LOCAL:-}" ] || source benchmarks/device/env.sh
DATA=${DATA:-/tmp/data/gue} WORK=${WORK:-/tmp/short} LIMIT=${LIMIT:-330}
mkdir -p "$WORK"
export OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES=
mba() { python3 -c 'from mamba_bio_audio.cli.main import run; run()' "$@"; }
one() { # NAME SETTINGS...
    local name=$1 began=$(date +%s%N) seconds
    shift
    TIMEFORMAT='%U + %S s of CPU, %R s'
    { time timeout "$LIMIT" python3 -c 'from mamba_bio_audio.cli.main import run; run()' finetune dna/short --set data.path="$DATA/prom_core_tata" "$@" ${MORE:-} \
        --out "$WORK/$name" --device cpu >"$WORK/$name.txt" 2>&1; } 2>"$WORK/$name.time"
    seconds=$((($(date +%s%N) - began) / 1000000000))
    mba evaluate "$WORK/$name" --split test --no-baselines --device cpu >"$WORK/$name.test" 2>&1
    echo "$name: $* | $seconds s with start and end ($(cat "$WORK/$name.time")) | $(grep -h 'best validation' "$WORK/$name.txt") | $(grep -h MCC "$WORK/$name.test")" | tee -a "$OUT/short_cpu.txt"
}
one recipe &
one one-strand --set data.reverse_complement=false &
one one-strand-max --set data.reverse_complement=false --set head.pool=max &
one one-strand-8e-3 --set data.reverse_complement=false --set train.lr=8e-3 &
wait
{ nproc; grep -m1 'model name' /proc/cpuinfo; python3 -c 'import torch; print(torch.__version__)'; date -u +%F; } | tr '\n' ' ' >>"$OUT/short_cpu.txt"
[ -n "${LOCAL:-}" ] || python3 benchmarks/predict_speed.py --bases 131072 --out "$OUT/predict_cpu.csv"
