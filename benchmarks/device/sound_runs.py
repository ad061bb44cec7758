"""Digits by augmentation, and the piano by length: trainings side by side on one GPU, evaluated; digits also drawn.

    python3 benchmarks/device/sound_runs.py digits piano --data /tmp/data --start /tmp/start --limit 560 --at-once 6

Groups or names of `--list`. Digits go on from the weights of `--start` (an earlier `audio/digits@classes-8khz`, which had begun
to learn its training clips by heart), each with other augmentations. Pianos have as many positions or as many sequences a step,
and as many steps whatever their length. Each job, in the order they are given and `--at-once` of them at a time, trains and is
evaluated on both held-out splits, and digits say each digit as often, all with the same random numbers. A training that is not
done in time ends as it is. $OUT/sound.tar has of each the curve, configuration, evaluations and levels of its clips,
$OUT/digits.tar the weights (moving average, fp16) and clips of the long run; both are written anew after each job. Clips are
judged elsewhere: benchmarks/digits_judged.py.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

BEGAN = time.monotonic()
MBA = [sys.executable, "-c", "from mamba_bio_audio.cli.main import run; run()"]
LOCK = threading.Lock()
# Seconds that a training has for its end, and that are kept for evaluating and packing.
ENDING, LAST = 12, 25


class Job(NamedTuple):
    recipe: str
    data: str
    sets: list[str]
    steps: int
    clips: int = 0
    lengths: tuple[int, ...] = ()


GAIN, NOISE = "data.augment_gain_db=3", "data.augment_noise=0.25"
SPEED, PITCH, SHIFT = "data.augment_speed=0.1", "data.augment_pitch=2", "data.augment_shift_s=0.1"
EACH = {
    "none": [],
    "gain": [GAIN],
    "noise": [NOISE],
    "speed": [SPEED],
    "pitch": [PITCH],
    "shift": [SHIFT],
    "all": [GAIN, NOISE, SPEED, PITCH, SHIFT],
}
DIGITS = [
    "data.num_workers=2", "data.augment_gain_db=0", "data.augment_noise=0", "data.augment_speed=0", "data.augment_pitch=0",
    "data.augment_shift_s=0", "train.lr=1e-3", "train.warmup=0.05", "train.listen=0",
]  # fmt: skip
PIANO = [
    "data.start=token", "data.windows=random", "data.augment_polarity=true", "data.num_workers=2", "train.ema=0.99",
    "train.length_warmup=[]", "train.listen=0", "train.warmup=0.1", "train.clip=2.0", "train.lr=4e-3",
    "train.validation_tokens=2097152",
]  # fmt: skip
JOBS = {"digits-long": Job("audio/digits@classes-8khz", "digits", [*DIGITS, *EACH["all"]], 2400, 2050)}
for name, sets in EACH.items():
    JOBS[f"digits-{name}"] = Job("audio/digits@classes-8khz", "digits", [*DIGITS, *sets], 800, 500)
# As many positions a step, 131,072; and one sequence a step. The longest is the same in both.
for size in (131072, 32768, 8192):
    for count in {131072 // size, 1}:
        shape = [f"train.length={size}", f"train.tokens_per_step={count * size}"]
        JOBS[f"piano-{size}x{count}"] = Job("audio/piano", "piano", [*PIANO, *shape], 600, 0, (size,))
GROUPS = {
    "digits": [name for name in JOBS if name.startswith("digits")],
    "piano": [name for name in JOBS if name.startswith("piano")],
}


def say(text: str) -> None:
    print(f"[{time.monotonic() - BEGAN:.0f} s] {text}", flush=True)


def call(options: argparse.Namespace, name: str, command: list[str], until: float) -> tuple[int, str]:
    """Run a command until a time of this call; its exit status and standard output."""
    with (options.work / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            out, _ = process.communicate(timeout=max(1.0, until - (time.monotonic() - BEGAN)))
        except subprocess.TimeoutExpired:
            process.terminate()
            try:
                out, _ = process.communicate(timeout=ENDING)
            except subprocess.TimeoutExpired:
                process.kill()
                out, _ = process.communicate()
        log.write(out.encode())
    return process.returncode, out


def work_on(options: argparse.Namespace, name: str) -> None:
    job, run = JOBS[name], options.work / name
    left = options.limit - (time.monotonic() - BEGAN)
    if left < options.least:
        say(f"{name}: left out, {left:.0f} s left")
        return
    steps = max(5, round(job.steps * options.share))
    sets = [f"data.path={options.data / job.data}", *job.sets, f"train.steps={steps}"]
    sets += [f"train.validate_every={-(-steps // 4)}", f"train.checkpoint_every={steps}", *options.set]
    if name.startswith("digits"):
        sets.append(f"train.init={options.start}")
    words = [word for text in sets for word in ("--set", text)]
    command = [*MBA, "pretrain", job.recipe, "--out", str(run), "--force", "--device", options.device, *words]
    code, _ = call(options, name, command, options.limit - LAST - ENDING)
    say(f"{name}: trained, code {code}")
    pack(options)
    which = ["--which", "ema"] if name.startswith("digits") else []
    for length in job.lengths or (None,):
        for split in ("valid", "test"):
            at = ["--length", str(length)] if length else []
            command = [*MBA, "evaluate", str(run), "--split", split, *which, *at, "--no-baselines", "--json"]
            code, out = call(options, name, [*command, "--device", options.device], options.limit - 8)
            if code == 0:
                (run / f"evaluate-{split}{f'-{length}' if length else ''}.json").write_text(out)
                say(f"{name}: {split} {length or ''} {json.loads(out)['model']['bits']:.4f} bits")
    if job.clips:
        count = max(10, round(job.clips * options.share))
        command = [
            sys.executable,
            __file__,
            "draw",
            "--run",
            str(run),
            "--count",
            str(count),
            "--device",
            options.device,
        ]
        command += ["--seed", str(options.seed), "--length", str(options.length)]
        code, _ = call(options, name, command, options.limit - 5)
        say(f"{name}: clips, code {code}")
    pack(options)


def draw(options: argparse.Namespace) -> None:
    """Levels of clips of each digit as `mba sample --class all --guidance 2` draws them, and the weights, beside a run."""
    import numpy as np
    import torch
    from digits_by_class import made
    from safetensors.torch import save_file

    from mamba_bio_audio.run import saved

    model = saved.load_language_model(options.run, which="ema")
    rounded = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}
    save_file(rounded, options.run / "ema.safetensors")
    setting = "guidance 2"
    with torch.inference_mode():
        _, asked, levels = made(model.to(options.device), [setting], options.count, options.seed, options.length)[
            setting
        ]
    np.savez_compressed(options.run / "clips.npz", levels=levels.astype(np.uint8), asked=asked.astype(np.uint8))


def decode(source: Path, out: Path) -> None:
    """FLAC of Opus files and their splits, whose list names FLAC: windows of Opus are slow to read."""
    import soundfile

    out.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.glob("*.opus")):
        audio, rate = soundfile.read(path, dtype="float32")
        soundfile.write(out / f"{path.stem}.flac", audio, rate, subtype="PCM_16")
    (out / "intervals.tsv").write_bytes((source / "intervals.tsv").read_bytes())


def pack(options: argparse.Namespace) -> None:
    with LOCK:
        for archive in ("sound", "digits"):
            part = options.out / f"{archive}.tar.part"
            with tarfile.open(part, "w") as tar:
                for path in sorted(options.work.glob("*.log")) if archive == "sound" else ():
                    tar.add(path, path.name)
                for name in JOBS:
                    kept = ["metrics.csv", "config.yaml", "manifest.json"] if archive == "sound" else []
                    if (archive == "digits") == (name == "digits-long"):
                        kept += ["clips.npz"]
                    if name == "digits-long" and archive == "digits":
                        kept += ["ema.safetensors"]
                    paths = [options.work / name / file for file in kept]
                    paths += sorted((options.work / name).glob("evaluate-*")) if archive == "sound" else []
                    for path in paths:
                        if path.exists():
                            tar.add(path, f"{name}/{path.name}")
            part.replace(options.out / f"{archive}.tar")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("jobs", nargs="*", default=["digits", "piano"])
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--data", type=Path, default=Path("/tmp/data"), help="folder with digits and piano")
    parser.add_argument("--opus", type=Path, help="folder of Opus files and splits to make DATA/piano of")
    parser.add_argument("--start", type=Path, default=Path("/tmp/start"), help="run that digits go on from")
    parser.add_argument("--work", type=Path, default=Path("/tmp/sound_runs"))
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "/tmp/sound_runs_out")))
    parser.add_argument("--limit", type=float, default=560, help="seconds of everything")
    parser.add_argument("--least", type=float, default=60, help="seconds that must be left for a job to begin")
    parser.add_argument("--at-once", type=int, default=6)
    parser.add_argument("--share", type=float, default=1.0, help="of the steps and clips")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--run", type=Path)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--length", type=int, default=16_000)
    options = parser.parse_args()
    if options.list:
        print("\n".join(f"{name}: {job.steps} steps, {' '.join(job.sets)}" for name, job in JOBS.items()))
        return
    if options.jobs == ["draw"]:
        draw(options)
        return
    unknown = [name for name in options.jobs if name not in {*JOBS, *GROUPS}]
    if unknown:
        raise SystemExit(f"{', '.join(unknown)}: unknown; see --list")
    options.out.mkdir(parents=True, exist_ok=True)
    options.work.mkdir(parents=True, exist_ok=True)
    if options.opus:
        decode(options.opus, options.data / "piano")
    names = list(dict.fromkeys(job for name in options.jobs for job in GROUPS.get(name, [name])))
    with ThreadPoolExecutor(options.at_once) as pool:
        for done in [pool.submit(work_on, options, name) for name in names]:
            done.result()
    pack(options)


if __name__ == "__main__":
    main()
