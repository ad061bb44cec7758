# Sourced by scripts that train models beside each other in a time limit, with their arguments SECONDS [ARCHIVE...]; $kit is what they are
# called. What they made lies in $out, goes on from the archives, and what they say goes into $log as it comes.
set -u
seconds=$1
[ -n "${LOCAL:-}" ] || source benchmarks/device/env.sh
export OMP_NUM_THREADS=1
out=${RUN:-/tmp/$kit} log=$OUT/$kit.txt
mkdir -p "$out"
for archive in "${@:2}"; do tar -C "$out" -xzf "$archive"; done
begun=$SECONDS
# Seconds that are left but for so many, at least one.
left() { echo $((seconds - (SECONDS - begun) - $1 > 1 ? seconds - (SECONDS - begun) - $1 : 1)); }
# `limited SECONDS NAME COMMAND...` ends by itself; what it prints has the name before it.
limited() { timeout -k 5 "$1" "${@:3}" 2>&1 | sed -u "s|^|$2: |" >>"$log"; }
# `packing PROCESS...` waits for them and calls `pack` every 45 seconds, and once more.
packing() {
  (while sleep 45; do pack; done) &
  local packer=$!
  wait "$@"
  kill "$packer"
  pack
  echo "after $((SECONDS - begun)) s" >>"$log"
}
