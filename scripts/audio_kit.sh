#!/usr/bin/env bash
# Adds the audio data of the GPU runs to .device/: `digits` (FSDD at 16 kHz, by speaker: 2,500 clips) or `piano` (34 MB).
# Carry .device/wheels and only the one that a run needs: all together are above the limit of what travels.
set -euo pipefail
cd "$(dirname "$0")/.."
data=${2:-../shared/data}
mba=${MBA:-.venv/bin/mba}
case ${1:?digits or piano} in
  digits)
    "$mba" prepare audio "$data/sc09/fsdd_8k" --out .device/digits --force --quiet
    # One speaker is never heard in training: test. Takes 5 to 9 of the others are validation.
    ( printf 'file\tsplit\n'
      cd .device/digits && ls */*.flac | while read -r file; do
        name=$(basename "$file" .flac); speaker=$(cut -d_ -f2 <<<"$name"); take=$(cut -d_ -f3 <<<"$name")
        split=train
        [ "$take" -ge 5 ] && [ "$take" -le 9 ] && split=valid
        [ "$speaker" = theo ] && split=test
        printf '%s\t%s\n' "$file" "$split"
      done ) > .device/digits.tsv
    mv .device/digits.tsv .device/digits/intervals.tsv ;;
  piano)
    mkdir -p .device/piano
    cp "$data"/piano/*.flac .device/piano/
    ( printf 'file\tsplit\n'
      cd .device/piano && for file in *.flac; do
        case $file in
          scarlatti_k525.flac|bach_bwv858_prelude.flac) split=valid ;;
          debussy_estampes_no1.flac) split=test ;;
          *) split=train ;;
        esac
        printf '%s\t%s\n' "$file" "$split"
      done ) > .device/piano/intervals.tsv ;;
esac
chmod -R u+w .device
du -sh .device/*
