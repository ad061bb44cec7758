# Starts of open reading frames learnt by head.task=bases, several models side by side, each in a process of its own (benchmarks/orfs.py).
#   LIMIT (seconds, 170), STEPS (2500), DEVICE, MORE (options of orfs.py), ARMS (lines RECIPE CODONS ARM)
set -u
[ -n "${LOCAL:-}" ] || source benchmarks/device/env.sh
LIMIT=${LIMIT:-170} DEVICE=${DEVICE:-cuda} STEPS=${STEPS:-2500} WORK=${WORK:-/tmp/orfs}
mkdir -p "$WORK"
export OMP_NUM_THREADS=1
default='dna/short 20 short
dna/short 20 short-complex=model.ssm.complex=true
dna/short 20 short-4-layers=model.num_layers=4;model.ssm.d_state=16
dna/species 20 species
dna/species 20 species-complex=model.ssm.complex=true
dna/species 20 pretrained=head.pretrained=human42mb-1m4;train.lr=1e-3'
at=0
while read -r recipe codons arm; do
    at=$((at + 1))
    [ "$recipe" = dna/species ] && plain="--set train.ema=0.99" || plain=
    timeout "$LIMIT" python3 benchmarks/orfs.py --recipe "$recipe" --codons "$codons" --arm "$arm" --device "$DEVICE" --out "$WORK/$at.csv" --work "$WORK/$at" --seconds $((LIMIT - 50)) \
        --set train.steps="$STEPS" --set train.patience=null --set train.validate_every=500 --set train.checkpoint_every=500 --set data.evaluation_windows=1000 \
        --set data.num_workers=1 $plain ${MORE:-} >"$WORK/$at.txt" 2>&1 &
done <<<"${ARMS:-$default}"
wait
for file in "$WORK"/*.txt; do echo "$file: $(tail -n 1 "$file" | cut -c1-600)"; done
head -qn 1 "$WORK"/*.csv | sort -u >"$OUT/orfs.csv"
tail -qn +2 "$WORK"/*.csv >>"$OUT/orfs.csv"
echo "[$SECONDS s] done"
