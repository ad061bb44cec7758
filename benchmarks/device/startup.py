"""Where the wall time of one `mba sample` command goes: interpreter, imports, context, loading, packing, kernels, steps, exit.

    PYTHONPATH=. python benchmarks/device/startup.py [--budget 60] [--length 1024] [--device cuda] [--out startup.txt]

Models: the packaged 12 x 128 and, with random weights, `audio/digits` (persistent kernels) and `audio/tiny` (CUDA graphs). Each
has an empty cache of compiled kernels, so that its first command compiles and its second reads; then it runs in stages
(`--stages`). At the end the first model's runs under `-X importtime` and under cProfile. None begins after the budget.
"""

import argparse
import collections
import contextlib
import cProfile
import functools
import io
import os
import pstats
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BEGAN = time.perf_counter()
INTERPRETER = time.time() - float(os.environ.get("STARTUP_AT", time.time()))
UNETS = ("audio/digits", "audio/tiny")


class Stages:
    """Wall and CPU seconds by stage; one inside of another counts in both."""

    def __init__(self):
        self.rows = {}

    @contextlib.contextmanager
    def stage(self, name):
        row = self.rows.setdefault(name, [time.perf_counter() - BEGAN, 0, 0.0, 0.0, 0.0])
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            took = time.perf_counter() - wall
            row[1] += 1
            row[2] += took
            row[3] += time.process_time() - cpu
            row[4] = max(row[4], took)

    def watch(self, owner, name, after=lambda: None):
        """Measure every call of a function that has this name in `owner`."""
        if not hasattr(owner, name):
            return
        original = getattr(owner, name)

        @functools.wraps(original)
        def measured(*arguments, **options):
            with self.stage(f"{owner.__name__.rsplit('.', 1)[-1]}.{name}"):
                result = original(*arguments, **options)
                after()
                return result

        setattr(owner, name, measured)

    def show(self):
        print(f"{'stage':<44}{'began':>8}{'calls':>7}{'wall s':>9}{'CPU s':>9}{'longest':>9}")
        for name, (at, count, wall, cpu, longest) in self.rows.items():
            if wall >= 0.005:
                print(f"{name:<44}{at:8.2f}{count:7}{wall:9.3f}{cpu:9.3f}{longest:9.3f}")


def stages(arguments):
    """Run a command in this process, and print what its parts took."""
    found = Stages()
    stage, watch = found.stage, found.watch
    with stage("import cli"):
        from mamba_bio_audio.cli.main import run
    with stage("import torch"):
        import torch
    with stage("torch.cuda.is_available"):
        cuda = torch.cuda.is_available() and "cpu" not in arguments
    if cuda:
        with stage("CUDA context"):
            torch.zeros(1, device="cuda")
            torch.cuda.synchronize()
        with stage("cuBLAS and its first product"):
            torch.ones(64, 64, device="cuda") @ torch.ones(64, 64, device="cuda")
            torch.cuda.synchronize()
    with stage("import triton"), contextlib.suppress(ImportError):
        import triton.runtime.jit  # noqa: F401
    with stage("import inference"):
        from mamba_bio_audio.inference import decoding, generate, paths, prompts, row_files
    with stage("import run and jobs"):
        from mamba_bio_audio.jobs import common, sample
        from mamba_bio_audio.models import weights
        from mamba_bio_audio.run import environment, saved
    wait = torch.cuda.synchronize if cuda else lambda: None
    for owner, names in (
        (common, ("resolve_device",)),
        (sample, ("sample", "measure", "_writer")),
        (saved, ("load_language_model",)),
        (weights, ("weights_hash",)),
        (environment, ("environment",)),
        (row_files.RowFiles, ("begin", "sample", "_save")),
        (generate, ("prefill", "uniforms", "sampling_path")),
        (prompts, ("read_prompts",)),
        (paths.Stepper, ("_make",)),
        (decoding.GraphSteps, ("_warm_up", "_record", "_replay")),
    ):
        for name in names:
            watch(owner, name, wait if name in ("prefill", "read_prompts", "_make") else lambda: None)
    steppers = paths.Stepper.advance

    def advance(self, rows):
        original = steppers(self, rows)

        def steps(*given):
            first = "first call of the steps" not in found.rows
            with stage("first call of the steps" if first else "later calls of the steps"):
                result = original(*given)
                wait()
                return result

        return steps

    paths.Stepper.advance = advance
    if "triton" in sys.modules:
        from triton.compiler import compiler
        from triton.runtime import jit

        watch(jit.JITFunction, "_do_compile")
        watch(compiler, "triton_key")
        watch(compiler.CompiledKernel, "_init_handles")
        jit.compile = compiler.compile
        watch(compiler, "compile")
    with stage("the command"), contextlib.suppress(SystemExit):
        run(arguments)
    print(f"interpreter to first line {INTERPRETER:.2f} s, first line to last {time.perf_counter() - BEGAN:.2f} s")
    found.show()
    known = ("torch._dynamo", "torch._inductor", "torch._functorch", "sympy", "lightning", "torchmetrics", "scipy")
    print(f"{len(sys.modules)} modules; of these {[name for name in known if name in sys.modules]}")
    sys.stdout.flush()


