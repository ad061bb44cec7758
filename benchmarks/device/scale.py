"""Trains and evaluates the models of a scale run, one job after another, in calls of a few minutes.

    python scripts/pretraining_data.py DATA .device/pretrain        # here; carry .device/pretrain (19 MB without the microbes)
    python3 benchmarks/device/scale.py pure context:pure+recall:pure --limit 590                # there, after env.sh
    python3 benchmarks/device/scale.py pure context:pure+recall:pure --limit 520 --leave 150    # the last call

The same line again goes on where the call before ended: on the same machine from $WORK (/tmp/scale), on another one from the
pieces that came back, copied to .device/, if they hold its state. Jobs run in the order they are given, one that fails or has
no time left is passed over; `a+b+c` are started at once and share the GPU.

With --leave a training with a warm-up of the length ends in this call: it takes as many steps at its full length as the speed
of the call before (or SPEED) says there is time for, less the seconds that are left to the jobs behind it, and its rate falls
to its end over these. If its time is up even so, the step that was reached is made its last one; before its full length, the
best weights so far are scored.

    NAME             a training of JOBS below (`--list` shows them); NAME@SEED another seed; its likelihood follows
    apes-LENGTH      great apes at 1k to 512k from the weights of `pure`, and the seen loci of another individual; @SEED too;
                     needs .device/apes with a folder per species (16 MB: human, chimpanzee, gorilla, orangutan)
    context:NAME     perplexity of the same bases by context, 2^10 to 2^17, all test bases; context20:NAME to 2^20, chrX alone
    recall:NAME      real pieces that come again 64 to 262,144 bases later

What simple models and copies reach on the same bases needs no GPU: benchmarks/results/yardsticks_human56mb_cpu.csv.
--limit counts seconds of this call in all; a training saves and ends in time for packing, an evaluation begins only if the
seconds that it needs are left, and is ended where it takes longer. Comes back: $OUT/scale.txt and $OUT/scale.tar.00 ... of at
most 16 MiB, 60 MiB together: results of everything, weights of every training (the best by validation so far of one that was
cut), and where there is room for it the state of one that was cut.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any, NamedTuple

BEGAN = time.monotonic()
OUT = Path(os.environ.get("OUT", "runs/scale-results"))
WORK = Path(os.environ.get("WORK", "/tmp/scale"))
LOGS = WORK / "logs"
PIECES = Path(".device")
PIECE, MOST = 15900 << 10, 60 << 20
MBA = [sys.executable, "-m", "mamba_bio_audio"]
HUMAN, MICROBES = "human56mb-7m.yaml", "human56mb-microbes-7m.yaml"
# Shares of the steps by length; what is left is at the recipe's. The rate is half of its peak where the second begins, and a
# fifteenth of it where the last does.
STAGES = (1024, 0.55), (8192, 0.15), (32768, 0.15)
# Bases a second of 16 x 256 in steps of 1,024 bases before any were measured, and how much longer steps of longer ones take.
SPEED, LONGER = 2.0e6, 1.23
# Seconds of a start, of a validation, and of saving what was cut.
START, VALIDATION, SAVING = 15.0, 2.0, 4.0
LONG = ["train.length=131072", "train.validate_every=763", "train.checkpoint_every=763"]
SIZES = {"250k": (64, 8), "700k": (96, 10), "1m4": (128, 12), "3m5": (192, 14), "7m": (256, 16)}
# Passes over 55,858,907 bases: two as in the paper's runs, four, which its largest does not exceed, and sixteen.
PASSES = {"2": (111_700_000, "two"), "4": (223_000_000, "four"), "16": (892_000_000, "sixteen")}


class Job(NamedTuple):
    recipe: str
    sets: list[str]
    bases: int
    stages: tuple[tuple[int, float], ...] = ()
    what: str = ""
    scored: bool = True  # by its likelihood on whole splits


JOBS: dict[str, Job] = {
    "pure": Job(HUMAN, [*LONG, "train.weight_decay=0.4"], 1_500_000_000, STAGES, "16 x 256, length warm-up to 2^17"),
    "microbes": Job(MICROBES, [], 600_000_000, (), "16 x 256 at 1,024 on human and other species"),
    "human": Job(HUMAN, [], 600_000_000, (), "16 x 256 at 1,024 on human, beside microbes"),
}
# What makes a model copy: 6 x 128 on windows of 512 to 4,096 bases, with and without attention, positions and copies put in.
ATTENTION = ["model.num_layers=6", "model.pattern=mamba*3,transformer,mamba*2"]
NO_POSITIONS = "model.options={transformer: {mlp: none, rope_theta: null}}"
TRIAL = ["model.d_model=128", "train.length=4096", "train.tokens_per_step=65536", "train.validate_every=2000"]
TRIAL += ["data.num_workers=2", "train.log_every=25"]
FIRST, COPIES = ((512, 0.2), (1024, 0.3)), "data.repeats=0.3"
HYBRID = [*TRIAL, *ATTENTION, NO_POSITIONS]
for kind, sets, told in (
    ("mixed", [*HYBRID, COPIES], "hybrid, copies of both strands, substituted"),
    ("forward", [*HYBRID, COPIES, "data.repeat_reverse=0", "data.repeat_substitutions=0"], "hybrid, exact copies"),
    ("plain", HYBRID, "hybrid, no copies"),
    ("rotary", [*TRIAL, *ATTENTION, "model.options={transformer: {mlp: none}}", COPIES], "hybrid, rotary positions"),
    ("pure", [*TRIAL, "model.num_layers=6", COPIES], "pure Mamba, copies"),
    ("early", [*HYBRID, "model.pattern=mamba,transformer,mamba*4", COPIES], "hybrid, attention after one layer"),
    ("late", [*HYBRID, "model.pattern=mamba*4,transformer,mamba", COPIES], "hybrid, attention after four layers"),
    ("few", [*HYBRID, "data.repeats=0.05"], "hybrid, a twentieth copied"),
    ("heads", [*HYBRID, "model.options={transformer: {mlp: none, rope_theta: null, heads: 4}}", COPIES], "four heads"),
):
    JOBS[f"try-{kind}"] = Job(HUMAN, sets, 80_000_000, FIRST, told, scored=False)
# with_layers.py human42mb-1m4 /tmp/grown --pattern mamba*6,transformer,mamba*6 --option mlp=none --option rope_theta=null
GROWN = ["train.init=/tmp/grown", *TRIAL[1:], "train.lr=1e-3", COPIES]
JOBS["try-grown"] = Job(HUMAN, GROWN, 60_000_000, FIRST, "attention put into the packaged 12 x 128", scored=False)
for kind, sets in (("plain", HYBRID), ("mixed", [*HYBRID, COPIES])):
    long = [*sets, "train.length=32768"]
    told = f"try-{kind}, to windows of 32,768"
    JOBS[f"try-{kind}-32k"] = Job(HUMAN, long, 80_000_000, ((512, 0.15), (1024, 0.15), (4096, 0.2)), told, scored=False)
TRUNK = ["model.num_layers=17", "model.pattern=mamba*8,transformer,mamba*8", NO_POSITIONS]
PROBE = [*LONG, *TRUNK, "train.log_every=5"]
JOBS["probe"] = Job(HUMAN, PROBE, 7_900_000, ((1024, 0.33), (32768, 0.33)), "speed of a hybrid of 7.3 M", scored=False)
# The hybrid in two trainings: copying is learnt from exact copies in short windows, then kept in longer ones with few and
# substituted copies. The first from new weights, or with the layer put into those of `pure`, which did not learn it:
# with_layers.py human56mb-7m /tmp/grown7 --pattern mamba*8,transformer,mamba*8 --option mlp=none --option rope_theta=null
EXACT = ["train.length=1024", "train.tokens_per_step=65536", "train.validate_every=2000", COPIES]
EXACT += ["data.repeat_reverse=0", "data.repeat_substitutions=0"]
SHORT = ((512, 0.4),)
JOBS["copying"] = Job(HUMAN, [*EXACT, *TRUNK], 40_000_000, SHORT, "hybrid of 7.3 M, exact copies", scored=False)
GROWN7 = [*EXACT, "train.init=/tmp/grown7", "train.lr=2e-3"]
JOBS["copying-grown"] = Job(HUMAN, GROWN7, 40_000_000, SHORT, "the same, from the weights of pure", scored=False)
GROWING = (4096, 0.15), (16384, 0.2), (65536, 0.25)
FEW = [*LONG, "data.repeats=0.1", "data.repeat_reverse=0", f"train.init={WORK / 'copying'}"]
FEW += ["train.weight_decay=0.4", "train.lr=2e-3", "train.warmup=0.03"]
JOBS["hybrid"] = Job(HUMAN, FEW, 150_000_000, GROWING, "hybrid of 7.3 M to 2^17, from `copying`")
for size, (width, layers) in SIZES.items():
    shape = [f"model.d_model={width}", f"model.num_layers={layers}"]
    for count, (bases, words) in PASSES.items():
        JOBS[f"{size}-{count}"] = Job(HUMAN, shape, bases, (), f"{layers} x {width}, {words} passes")
for decay in ("0.1", "0.3", "1"):
    JOBS[f"decay-{decay}"] = Job(HUMAN, [f"train.weight_decay={decay}"], 300_000_000, (), "weight decay")
for dropped in ("0.05", "0.1"):
    JOBS[f"dropout-{dropped}"] = Job(HUMAN, [f"train.dropout={dropped}"], 300_000_000, (), "dropout")
# Windows on single loci, and beyond 2^16 on those of a stretch of 1 Mb, joined; the number of windows stands in the result.
APES: dict[str, tuple[str, int, int]] = {
    "1k": ("dna/apes@1k", 60, 100_000),
    "4k": ("dna/apes@4k", 75, 100_000),
    "16k": ("dna/apes@16k", 90, 100_000),
    "64k": ("dna/apes@64k", 100, 100_000),
    "128k": ("dna/apes@64k", 100, 1_000_000),
    "256k": ("dna/apes@64k", 100, 1_000_000),
    "512k": ("dna/apes@64k", 150, 1_000_000),
}
CONTEXTS = ",".join(str(1 << power) for power in range(10, 18))
CONTEXTS20 = ",".join(str(1 << power) for power in (10, 17, 18, 19, 20))
# Arguments, and seconds that they take of an H200 with 16 x 256 by the bases that are read (290, 190 and 180 million).
EVALUATIONS: dict[str, tuple[list[str], float]] = {
    "context": (["--context", CONTEXTS, "--block-bases", "16384", "--blocks", "1000"], 60),
    "context20": (["--context", CONTEXTS20, "--block-bases", "65536", "--blocks", "200"], 50),
    "recall": (["--recall", "--trials", "64"], 45),
    "recall16k": (["--recall", "--trials", "32", "--distances", "64,256,1024,4096,16384"], 15),
    "context-probe": (["--context", "1024,131072", "--block-bases", "16384", "--blocks", "16"], 15),
    "recall-probe": (["--recall", "--trials", "4", "--distances", "64,65536,262144"], 15),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", nargs="*", metavar="JOB")
    parser.add_argument(
        "--recipes", type=Path, default=PIECES / "pretrain", help="as scripts/pretraining_data.py made it"
    )
    parser.add_argument("--limit", type=float, default=590, help="seconds of this call in all")
    parser.add_argument("--reserve", type=float, default=12, help="seconds of them for packing")
    parser.add_argument(
        "--leave", type=float, help="end trainings in this call, so many seconds before it ends (and packs)"
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument(
        "--set", action="append", default=[], dest="sets", help="for every training, last; for a rehearsal"
    )
    parser.add_argument("--bases", type=int, help="of every training, instead of its own; for a rehearsal")
    parser.add_argument("--evaluate", default="", help="more arguments of every evaluation; for a rehearsal")
    parser.add_argument("--list", action="store_true")
    given = parser.parse_args()
    if given.list:
        for name, job in JOBS.items():
            print(f"{name:<14}{job.bases:>14,} bases  {job.what}: {' '.join(job.sets)}")
        print(f"apes-{', apes-'.join(APES)}")
        return
    names = [name for step in given.steps for name in step.split("+")]
    known = {*JOBS, *(f"apes-{length}" for length in APES)}
    unknown = [name for name in names if name.split(":")[-1].split("@")[0] not in known]
    unknown += [name for name in names if ":" in name and name.split(":")[0] not in EVALUATIONS]
    if unknown:
        sys.exit(f"scale: no job {unknown[0]}; --list shows them")
    OUT.mkdir(parents=True, exist_ok=True)
    unpack()
    LOGS.mkdir(parents=True, exist_ok=True)
    try:
        for step in given.steps:
            # One that failed, or has no time left, does not keep the others from running.
            if not together(step.split("+"), given):
                say(f"{step}: not done yet")
            pack(names)
    finally:
        pack(names)


def left(given: argparse.Namespace) -> float:
    """Seconds until packing has to begin."""
    return given.limit - given.reserve - (time.monotonic() - BEGAN)


def say(text: str) -> None:
    line = f"[{time.monotonic() - BEGAN:.0f} s] {text}"
    print(line, flush=True)
    with (OUT / "scale.txt").open("a") as file:
        file.write(line + "\n")


def together(names: list[str], given: argparse.Namespace) -> bool:
    """Run jobs at once; whether all of them are done."""
    processes: list[tuple[str, list[str], Path]] = []
    for name in names:
        what, _, run = name.rpartition(":")
        begin = apes if run.startswith("apes-") else training
        found = evaluation(what, run, given) if what else begin(run, given)
        if found is None:
            return False
        if found:
            processes.append((name, found, LOGS / f"{run}-{what or 'train'}.txt"))
    ended = all_ended(processes, given)
    trained = [name for name in names if ":" not in name]
    cut = [name for name in trained if staged(name) and not done(WORK / name)]
    if given.leave is not None and cut:
        say(f"{', '.join(cut)}: out of time; the step that was reached becomes the last one")
        again = [(name, training(name, given, finish=True), LOGS / f"{name}-train.txt") for name in cut]
        ended &= all_ended([(name, command, log) for name, command, log in again if command], given)
    return all([ended, *(usable(WORK / name, given) for name in trained)]) and scored(
        [name for name in trained if name.startswith("apes-") or JOBS[name.partition("@")[0]].scored], given
    )


def all_ended(processes: list[tuple[str, list[str], Path]], given: argparse.Namespace) -> bool:
    """Run processes at once and say how they ended; whether all did well. None goes on when packing has to begin."""
    running = [(name, log, start(command, log)) for name, command, log in processes]
    ended = True
    for name, log, process in running:
        code = ended_in_time(process, given)
        say(f"{name}: code {code}; " + " / ".join(log.read_text().strip().splitlines()[-3:]))
        ended &= code == 0
    return ended


def ended_in_time(process: subprocess.Popen[bytes], given: argparse.Namespace) -> int | str:
    """The exit code of a process, which is told to end when packing has to begin."""
    try:
        return process.wait(max(1.0, left(given)))
    except subprocess.TimeoutExpired:
        process.terminate()
        return f"{process.wait()}, ended because it took too long"


def start(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("a") as file:
        return subprocess.Popen([*MBA, *command], stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)


def usable(run: Path, given: argparse.Namespace) -> bool:
    """Whether a run is scored: one that is done, and in the last call one that has weights."""
    return done(run) or (given.leave is not None and staged(run.name) and (run / "model.safetensors").exists())


def done(run: Path) -> bool:
    path = run / "manifest.json"
    return path.exists() and json.loads(path.read_text()).get("result", {}).get("stopped_by", "") is None


def training(name: str, given: argparse.Namespace, finish: bool = False) -> list[str] | None:
    """The command of a training, or of its last validation; empty where it is done, None where there is no time to begin."""
    run, (kind, _, seed) = WORK / name, name.partition("@")
    if done(run):
        return []
    ends = given.leave is not None and staged(name)
    until = left(given) - (given.leave if ends and not finish else 0)
    if until < (5 if finish else 30):
        return None
    job, recipe = JOBS[kind], str(given.recipes / JOBS[kind].recipe)
    sets = [*job.sets, *given.sets, f"name={name.replace('@', '-')}"]
    train = load(recipe, sets).train
    steps = (given.bases or job.bases) // train.tokens_per_step
    stages = [(length, max(1, int(share * steps))) for length, share in job.stages]
    if finish:
        steps = so_far(run)[0]
        if steps <= sum(count for _, count in stages):
            return None
    elif ends:
        steps = fitting(name, until, stages, train)
    told = ", ".join(f"{{length: {length}, steps: {count}}}" for length, count in stages)
    sets += [f"train.steps={steps}", f"train.length_warmup=[{told}]", f"seed={seed or 0}"]
    command = ["pretrain", recipe, *(word for text in sets for word in ("--set", text)), "--out", str(run)]
    command += ["--device", given.device, "--max-time", f"{max(1, until - SAVING):.0f}"]
    return [*command, "--resume"] if (run / "checkpoints/last.safetensors").exists() else [*command, "--force"]


def staged(name: str) -> bool:
    """Whether a training has a warm-up of the length, so that its steps at full length may be fewer."""
    kind = name.partition("@")[0]
    return kind in JOBS and bool(JOBS[kind].stages)


def so_far(run: Path) -> tuple[int, float]:
    """Steps that a training has done, and its bases a second (SPEED where that is not known)."""
    path = run / "manifest.json"
    found = json.loads(path.read_text()).get("result", {}) if path.exists() else {}
    return found.get("step", 0), found.get("tokens_per_second") or SPEED


def fitting(name: str, seconds: float, stages: list[tuple[int, int]], train: Any) -> int:
    """Steps of a training in all that end in so many seconds, by its speed so far; one at full length at least."""
    done, speed = so_far(WORK / name)
    # Seconds of a step of 1,024 bases, from the mixture of lengths that was measured.
    ends = list(itertools.accumulate(count for _, count in stages))
    costs = [LONGER if length > 1024 else 1.0 for length, _ in stages]
    begun = [max(0, min(done, end) - (end - count)) for end, (_, count) in zip(ends, stages, strict=True)]
    begun.append(done - sum(begun))
    mean = sum(n * cost for n, cost in zip(begun, [*costs, LONGER], strict=True)) / done if done else 1.0
    one = train.tokens_per_step / speed / mean
    seconds = 0.98 * (seconds - START - SAVING)
    every = VALIDATION / train.validate_every
    seconds -= sum(
        (count - n) * (cost * one + every) for (_, count), n, cost in zip(stages, begun, costs, strict=False)
    )
    steps = ends[-1] + max(1, begun[-1] + int(seconds / (LONGER * one + every)))
    say(
        f"{name}: {done:,} steps done at {speed:,.0f} bases a second; {steps:,} in all, {steps - ends[-1]:,} at full length"
    )
    return max(steps, done + 1)


def apes(name: str, given: argparse.Namespace) -> list[str] | None:
    """The command of a classifier, which cannot be continued; empty where it is done, None where its time is not left."""
    kind, _, seed = name.partition("@")
    length = kind.removeprefix("apes-")
    recipe, seconds, join = APES[length]
    if done(WORK / name):
        return []
    if left(given) < seconds * (given.device == "cuda"):
        return None
    sets = [f"data.path={loci(join)}", f"head.pretrained={WORK / 'pure'}", "train.lr_head=2e-3", "train.lr=5e-4"]
    if join > 100_000:
        positions = int(length.removesuffix("k")) * 1024
        sets += [f"train.length={positions}", f"train.tokens_per_step={max(1 << 20, 4 * positions)}", "train.steps=130"]
    sets += [*given.sets, f"name={name.replace('@', '-')}", f"seed={seed or 0}"]
    command = ["classify", recipe, *(word for text in sets for word in ("--set", text)), "--out", str(WORK / name)]
    return [*command, "--device", given.device, "--force"]


def loci(join: int, individual: bool = False) -> Path:
    """The loci of the four species, joined or not, as they are or another individual's."""
    out = WORK / f"apes-data-{join}{'-individual' if individual else ''}"
    if not out.exists():
        command = ["prepare", "apes", "--from", str(PIECES / "apes"), "--loci", "chr22_epo*", "--join", str(join)]
        command += ["--substitute", "0.001"] if individual else []
        command += [word for name in ("chimpanzee", "gorilla", "human", "orangutan") for word in ("--species", name)]
        subprocess.run([*MBA, *command, "--out", str(out), "--quiet"], check=True, stdout=subprocess.DEVNULL)
    return out


