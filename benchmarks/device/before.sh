#!/usr/bin/env bash
# Puts the package as it was at a commit beside the present one, under another name, for benchmarks/before_after.py.
#
#     benchmarks/device/before.sh COMMIT        fills .device/before/mamba_before; runs here, carry .device/before
set -euo pipefail
cd "$(dirname "$0")/../.."
commit=$(git rev-parse --short "$1")
out=.device/before
rm -rf "$out"
mkdir -p "$out"
git archive "$commit" mamba_bio_audio | tar x -C "$out"
mv "$out/mamba_bio_audio" "$out/mamba_before"
grep -rl mamba_bio_audio "$out" --include='*.py' --include='*.yaml' | xargs sed -i 's/mamba_bio_audio/mamba_before/g'
echo "$commit" >"$out/COMMIT"
du -sh "$out"
