#!/usr/bin/env bash
# Models of about 1.4 M parameters on the human set at 1,024 bases: 65.5 M bases a run, the same batches, three seeds, each at the best
# of the same three rates (tried for 100 steps).
#   compare_human.sh SECONDS [ARCHIVE]         trains, a process for each model, beside each other (MPS makes that faster); goes on
#                                              with the runs that an earlier session packed
#   SPEED=1 compare_human.sh SECONDS ARCHIVE   the speed of each model, with the GPU to itself, and the table of all
# Leaves $OUT/compare_human.txt and $OUT/compare_human.tgz (no weights). DATA is the folder of kit.sh. MODELS names what is
# compared (the same in all calls), ONLY what of it is trained now; JOIN=0 leaves tables to another time.
kit=compare_human
source benchmarks/device/beside.sh
pack() { tar -C "$out" -czf "$out.$BASHPID.tgz" --exclude='*.safetensors' . 2>/dev/null; mv "$out.$BASHPID.tgz" "$OUT/compare_human.tgz"; }
models=${MODELS:-mamba transformer hyena h3 s4d-glu mamba2 retnet}
declare -A keys=([mamba]=@1.4m [transformer]=@transformer [hyena]=@hyena [h3]=@h3 [s4d-glu]=@s4dglu [mamba2]=@mamba2 [retnet]=@retnet
  [fixed]=@1.4m,model.mixer=s4d-real)
arms=()
for model in $models; do arms+=(--arm "$model=${keys[$model]}"); done
compare() { # SECONDS NAME OPTIONS...
  limited "$1" "$2" python3 -m mamba_bio_audio compare dna/hg38 "${arms[@]}" \
    --rates 1e-3,3e-3,9e-3 --seeds 0,1,2 --sweep-steps "${SWEEP:-100}" \
    --set data.path="${DATA:-.device/human}" --set data.reverse_complement=true --set data.windows=random --set data.num_workers=1 \
    --set train.tokens_per_step=65536 --set train.steps=1000 --set train.validate_every=100 --set train.validation_tokens=1048576 \
    ${MORE:-} "${@:3}"
}
if [ -z "${SPEED:-}" ]; then
  running=()
  for model in ${ONLY:-$models}; do
    compare "$(left 30)" "$model" --only "$model" --together 1 --max-time "$(left 45)" --out "$out/parts/$model" &
    running+=($!)
  done
  packing "${running[@]}"
fi
[ "${JOIN:-}" != 0 ] || { tail -40 "$log"; exit 0; }
taken=()
for part in "$out"/parts/*/; do [ -e "$part/settings.json" ] && taken+=(--take "$part"); done
compare "$(left 5)" all "${taken[@]}" --together 1 --max-time "$([ -n "${SPEED:-}" ] && left 20 || echo 0.01)" --out "$out/human"
pack
echo "ended after $((SECONDS - begun)) s" >>"$log"
tail -40 "$log"
