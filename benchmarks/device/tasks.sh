#!/usr/bin/env bash
# Synthetic tasks on one GPU: bash benchmarks/device/tasks.sh SECONDS [ARCHIVE...]; goes on from what an earlier session packed.
#   induction            heads trained at 256 symbols, a constant rate as in the paper, three rates and three seeds for each mixer;
#                        then answers from 2^6 to 2^20
#   long                 the same for Mamba alone at one rate, longer, also with smaller initial step sizes
#   copying1024, ...2048 selective copying of 16 symbols, a selective block beside fixed ones of the same size, three rates and seeds
#   equal1024, ...1536, ...2048
#                        the same at the rate that all of these chose, longer, with models of one size; 32 sequences a step at each length
#   ablation             what of B, C and the step size depends on the input, number of states, rank of the step size, initial A
# A process for each model, beside each other (MPS makes that faster). PARTS names what runs: a part, or part:model,model
# (one process for all of them) several times; more than about eight processes slow each other down.
# SPEED=1 measures the models of a part, with the GPU to itself, and joins; JOIN=0 leaves that to another time.
# Leaves $OUT/tasks.tgz, $OUT/tasks.txt and, of trainings that were cut, as many states as 16 MB hold, in the order of PARTS:
# $OUT/tasks_unfinished.tgz.
kit=tasks
source benchmarks/device/beside.sh
# TRACE=SECONDS: processes say every so many seconds where they are, for what hangs.
traced="${TRACE:+import faulthandler; faulthandler.dump_traceback_later($TRACE, repeat=True); }from mamba_bio_audio.cli.main import run; run()"
compare() { limited "$(left "$margin")" "$name" python3 -c "$traced" compare "$@"; }
pack() { # Runs without what was joined (it is in the parts), weights of induction heads alone, for lengths that are to come, if they fit.
  local without=(--exclude=./induction/runs --exclude=./long/runs --exclude='./copying*/runs' --exclude='./equal*/runs' --exclude=./ablation/runs --exclude=unfinished.safetensors)
  local small=(--exclude='./parts/copying*/model.safetensors' --exclude='./parts/equal*/model.safetensors' --exclude='./parts/ablation*/model.safetensors')
  local packed=$out.$BASHPID.tgz
  tar -C "$out" -czf "$packed" "${without[@]}" "${small[@]}" . 2>/dev/null
  [ "$(stat -c %s "$packed")" -lt 16000000 ] || tar -C "$out" -czf "$packed" "${without[@]}" --exclude=model.safetensors . 2>/dev/null
  mv "$packed" "$OUT/tasks.tgz"
  local states=() size=0 entry state
  for entry in "${parts[@]}"; do
    state=parts/$(name_of "$entry")/unfinished.safetensors
    [ -e "$out/$state" ] && size=$((size + $(stat -c %s "$out/$state"))) && [ "$size" -lt 16000000 ] && states+=("$state")
  done
  rm -f "$OUT/tasks_unfinished.tgz"
  [ ${#states[@]} = 0 ] || tar -C "$out" -czf "$OUT/tasks_unfinished.tgz" "${states[@]}" 2>/dev/null
}
name_of() { local group=${1#*:}; echo "${1%%:*}-${group%%,*}"; }
common="--set train.checkpoint_every=1000 ${MORE:-}"
parts=(${PARTS:-induction:mamba copying2048:mamba copying2048:s4d copying2048:s4d-real copying1024:mamba copying1024:s4d})
induction() {
  compare synthetic/induction --mixers mamba,transformer,mamba2,h3 \
    --arm "hyena=model.mixer=hyena,model.options={max_length: 16384}" --rates 3e-4,1e-3,3e-3 --every-rate \
    --set train.tokens_per_step=8192 --set train.steps="${INDUCTION_STEPS:-5000}" --set train.validate_every="${INDUCTION_EVERY:-1000}" \
    --set train.lr_min=1 --set train.warmup=0.01 --set train.validation_tokens=65536 $common "$@"
}
long() {
  compare synthetic/induction --arm mamba= --arm mamba-slow=model.ssm.dt_min=1e-5,model.ssm.dt_floor=1e-6 --rates 2e-3 --every-rate \
    --set train.tokens_per_step=8192 --set train.steps="${LONG_STEPS:-24000}" --set train.validate_every="${LONG_EVERY:-4000}" \
    --set train.lr_min=1 --set train.warmup=0.01 --set train.validation_tokens=65536 $common "$@"
}
copying1024() { copying 1024 "${COPYING_STEPS:-7000}" 2e-3,4e-3,8e-3 --every-rate "$@"; }
copying2048() { copying 2048 "${COPYING_STEPS:-8000}" 8e-3,12e-3 "$@"; }
equal1024() { equal 1024 "$@"; }
equal1536() { equal 1536 "$@"; }
equal2048() { equal 2048 "$@"; }
equal() { # LENGTH ...: fixed blocks with as many weights as the selective one (66,496): complex 65,984, real 64,448.
  compare synthetic/selective-copying --arm mamba= --arm "s4d=model.mixer=s4d,model.ssm.d_state=9" --arm s4d-real=model.mixer=s4d-real \
    --seeds 0,1,2 --rates "${EQUAL_RATES:-4e-3}" --every-rate --set train.length="$1" --set train.steps="${COPYING_STEPS:-10000}" \
    --set train.tokens_per_step="$(($1 * 32))" --set train.validate_every="${COPYING_EVERY:-1000}" --set train.validation_tokens="$(($1 * 256))" $common "${@:2}"
}
copying() { # LENGTH STEPS RATES ...
  compare synthetic/selective-copying --mixers mamba,s4d,s4d-real --seeds 0,1,2 --set train.length="$1" --set train.steps="$2" \
    --rates "$3" --set train.tokens_per_step=32768 --set train.validate_every="${COPYING_EVERY:-1000}" \
    --set train.validation_tokens=262144 $common "${@:4}"
}
ablation() {
  local arms=(--arm all=) selective states
  for selective in false dt bc; do arms+=(--arm "selective-$selective=model.ssm.selective=$selective"); done
  for states in 1 4; do arms+=(--arm "states-$states=model.ssm.d_state=$states"); done
  arms+=(--arm rank-1=model.ssm.dt_rank=1 --arm A-half=model.ssm.real_init=1/2 --arm A-random=model.ssm.real_init=random)
  # The slow ones last: a scan for each state.
  for selective in b c; do arms+=(--arm "selective-$selective=model.ssm.selective=$selective"); done
  compare synthetic/selective-copying "${arms[@]}" --rates 4e-3 --every-rate --seeds 0,1,2 \
    --set train.tokens_per_step=8192 --set train.steps="${ABLATION_STEPS:-4000}" \
    --set train.validate_every="${ABLATION_EVERY:-1000}" --set train.validation_tokens=65536 $common "$@"
}
running=()
if [ -z "${SPEED:-}" ]; then
  for entry in "${parts[@]}"; do
    part=${entry%%:*} group=${entry#*:}
    name=$(name_of "$entry") margin=14
    (
      # Induction heads are scored by length after their training.
      $part --only "$group" --together "${TOGETHER:-9}" --max-time "$(left "$([[ $part =~ induction|long ]] && echo $((22 + seconds / 7)) || echo 22)")" \
        --out "$out/parts/$name"
      [[ ! $part =~ induction|long ]] || limited "$(left 14)" "$name" \
        python3 benchmarks/device/tasks_lengths.py "$out/parts/$name" --seconds "$(left 24)" ${LENGTHS:-}
    ) &
    running+=($!)
  done
  packing "${running[@]}"
fi
[ "${JOIN:-}" != 0 ] || { tail -60 "$log"; exit 0; }
running=()
for part in $(printf '%s\n' "${parts[@]%%:*}" | sort -u); do
  taken=()
  for folder in "$out"/parts/"$part"-*/; do [ -e "$folder/settings.json" ] && taken+=(--take "$folder"); done
  name=$part margin=4
  (
    $part "${taken[@]}" --together 1 --max-time "$([ -n "${SPEED:-}" ] && left 20 || echo 0.01)" --out "$out/$part"
    if [[ $part =~ induction|long ]]; then
      cat "$out/parts/$part"-*.lengths.csv | awk 'NR == 1 || !/^arm,/' >"$out/$part.lengths.csv"
      limited "$(left 2)" "lengths $part" python3 benchmarks/device/tasks_lengths.py "$out/$part" --seconds 0
    fi
  ) &
  running+=($!)
done
wait "${running[@]}"
pack
echo "ended after $((SECONDS - begun)) s" >>"$log"
tail -60 "$log"