def scored(names: list[str], given: argparse.Namespace) -> bool:
    """Score what is not scored yet, all at once, since starting takes most of the time; whether it is there."""
    wanted: dict[Path, list[str]] = {}
    for name in names:
        run = WORK / name
        more = of_classes(name) if name.startswith("apes-") else of_bases(run)
        every = [
            "evaluate",
            str(run),
            "--no-baselines",
            "--json",
            "--device",
            given.device,
            "--set",
            "data.num_workers=2",
        ]
        wanted |= {run / file: [*every, *own] for file, own in more.items() if not (run / file).exists()}
    if wanted and left(given) < 20:
        return False
    running: dict[Path, tuple[subprocess.Popen[bytes], Path, Path]] = {}
    for path, command in wanted.items():
        printed, log = (LOGS / f"{path.parent.name}-{path.stem}.{end}" for end in ("json", "txt"))
        with printed.open("w") as out, log.open("w") as err:
            process = subprocess.Popen([*MBA, *command], stdout=out, stderr=err, stdin=subprocess.DEVNULL)
        running[path] = process, printed, log
    for path, (process, printed, log) in running.items():
        if code := ended_in_time(process, given):
            say(f"{path}: code {code}; {log.read_text().strip()[-300:]}")
            continue
        model = json.loads(printed.read_text())["model"]
        printed.rename(path)
        if "perplexity" in model:
            say(f"{path.parent.name}, {path.stem}: perplexity {model['perplexity']:.4f}")
        else:
            say(
                f"{path.parent.name}, {path.stem}: accuracy {model['accuracy']['value']:.4f}, {model['count']:,} windows"
            )
    return all(path.exists() for path in wanted)


