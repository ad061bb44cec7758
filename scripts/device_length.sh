#!/usr/bin/env bash
# Length on the GPU machine, one part a call: scripts/device_length.sh length|parallel|needle|copy|chrx. Results go to $OUT.
set -uo pipefail
source scripts/device_env.sh
case "${1:?part}" in
length) # one GPU: peak memory and speed from 2^10 to 2^24 beside mamba_ssm, gradients streamed against whole at 2^20
  python3 benchmarks/bench_length.py --seconds 150 --out "$OUT/length.csv" ;;
parallel) # two GPUs: gradients of NCCL against one GPU, speed at 2^20, then the command itself on both
  python3 -m torch.distributed.run --nproc-per-node 2 benchmarks/bench_parallel.py --out "$OUT/sequence_parallel.csv"
  for parts in 1 2; do
    python3 -m torch.distributed.run --nproc-per-node 2 -m mamba_bio_audio pretrain dna/hg38-1.4m --quiet \
      --set data.path=.device/human --set train.devices=2 --set train.sequence_parallel=$parts --set train.length=65536 \
      --set train.tokens_per_step=262144 --set train.stream_chunk=16384 --set train.steps=40 --set train.validate_every=20 \
      --set train.validation_tokens=1000000 --set train.lr=2e-3 --out "/tmp/run_parallel_$parts" --force
    cp "/tmp/run_parallel_$parts/metrics.csv" "$OUT/metrics_parallel_$parts.csv"
  done ;;
needle) # class by a marker 9/10 of the window back: trained up to 2^14, tested up to 2^20
  timeout 590 python3 benchmarks/long_memory.py needle --num-layers 6 --d-model 128 --tokens 262144 --rows 128 \
    --out "$OUT/needle" --weights "$OUT/needle.pt" ;;
copy) # 16 bases again after up to 2^18 others, trained up to 2^14
  timeout 590 python3 benchmarks/long_memory.py copy --rows 64 --out "$OUT/copy" ;;
chrx) # chrX at 2^20 with length warm-up; call again to continue, then evaluated by context
  mkdir -p /tmp/chrx
  ln -sf "$PWD"/.device/human/hg19.chrX_* /tmp/chrx/
  python3 scripts/chrx_intervals.py /tmp/chrx
  arguments=(pretrain dna/chrx-len1m --set data.path=/tmp/chrx --set data.num_workers=4 --out /tmp/run_chrx)
  [ -e /tmp/run_chrx/checkpoints/last.ckpt ] && arguments+=(--resume)
  timeout -s TERM "${TRAIN_SECONDS:-400}" python3 -m mamba_bio_audio "${arguments[@]}" 2>&1 | tee "$OUT/pretrain.txt"
  timeout 170 python3 -m mamba_bio_audio evaluate /tmp/run_chrx --split test --blocks 128 \
    --context 1024,4096,16384,65536,262144,1048576 --out "$OUT" 2>&1 | tee "$OUT/context.txt"
  [ -n "${FASTA:-}" ] || FASTA=$(echo /tmp/chrx/hg19.chrX_2118239-7623882.fa.gz)
  timeout 60 python3 benchmarks/long_memory.py probe /tmp/run_chrx "$FASTA" --rows 16 --out "$OUT/copy_probe"
  cp /tmp/run_chrx/{metrics.csv,config.yaml,manifest.json,model.safetensors} "$OUT/" ;;
*) echo "unknown part $1"; exit 2 ;;
esac
