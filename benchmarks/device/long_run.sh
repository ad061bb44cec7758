#!/usr/bin/env bash
# Trains a recipe of scripts/pretraining_data.py (or any other) for a budget of seconds. Called again on the same machine it goes
# on where it ended; on another one it goes on from the pieces of the call before, copied to .device/. RECIPE, BASES and MORE
# stay the same from call to call: the rate falls over BASES bases, however many calls they take.
#   RECIPE=.device/pretrain/human56mb-7m.yaml BASES=2500000000 BUDGET=540 bash benchmarks/device/long_run.sh
# BUDGET: seconds of this call in all, start and packing included. MORE: further --set keys. EVALUATE=1: likelihood of validation
# and test at the end, if the training is done. STATE=1: also bring back the state to go on from (12 bytes a parameter).
# Comes back: $OUT/NAME.txt (what was printed) and $OUT/NAME.tar.00 ... of at most 16 MiB, 7 at most: `cat NAME.tar.* | tar -x`.
# For a rehearsal without the machine: LOCAL=1 DEVICE=cpu.
set -uo pipefail
[ -n "${LOCAL:-}" ] || source benchmarks/device/env.sh
recipe=${RECIPE:?a recipe} device=${DEVICE:-cuda} budget=${BUDGET:-540} bases=${BASES:-2500000000}
name=${NAME:-$(basename "$recipe" .yaml)} && run=${RUN:-/tmp/$name} said=$OUT/$name.txt
mba() { python3 -m mamba_bio_audio "$@"; }
log() { echo "[$SECONDS s] $*" | tee -a "$said"; }
positions=$(python3 -c "from mamba_bio_audio.run.config import load_config as load; import sys
print(load(sys.argv[1], [a for a in sys.argv[2:] if a != '--set']).train.tokens_per_step)" "$recipe" ${MORE:-})
steps=$((bases / positions))
pieces=(.device/"$name".tar.[0-9]*)
if [ ! -e "$run" ] && [ -e "${pieces[0]}" ]; then mkdir -p "$run" && cat "${pieces[@]}" | tar -C "$run" -x && log "goes on from ${#pieces[@]} pieces"; fi
resume=() && [ -e "$run/checkpoints/last.safetensors" ] && resume=(--resume)
# Packing takes seconds; a validation that has begun is put off to the next call.
log "$recipe: $steps steps of $positions, ${resume[*]:-from the start}"
mba pretrain "$recipe" --set train.steps=$steps ${MORE:-} --out "$run" --device "$device" --max-time $((budget - SECONDS - ${RESERVE:-30})) \
  "${resume[@]}" 2>&1 | tee -a "$said"
done=$(python3 -c "import json, sys; print(json.load(open(sys.argv[1]))['result']['stopped_by'] is None)" "$run/manifest.json" 2>/dev/null)
if [ -n "${EVALUATE:-}" ] && [ "$done" = True ]; then
  for split in valid test; do mba evaluate "$run" --split $split --no-baselines --device "$device" 2>&1 | tee -a "$said"; done
fi
what=(config.yaml manifest.json metrics.csv) && [ -e "$run/model.safetensors" ] && what+=(model.safetensors)
[ -n "${STATE:-}" ] && what+=(checkpoints/last.safetensors) && [ -e "$run/checkpoints/best.safetensors" ] && [ ! -e "$run/model.safetensors" ] && what+=(checkpoints/best.safetensors)
rm -f "$OUT/$name".tar.*
tar -C "$run" -c "${what[@]}" | split -b 15900K -d - "$OUT/$name.tar."
count=$(find "$OUT" -name "$name.tar.*" | wc -l)
log "done: $done; $count pieces, $(du -ch "$OUT/$name".tar.* | tail -1 | cut -f1)"
[ "$count" -le 7 ] || { log "more than 7 files would not come back: leave out STATE"; exit 1; }
