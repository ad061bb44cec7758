#!/usr/bin/env bash
# Models of about 1.4 M parameters on the human set at 1,024 bases: 65.5 M bases a run, the same batches, three seeds, each at the best
# of three rates (tried for 300 steps). Stops after SECONDS (default 300) and goes on in a later session from what it packed:
# bash benchmarks/device/compare_human.sh SECONDS [compare_human.tgz]. DATA is the folder of kit.sh. A GPU to itself: times are recorded.
set -u
[ -n "${LOCAL:-}" ] || source benchmarks/device/env.sh
[ -z "${LOCAL:-}" ] || mba() { python3 -m mamba_bio_audio "$@"; }
out=${RUN:-/tmp/compare_human}
mkdir -p "$out"
[ -n "${2:-}" ] && tar -C "$out" -xzf "$2"
mba compare dna/hg38 --arm mamba=@1.4m --arm transformer=@transformer --arm hyena=@hyena --arm h3=@h3 --arm s4d-glu=@s4dglu \
  --arm mamba2=@mamba2 --arm retnet=@retnet \
  --set data.path="${DATA:-.device/human}" --set data.reverse_complement=true --set data.windows=random --set data.num_workers=8 \
  --set train.tokens_per_step=65536 --set train.steps=1000 --set train.validate_every=100 --set train.validation_tokens=1048576 ${MORE:-} \
  --seeds 0,1,2 --sweep-steps 300 --max-time "${1:-300}" --out "$out/human" 2>&1 | tee "$OUT/compare_human.txt"
tar -C "$out" -czf "$OUT/compare_human.tgz" .
