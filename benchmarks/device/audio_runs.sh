#!/usr/bin/env bash
# The audio runs of docs/audio.md on the GPU machine; results go to $OUT, one archive a run, each of the stages with a log of its own.
#   bash benchmarks/device/audio_runs.sh all          everything in PARTS at once on one GPU, then evaluation: RATE + SECONDS_MAX + 150 s
#   bash benchmarks/device/audio_runs.sh keep         only unpacks the data that travelled to $RUN, for a later call on the warm machine
# Data: audio_kit.sh makes .device/digits.tgz and .device/piano; both and .device/wheels fit into one call.
#   PARTS        of digits judge piano piano-8192 piano-32768 piano-131072 (all of them); piano-mamba is piano with other blocks
#   SECONDS_MAX  of training (300), its start and validations included; a run that is not done by then is saved as it stands
#   RATE         most seconds of a trial before, in which all run together until their speed is known, from which the steps
#                follow (90); 0 takes STEPS_digits, STEPS_piano and STEPS_lengths (the lengths train for equal steps and samples)
#   JUDGE_GPU    the judge trains on another one of the machine's GPUs
#   JUDGE        options of judge and recogniser (--judge-epochs 40; the published judge has 70)
# For a rehearsal: LOCAL=1 takes the Python at hand, EXTRA are more --set keys, SAMPLES clips.
set -uo pipefail
started=$SECONDS
[ -n "${LOCAL:-}" ] || source benchmarks/device/env.sh
RUN=${RUN:-/tmp/runs}
LOGS=$RUN/logs
mkdir -p "$RUN/data" "$LOGS" "$OUT"
export MAMBA_BIO_AUDIO_CACHE="$RUN/cache"
: "${JUDGE=--judge-epochs 40}"
say() { echo "[$((SECONDS - started)) s] $*" | tee -a "$LOGS/all.txt"; }
mba_for() { # seconds, log, arguments; SIGTERM, because what runs in the background of a script never sees SIGINT
  timeout -s TERM -k 60 "$1" python3 -c 'from mamba_bio_audio.cli.main import run; run()' "${@:3}" >>"$LOGS/$2.txt" 2>&1
  local code=$?
  [ $code = 0 ] || say "$2: $3 ended with code $code$([ $code = 124 ] && echo ', its time was over')"
  # Again after every stage, so that a call cut off brings its logs back.
  tar -C "$RUN" -czf "$RUN/logs.$BASHPID" logs 2>/dev/null
  mv "$RUN/logs.$BASHPID" "$OUT/logs.tgz"
  return $code
}
unpack() {
  [ -e .device/digits.tgz ] && [ ! -e "$RUN/data/digits" ] && tar -C "$RUN/data" -xzf .device/digits.tgz
  [ -e .device/piano ] && [ ! -e "$RUN/data/piano" ] && cp -r .device/piano "$RUN/data/"
  ls "$RUN/data"
}
recipe() { # name: the arguments that make the run
  local sets=() key
  sets=("audio/${1%%-*}" --set data.path="$RUN/data/${1%%-*}")
  for key in data.num_workers="${WORKERS:-2}" train.listen=0 ${EXTRA:-}; do sets+=(--set "$key"); done
  case $1 in
    digits) sets+=(--set train.listen="${LISTEN:-8}") ;;
    piano-[0-9]*) sets+=(--set train.length="${1#piano-}" --set 'train.length_warmup=[]') ;;
    piano-*) sets+=(--set model.mixer="${1#piano-}" --set 'train.length_warmup=[]') ;;
    piano) sets+=(--set 'train.length_warmup=[]') ;;
  esac
  printf '%s\n' "${sets[@]}"
}
trial() { # name: steps a second while everything runs, from the last two of the lines that come every ten seconds
  local arguments process log="$LOGS/trial-$1.txt"
  mapfile -t arguments < <(recipe "$1")
  timeout -s TERM -k 30 "$RATE" python3 -c 'from mamba_bio_audio.cli.main import run; run()' pretrain "${arguments[@]}" \
    --out "$RUN/trial/$1" --force --set train.steps=1000000 --set train.validate_every=1000000 --set train.listen=0 >"$log" 2>&1 &
  process=$!
  while kill -0 $process 2>/dev/null && [ ! -e "$RUN/trial/enough" ]; do
    sleep 1
    [ "$(grep -c '^step .* train ' "$log")" -ge 3 ] && touch "$RUN/trial/$1.enough"
    [ "$(ls "$RUN"/trial/*.enough 2>/dev/null | wc -l)" = "$(wc -w <<<"$trainings")" ] && touch "$RUN/trial/enough"
  done
  kill -TERM $process 2>/dev/null
  wait $process
  # Not the lines of validations, which come a step before others.
  grep '^step .* train ' "$log" | grep -o '^step [0-9,]*' | tr -d 'step ,' | tail -2 |
    awk 'NR == 1 { first = $1 } { last = $1 } END { print (NR > 1 ? (last - first) / 10.3 : 0) }' >"$RUN/trial/$1.rate"
}
steps_of() { # name: steps that fit into the time, or those given
  local given=STEPS_${1%%-*} rate names=("$1")
  [[ $1 == piano-[0-9]* ]] && given=STEPS_lengths && mapfile -t names < <(tr ' ' '\n' <<<"$PARTS" | grep '^piano-[0-9]')
  [ -z "${!given:-}" ] || { echo "${!given}"; return; }
  # The slowest of the lengths decides for all of them. Start, validations, and the clips that digits generate, come off.
  rate=$(for name in "${names[@]}"; do cat "$RUN/trial/$name.rate" 2>/dev/null; done | sort -g | head -1)
  awk -v rate="${rate:-0}" -v left="$((SECONDS_MAX - ($([ "$1" = digits ] && echo 75 || echo 35))))" \
    'BEGIN { steps = int(rate * left * 0.9 / 10) * 10; print (steps > 0 ? steps : 1000) }'
}
train() { # name
  local arguments steps again=() validations=5
  # A validation that generates clips takes as long as many steps.
  [ "$1" = digits ] && [ "${LISTEN:-8}" != 0 ] && validations=2
  mapfile -t arguments < <(recipe "$1")
  steps=$(steps_of "$1")
  if [ -f "$RUN/$1/config.yaml" ]; then
    again=(--resume)
    steps=$(awk '$1 == "steps:" { print $2 }' "$RUN/$1/config.yaml")
  fi
  say "$1: $steps steps"
  mba_for "$SECONDS_MAX" "$1" pretrain "${arguments[@]}" --out "$RUN/$1" "${again[@]}" --set train.steps="$steps" \
    --set train.validate_every=$(((steps + validations - 1) / validations)) --set train.checkpoint_every=$(((steps + 3) / 4))
  say "$1: trained, $(tail -2 "$LOGS/$1.txt" | head -1)"
}
pack() { # name, what else
  local files
  mapfile -t files < <(cd "$RUN/$1" && ls -d metrics.csv config.yaml manifest.json evaluate-*.json report.html "${@:2}" 2>/dev/null)
  tar -C "$RUN/$1" -czf "$OUT/$1.tgz" "${files[@]}"
}
judge() { # as soon as there is a run of digits, also one without weights
  local run
  for _ in {1..120}; do
    for run in "$RUN/digits" "$RUN/trial/digits"; do
      [ -f "$run/config.yaml" ] || continue
      mba_for $((SECONDS_MAX + RATE + 60)) judge evaluate "$run" --metrics sc09-judge --quiet $JUDGE
      say "judge: $(grep '^judge' "$LOGS/judge.txt" | tail -1)"
      return
    done
    sleep 1
  done
}
after() { # name: everything that comes after the training
  case $1 in
    digits)
      mba_for 90 digits-evaluate evaluate "$RUN/digits" --quiet
      mba_for 60 digits-evaluate evaluate "$RUN/digits" --split valid --quiet
      pack digits model.safetensors
      while [ -n "${judge_process:-}" ] && kill -0 "$judge_process" 2>/dev/null; do sleep 1; done
      mba_for "${METRICS_SECONDS:-180}" metrics evaluate "$RUN/digits" --metrics sc09 --num-samples "${SAMPLES:-2048}" --quiet $JUDGE
      mkdir -p "$RUN/digits/clips" && cp "$RUN"/digits/sc09/samples-*/{sample-0000[0-9].flac,index.tsv} "$RUN/digits/clips/"
      mba_for 60 report report "$RUN/digits" --quiet
      pack digits model.safetensors clips sc09/metrics.json sc09/first-samples.png tensorboard ;;
    piano)
      mba_for 120 piano-evaluate evaluate "$RUN/piano" --quiet
      mba_for 60 piano-evaluate evaluate "$RUN/piano" --split valid --quiet
      pack piano model.safetensors
      mba_for 120 piano-sample sample "$RUN/piano" --length "${PIANO_LENGTH:-80000}" --num-samples 4 --out "$RUN/piano/samples" --quiet
      mba_for 60 report report "$RUN/piano" --quiet
      pack piano model.safetensors samples ;;
    piano-*) # every length scores the same test samples, each once
      mba_for 90 "$1-evaluate" evaluate "$RUN/$1" --quiet
      pack "$1" ;;
  esac
  say "$1: done"
  sed -n '/model (/p' "$LOGS/$1-evaluate.txt" | tail -3
}
case ${1:?which run} in
  keep) unpack ;;
  all)
    PARTS=${PARTS:-digits judge piano piano-8192 piano-32768 piano-131072}
    SECONDS_MAX=${SECONDS_MAX:-300} RATE=${RATE:-90}
    trainings=$(tr ' ' '\n' <<<"$PARTS" | grep -v judge)
    unpack
    rm -rf "$RUN/trial" && mkdir -p "$RUN/trial"
    judge_process=
    if [[ " $PARTS " == *" judge "* ]]; then CUDA_VISIBLE_DEVICES=${JUDGE_GPU:-${CUDA_VISIBLE_DEVICES-0}} judge & judge_process=$!; fi
    if [ "$RATE" != 0 ]; then
      processes=()
      for name in $trainings; do trial "$name" & processes+=($!); done
      wait "${processes[@]}"
      say "steps a second together: $(cd "$RUN/trial" && tail -n +1 *.rate | tr -s '\n=>< ' ' ')"
    fi
    # All trainings end before anything is evaluated, so that the curves compare and generation has the GPU.
    processes=()
    for name in $trainings; do train "$name" & processes+=($!); done
    wait "${processes[@]}"
    say "trainings are over"
    for name in $trainings; do after "$name" & done
    wait
    say "all is over"
    for log in judge metrics; do tail -n 45 "$LOGS/$log.txt" 2>/dev/null; done
    ls -l "$OUT" ;;
  tests) timeout 580 python3 -m pytest -q tests/inference/test_decoding.py tests/models/test_unet.py 2>&1 | tee "$OUT/tests.txt" ;;
  *) echo "unknown run $1"; exit 2 ;;
esac