def of_bases(run: Path) -> dict[str, list[str]]:
    """Both splits in windows of the trained length, and of 1,024 where that is longer: file, arguments."""
    found = {f"likelihood-{split}.json": ["--split", split] for split in ("valid", "test")}
    if json.loads((run / "manifest.json").read_text())["data"]["length"] > 1024:
        windows = {
            f"likelihood-{split}-1024.json": ["--split", split, "--length", "1024"] for split in ("valid", "test")
        }
        found |= windows
    return found


def of_classes(name: str) -> dict[str, list[str]]:
    """Unseen loci; seen loci; seen loci of another individual: file, arguments."""
    join = APES[name.partition("@")[0].removeprefix("apes-")][2]
    other = ["--set", f"data.path={loci(join, individual=True)}"]
    return {"unseen.json": [], "seen.json": ["--split", "train"], "individual.json": ["--split", "train", *other]}


def load(recipe: str, sets: list[str]) -> Any:
    """The configuration of a training."""
    from mamba_bio_audio.run.config import load_config

    return load_config(recipe, sets)


def evaluation(what: str, name: str, given: argparse.Namespace) -> list[str] | None:
    """The command of an evaluation; empty where it is there, None where it cannot begin."""
    run, (arguments, seconds) = WORK / name, EVALUATIONS[what]
    out = run / what
    if any(out.glob("evaluate-*.json")):
        return []
    if not usable(run, given) or left(given) < seconds * (given.device == "cuda"):
        return None
    command = ["evaluate", str(run), "--split", "test", *arguments, "--no-baselines", "--out", str(out)]
    return [*command, "--device", given.device, *given.evaluate.split()]


