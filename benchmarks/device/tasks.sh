#!/usr/bin/env bash
# Synthetic tasks on one GPU, three comparisons, two beside each other, within about SECONDS (default 150), into /tmp/tasks:
#   induction  heads trained at 256 symbols, three rates and three seeds for each mixer, then answers from 2^6 to 2^20
#   copying    selective copying of 16 symbols in 256, a selective block beside fixed ones of the same size
#   ablation   what of B, C and the step size depends on the input, number of states, rank of the step size, initial A
# Goes on from what an earlier session packed: bash benchmarks/device/tasks.sh SECONDS [tasks.tgz]
# Leaves $OUT/tasks.tgz (runs, tables, pictures) and $OUT/tasks.txt.
set -u
seconds=${1:-150}
source benchmarks/device/env.sh
mkdir -p /tmp/tasks
[ -n "${2:-}" ] && tar -C /tmp/tasks -xzf "$2"
out=/tmp/tasks
begun=$SECONDS
lengths=$((seconds / 5))
training=$((seconds - lengths - 5))
short="--set train.validation_tokens=65536 --set train.checkpoint_every=1000"
mba compare synthetic/induction --mixers mamba,transformer,mamba2,h3 \
  --arm "hyena=model.mixer=hyena,model.options={max_length: 16384}" --rates 1e-3,2e-3,4e-3 --every-rate --together 9 \
  --set train.tokens_per_step=2048 --set train.steps=20000 --set train.validate_every=4000 $short \
  --max-time "$training" --out $out/induction >$out/induction.txt 2>&1 &
first=$!
arms=(--arm all=)
for selective in false b c dt bc; do arms+=(--arm "selective-$selective=model.ssm.selective=$selective"); done
for states in 1 4; do arms+=(--arm "states-$states=model.ssm.d_state=$states"); done
arms+=(--arm rank-1=model.ssm.dt_rank=1 --arm A-half=model.ssm.real_init=1/2 --arm A-random=model.ssm.real_init=random)
(
  mba compare synthetic/selective-copying --mixers mamba,s4d-real,s4d --rates 2e-3,4e-3,8e-3 --seeds 0,1,2 --together 9 \
    --set train.steps=8000 --set train.validate_every=1000 $short \
    --max-time $((training * 6 / 10)) --out $out/copying >$out/copying.txt 2>&1
  left=$((training - (SECONDS - begun)))
  mba compare synthetic/selective-copying "${arms[@]}" --rates 2e-3,4e-3,8e-3 --seeds 0,1,2 --together 11 \
    --set data.memorize=8 --set train.length=128 --set train.tokens_per_step=4096 --set train.steps=4000 \
    --set train.validate_every=1000 $short --max-time $((left > 1 ? left : 1)) --out $out/ablation >$out/ablation.txt 2>&1
) &
second=$!
wait $first
timeout $((lengths + 15)) python3 benchmarks/device/tasks_lengths.py $out/induction --seconds "$lengths" >$out/lengths.txt 2>&1
wait $second
{
  echo "$((SECONDS - begun)) s"
  for name in induction copying ablation lengths; do echo "== $name"; tail -40 $out/$name.txt; done
} | tee "$OUT/tasks.txt"
tar -C $out -czf "$OUT/tasks.tgz" --exclude='unfinished.safetensors' .
tar -C $out -czf "$OUT/tasks_whole.tgz" .
[ "$(stat -c %s "$OUT/tasks_whole.tgz")" -lt 15000000 ] && mv "$OUT/tasks_whole.tgz" "$OUT/tasks.tgz" || rm -f "$OUT/tasks_whole.tgz"
