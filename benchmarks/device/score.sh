#!/usr/bin/env bash
# Times `mba score` on 26 Mb of chrX on one H200: one strand in fp32 and bf16, and both strands; about three minutes in all.
# On the GPU machine with .device/human and .device/wheels (kit.sh); everything said goes to $OUT/score.txt.
# RUN is a run, also as a .tgz, an export or a packaged model. For a rehearsal: LOCAL=1 takes the Python at hand, FASTA another file.
set -uo pipefail
[ -n "${LOCAL:-}" ] || source benchmarks/device/env.sh
fasta=${FASTA:-.device/human/hg19.chrX_10788675-37098256.fa.gz} work=$(mktemp -d)
timed() {
  echo "== $*" | tee -a "$OUT/score.txt"
  python3 - "$@" 2>&1 <<'PYTHON' | tee -a "$OUT/score.txt"
import resource, subprocess, sys, time
since = time.perf_counter()
code = subprocess.run([sys.executable, "-m", "mamba_bio_audio", *sys.argv[1:]]).returncode
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
print(f"exit {code}, {time.perf_counter() - since:.1f} s, at most {peak:.2f} GiB of host memory")
PYTHON
}
model=${RUN:-human42mb-1m4}
if [ -f "$model" ]; then  # a run as human42mb.sh packs it
  mkdir "$work/run" && tar -C "$work/run" -xzf "$model" && model=$work/run
fi
timed score "$model" "$fasta" --out "$work/forward.bw"
timed score "$model" "$fasta" --out "$work/again.bw" --json
timed score "$model" "$fasta" --out "$work/bf16.bw" --precision bf16
timed score "$model" "$fasta" --out "$work/both.bw" --strand both
for how in "--bases 1048576 --pieces 131072,4096" "--bases 2000 --pieces 100,1"; do
  python3 benchmarks/score_pieces.py "$model" "$fasta" $how 2>&1 | tee -a "$OUT/score.txt"
done
ls -l "$work" | tee -a "$OUT/score.txt"