def unpack() -> None:
    """What came back of the call before, on a machine that has nothing of it."""
    pieces = sorted(PIECES.glob("scale.tar.[0-9]*"))
    if WORK.exists() or not pieces:
        return
    WORK.mkdir(parents=True)
    whole().write_bytes(b"".join(piece.read_bytes() for piece in pieces))
    with tarfile.open(whole()) as tar:
        tar.extractall(WORK, filter="data")
    whole().unlink()
    say(f"goes on from {len(pieces)} pieces")


def pack(names: list[str]) -> None:
    """Logs and results of everything, weights of the jobs that were asked for, and the state of cut ones if there is room."""
    wanted = {name.split(":")[-1] for name in names}
    small = [path for path in sorted(WORK.rglob("*")) if path.is_file() and path.suffix != ".safetensors"]
    small = [path for path in small if not {"tensorboard", whole().name} & set(path.parts) or "probe" in path.parts]
    small = [path for path in small if path.name[0] != "." and path != whole()]
    small = [path for path in small if "apes-data-" not in str(path)]
    weights = [WORK / name / "model.safetensors" for name in sorted(wanted)]
    cut = [WORK / name / "checkpoints/last.safetensors" for name in sorted(wanted) if not done(WORK / name)]
    with tarfile.open(whole(), "w") as tar:
        for path in [*small, *(path for path in weights + cut if path.exists())]:
            if whole().stat().st_size + path.stat().st_size < MOST:
                tar.add(path, path.relative_to(WORK))
            else:
                say(f"left out, because more than {MOST >> 20} MiB do not come back: {path.relative_to(WORK)}")
    data = whole().read_bytes()
    whole().unlink()
    for piece in OUT.glob("scale.tar.*"):
        piece.unlink()
    for number in range(-(-len(data) // PIECE)):
        (OUT / f"scale.tar.{number:02d}").write_bytes(data[number * PIECE : (number + 1) * PIECE])


def whole() -> Path:
    """The archive before it is cut."""
    return WORK / "scale.tar"


if __name__ == "__main__":
    main()
