#!/usr/bin/env bash
# Length on the GPU machine, one part a call: benchmarks/device/length.sh length|parallel|memory|needle|copy|chrx.
# Results go to $OUT, a few files each (eight come back). Variables:
#   LIMIT    seconds of a whole part: memory, needle, copy, chrx 380, parallel 130
#   CONTEXT BLOCKS PAIRS                                    of the evaluations after chrx
#   NEEDLE_ARGS COPY_ARGS CHRX_ARGS PARALLEL_ARGS RUN_ARGS  more arguments, for a try on a CPU
set -uo pipefail
begun=$SECONDS
left() { echo $((LIMIT - SECONDS + begun - ${1:-0})); }
source benchmarks/device/env.sh
part=${1:?part}
case "$part" in parallel) LIMIT=${LIMIT:-130} ;; *) LIMIT=${LIMIT:-380} ;; esac
human=${HUMAN:-$PWD/.device/human}
work=${WORK:-/tmp/device_length}
mkdir -p "$OUT" "$work"
pack() { tar -czf "$OUT/$1.tgz" -C "$work/$1" .; }

# Class by a marker 9/10 of the window back: trained up to 2^14, tested up to 2^20.
needle() {
  mkdir -p "$work/needle"
  python3 benchmarks/long_memory.py needle --seconds "$(left 20)" --out "$work/needle/needle" \
    --weights "$work/needle/needle.pt" ${NEEDLE_ARGS:-} > "$OUT/needle.txt" 2>&1
  pack needle
}

# 16 bases again after up to 2^20 others, trained up to 2^14.
copy() {
  mkdir -p "$work/copy"
  python3 benchmarks/long_memory.py copy --seconds "$(left 20)" --out "$work/copy/copy" \
    --weights "$work/copy/copy.pt" ${COPY_ARGS:-} > "$OUT/copy.txt" 2>&1
  pack copy
}

# chrX at 2^20 with length warm-up for two thirds of the time, then perplexity by context and the copy probe.
chrx() {
  mkdir -p "$work/chrx" "$work/chrx_data"
  ln -sf "$human"/hg19.chrX_* "$work/chrx_data/"
  python3 scripts/chrx_intervals.py "$work/chrx_data" || return
  local run="$work/chrx/run"
  # Stopped by the time, it saves and keeps the best weights so far.
  timeout -s INT -k 30 "$(left $((LIMIT / 3)))" python3 -m mamba_bio_audio pretrain dna/chrx-len1m --quiet --force \
    --set data.path="$work/chrx_data" --set data.num_workers=4 --out "$run" ${CHRX_ARGS:-}
  echo "training ended with $? at $((SECONDS - begun)) s"
  cp "$run"/{metrics.csv,config.yaml,manifest.json,model.safetensors} "$work/chrx/" && pack_chrx
  timeout -s INT -k 5 "$(left $((LIMIT / 8)))" python3 -m mamba_bio_audio evaluate "$run" --split test --blocks "${BLOCKS:-64}" \
    --context "${CONTEXT:-1024,4096,16384,65536,262144,1048576}" --out "$work/chrx"
  echo "evaluation ended with $? at $((SECONDS - begun)) s"
  pack_chrx
  # A stretch of the test half of the held-out record only.
  python3 benchmarks/long_memory.py probe "$run" "$work/chrx_data/hg19.chrX_2118239-7623882.fa.gz" \
    --first-base "${FIRST_BASE:-2752822}" --rows "${PAIRS:-32}" --seconds "$(left 12)" --out "$work/chrx/copy_probe" ${PROBE_ARGS:-}
  pack_chrx
}
pack_chrx() { tar -czf "$OUT/chrx.tgz" -C "$work/chrx" --exclude ./run .; }

case "$part" in
length) # one GPU: peak memory and speed from 2^10 to 2^24 beside mamba_ssm, gradients streamed against whole at 2^20
  python3 benchmarks/bench_length.py --seconds 150 --out "$OUT/length.csv" ;;
parallel) # two GPUs: gradients of NCCL against one GPU, speed at 2^20, then the command itself with a sequence on both
  # The first time their kernels take a minute or two to compile: run it once before, beside other work. Output goes to a file, and
  # workers, which outlive a killed torchrun and would hold a pipe open, are ended by the path they alone write to.
  torchrun() { timeout -s INT -k 10 "$1" python3 -m torch.distributed.run --standalone --nproc-per-node 2 "${@:2}" >>"$log" 2>&1; }
  log=$OUT/parallel.txt
  torchrun $((LIMIT * 2 / 3)) benchmarks/bench_parallel.py --seconds $((LIMIT / 3)) \
    --out "$OUT/sequence_parallel.csv" ${PARALLEL_ARGS:-}
  pkill -9 -f -- "--out $OUT/sequence_parallel.csv"
  for parts in 2 1; do
    [ "$(left)" -gt 20 ] || { echo "no time left for sequence_parallel=$parts" >>"$log"; continue; }
    torchrun "$(left 10)" -m mamba_bio_audio pretrain dna/hg38@1.4m \
      --quiet --set data.path="$human" --set train.devices=2 --set train.sequence_parallel=$parts --set train.length=65536 \
      --set train.tokens_per_step=262144 --set train.stream_chunk=16384 --set train.steps=20 --set train.validate_every=10 \
      --set train.validation_tokens=1000000 --set train.lr=2e-3 --out "$work/parallel_$parts" --force ${RUN_ARGS:-}
    pkill -9 -f -- "--out $work/parallel_$parts"
    cp "$work/parallel_$parts/metrics.csv" "$OUT/metrics_parallel_$parts.csv"
  done
  grep -v '^frame\|TCPStore' "$log" | tail -n 40 ;;
memory) # all three at the same time on one GPU
  needle & copy &
  chrx > "$OUT/chrx.txt" 2>&1 &
  wait
  tail -n 40 "$OUT"/{needle,copy,chrx}.txt ;;
needle) needle; cat "$OUT/needle.txt" ;;
copy) copy; cat "$OUT/copy.txt" ;;
chrx) chrx 2>&1 | tee "$OUT/chrx.txt" ;;
*) echo "unknown part $part"; exit 2 ;;
esac
