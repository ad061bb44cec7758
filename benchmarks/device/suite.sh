# The tasks of GUE side by side on one GPU: k-mers, the small network, and our model from scratch, three seeds.
#   DATA (folder of the tasks), RECIPE, SETTINGS (words of --set), ARMS, JOBS (8), LIMIT (seconds, 540)
set -u
source benchmarks/device/env.sh
DATA=${DATA:-/tmp/data/gue} RECIPE=${RECIPE:-dna/short} ARMS=${ARMS:-kmers,cnn,scratch} JOBS=${JOBS:-8} LIMIT=${LIMIT:-540}
WORK=${WORK:-/tmp/suite} OUT=${OUT:-/tmp/suite-out}
mkdir -p "$WORK" "$OUT"
export OMP_NUM_THREADS=1
settings=()
for word in ${SETTINGS:-train.steps=3000 train.tokens_per_step=32768 model.d_model=128 model.num_layers=4}; do settings+=(--set "$word"); done
one() {
    local task=$1
    shift
    timeout "$((LIMIT - SECONDS))" python3 -c 'from mamba_bio_audio.cli.main import run; run()' evaluate --suite gue "$DATA" --task "$task" \
        --recipe "$RECIPE" --arms "$ARMS" --out "$WORK/$task" --quiet "$@" >"$WORK/$task.txt" 2>&1
    echo "$task: exit $? after $SECONDS s"
    sed -n 2,4p "$WORK/$task.txt"
}
# The largest first.
for task in prom_core_all prom_core_notata tf_0 tf_1 tf_3 tf_4 mouse_4 mouse_0 prom_300_tata prom_core_tata mouse_2; do
    [ -d "$DATA/$task" ] || continue
    [ -z "${TASKS:-}" ] || [[ " $TASKS " = *" $task "* ]] || continue
    while [ "$(jobs -rp | wc -l)" -ge "$JOBS" ]; do wait -n; done
    one "$task" "${settings[@]}" &
done
wait
# One table of all, and every result as it was written.
python3 - "$WORK" "$OUT" <<'P'
import csv, json, sys
from pathlib import Path

work, out = map(Path, sys.argv[1:])
rows = [row for path in sorted(work.glob("*/suite.csv")) for row in csv.DictReader(path.open(newline=""))]
if rows:
    with (out / "gue.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
found = [json.loads(path.read_text()) for path in sorted(work.glob("*/suite.json"))]
(out / "gue.json").write_text(json.dumps({"tasks": [task for one in found for task in one["tasks"]], "machine": found[0]["machine"] if found else {}, "errors": {path.stem: path.read_text()[-1500:] for path in work.glob("*.txt") if not (work / path.stem / "suite.json").exists()}}))
P