def profile(arguments):
    """Run a command under cProfile, and print its 45 functions of most time with and without what they call."""
    profiler = cProfile.Profile()
    from mamba_bio_audio.cli.main import run

    profiler.enable()
    with contextlib.suppress(SystemExit):
        run(arguments)
    profiler.disable()
    for order in ("cumulative", "tottime"):
        text = io.StringIO()
        pstats.Stats(profiler, stream=text).strip_dirs().sort_stats(order).print_stats(45)
        print("\n".join(line[:150] for line in text.getvalue().splitlines() if line.strip()))


def make_unet(recipe, folder):
    """A run of a recipe with random weights."""
    from safetensors.torch import save_file

    from mamba_bio_audio.models.build import build_model
    from mamba_bio_audio.pipelines.audio.quantize import AudioCodec
    from mamba_bio_audio.run.config import load_config, to_yaml

    config = load_config(recipe, ["data.path=."])
    codec = AudioCodec.of(config.data)
    size = {"vocab_size": codec.vocab_size, "inputs": max(codec.vocab_size, codec.start_id + 1)}
    config = config.model_copy(update={"model": config.model.model_copy(update=size)})
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(to_yaml(config))
    model = build_model(config.model, seed=0)
    save_file({name: part.clone() for name, part in model.state_dict().items()}, folder / "model.safetensors")


def importtime(text):
    """The 25 modules of most time of their own, and packages' sums, of what `-X importtime` wrote."""
    rows, sums = [], collections.Counter()
    for line in text.splitlines():
        parts = line.removeprefix("import time:").split("|")
        if len(parts) == 3 and parts[0].strip().isdigit():
            name = parts[2].strip()
            rows.append((int(parts[0]) / 1e6, name))
            sums[".".join(name.split(".")[: 2 if name.startswith("torch.") else 1])] += int(parts[0]) / 1e6
    rows.sort(reverse=True)
    lines = [f"imports: {sum(sums.values()):.2f} s in {len(rows)} modules; by package:"]
    lines += [f"  {took:7.3f} {name}" for name, took in sums.most_common(20)]
    return "\n".join([*lines, "by module, each without what it imports:", *(f"  {t:7.3f} {n}" for t, n in rows[:25])])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget", type=float, default=60)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    python, here = sys.executable, str(Path(__file__))

    def say(text):
        print(text, flush=True)
        if options.out:
            with options.out.open("a") as file:
                file.write(text + "\n")

    def timed(title, call, cache=None):
        """Run a command, say what it took, and return what it wrote; nothing after the budget."""
        if time.perf_counter() - BEGAN > options.budget:
            say(f"{title}: no time left")
            return "", ""
        places = {} if cache is None else {"TRITON_CACHE_DIR": str(cache)}
        began, used = time.perf_counter(), os.times()
        done = subprocess.run(
            call, capture_output=True, text=True, env=os.environ | places | {"STARTUP_AT": str(time.time())}
        )
        wall, after = time.perf_counter() - began, os.times()
        user, system = after.children_user - used.children_user, after.children_system - used.children_system
        failed = "" if done.returncode == 0 else f" FAILED ({done.returncode}): {done.stderr.strip()[-300:]}"
        say(f"{title}: {wall:.2f} s wall, {user:.2f} user, {system:.2f} system{failed}")
        return done.stdout, done.stderr

    bytecode = "not " * sys.dont_write_bytecode + "kept"
    say(f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}, {sys.version.split()[0]}, bytecode {bytecode}")
    timed("python -c pass", [python, "-c", "pass"])
    for _ in range(2):  # the first may find cold disks
        timed("import torch", [python, "-c", "import torch"])
    if options.device == "cuda":
        timed("import torch, context", [python, "-c", "import torch; torch.zeros(1, device='cuda')"])
    with tempfile.TemporaryDirectory() as made:
        work = Path(made)
        for number, model in enumerate(("human42mb-1m4", *UNETS)):
            say(f"== {model}")
            run, out = model, work / f"{number}.fa"
            if model in UNETS:
                run, out = str(work / "runs" / model), work / f"{number}.wav"
                timed("making it", [python, here, "--make", model, run])
            sample = ["sample", run, f"--length={options.length}", f"--device={options.device}", "--force"]
            cache = work / f"cache{number}"
            whole = [*sample, f"--out={out}"]
            for which in ("first", "second"):
                timed(f"{which} command", [python, "-m", "mamba_bio_audio", *whole], cache)
            say(timed("in stages", [python, here, "--stages", *whole], cache)[0])
            if number == 0:
                first = whole
        text = timed("-X importtime", [python, "-X", "importtime", "-m", "mamba_bio_audio", *first], work / "cache0")[1]
        say(importtime(text))
        say(timed("cProfile", [python, here, "--profile", *first], work / "cache0")[0])


if __name__ == "__main__":
    if sys.argv[1:2] == ["--stages"]:
        stages(sys.argv[2:])
    elif sys.argv[1:2] == ["--profile"]:
        profile(sys.argv[2:])
    elif sys.argv[1:2] == ["--make"]:
        make_unet(sys.argv[2], Path(sys.argv[3]))
    else:
        main()
