"""Every mixer on a GPU: its laws in fp32 and bf16, times of training and sampling of the presets of `dna/hg38`.

Errors are of the largest value; those of fp32 and bf16 are against the same layer in fp64 on the CPU. Laws run side by side in
processes of their own, which also compile what is timed afterwards, alone. Prints as it goes.

    python benchmarks/device/mixers.py --out DIR --limit 90
"""

import argparse
import csv
import gc
import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import torch

from mamba_bio_audio.inference.generate import generate, sampling_path
from mamba_bio_audio.layers.contract import mixers
from mamba_bio_audio.models.build import build_model
from mamba_bio_audio.models.config import ModelConfig
from mamba_bio_audio.models.size import count_parameters
from mamba_bio_audio.run.config import load_config
from mamba_bio_audio.run.recipes import variants_of
from mamba_bio_audio.run.timing import environment
from mamba_bio_audio.run.train_speed import step_of

WIDTH, BATCH, LENGTH = 128, 2, 301
PIECES = (1, 63, 64, 65, 108)
MORE = {
    "transformer window 50": ("transformer", {"window": 50}),
    "h3 heads of 4": ("h3", {"head_dim": 4, "d_state": 16}),
}
PATTERN = {"pattern": "mamba*5,transformer", "d_model": 128, "num_layers": 12}
LONG = 131_072


def error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference over largest value."""
    actual, expected = actual.detach().double().cpu(), expected.detach().double().cpu()
    assert torch.isfinite(actual).all()
    return ((actual - expected).abs().max() / expected.abs().max().clamp(min=1e-30)).item()


def gradients(layer: torch.nn.Module, y: torch.Tensor) -> list[torch.Tensor]:
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(2)).to(y)
    return list(torch.autograd.grad((y * weight).sum(), list(layer.parameters()), allow_unused=True))


def laws(name: str, settings: dict, device: str) -> dict[str, float]:
    """Errors of one layer, by what was compared."""
    of, preset = mixers()[name]
    torch.manual_seed(0)
    layer = of(**preset | settings).layers(WIDTH, 12)[0]
    x = torch.randn(BATCH, LENGTH, WIDTH)
    exact = layer.double()
    truth, _ = exact(x.double())
    true_gradients = gradients(exact, truth)
    layer = layer.float().to(device)
    x = x.to(device)
    found = {}
    for kind in ("fp32", "bf16"):
        with torch.autocast(device, torch.bfloat16, enabled=kind == "bf16"):
            whole, _ = layer(x)
            found[f"{kind} value"] = error(whole, truth)
            whole_gradients = gradients(layer, whole)
            pairs = zip(whole_gradients, true_gradients, strict=True)
            found[f"{kind} gradient"] = max(error(a, b) for a, b in pairs if a is not None and b is not None)
            changed = x.clone()
            changed[:, 200:] = x[:, 200:].flip(0, 1)
            found[f"{kind} causal"] = error(layer(changed)[0][:, :200], whole[:, :200])
            if layer.streaming != "none":
                state, parts = None, []
                for piece in x.split(PIECES, 1):
                    y, state = layer(piece, state)
                    parts.append(y)
                found[f"{kind} split"] = error(torch.cat(parts, 1), whole)
                pairs = zip(gradients(layer, torch.cat(parts, 1)), whole_gradients, strict=True)
                found[f"{kind} split gradient"] = max(error(a, b) for a, b in pairs if a is not None and b is not None)
                with torch.inference_mode():
                    state, parts = layer.init_state(BATCH, device, whole.dtype), []
                    for t in range(80):
                        y, state = layer(x[:, t : t + 1], state)
                        parts.append(y)
                found[f"{kind} step"] = error(torch.cat(parts, 1), whole[:, :80])
            if layer.resets:
                reset = torch.zeros(BATCH, LENGTH, dtype=torch.bool, device=device)
                reset[:, 99] = True
                packed, state = layer(x, reset=reset)
                alone, _ = layer(x[:, 99:])
                found[f"{kind} packed"] = max(error(packed[:, 99:], alone), error(packed[:, :99], whole[:, :99]))
    return found


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def timed(call, device: str, least: int = 5, seconds: float = 0.5) -> float:
    """Median milliseconds; steps take several, so the host's clock serves."""
    call()
    call()
    wait(device)
    times: list[float] = []
    since = time.perf_counter()
    while len(times) < least or (time.perf_counter() - since < seconds and len(times) < 50):
        at = time.perf_counter()
        call()
        wait(device)
        times.append((time.perf_counter() - at) * 1e3)
    return sorted(times)[len(times) // 2]


def models() -> dict[str, ModelConfig]:
    """The presets of about 1.4 M parameters."""
    found = {}
    for variant in ("1.4m", *variants_of("dna/hg38")):
        config = load_config(f"dna/hg38@{variant}", ["data.path=."]).model
        assert isinstance(config, ModelConfig)
        if config.d_model == WIDTH and (config.mixer != "mamba" or variant == "1.4m"):
            found[config.mixer] = config.model_copy(update={"vocab_size": 12})
    windowed = found["transformer"].model_dump() | {"options": {"window": 512}}
    found["transformer window 512"] = ModelConfig(**windowed)
    found["mamba*5,transformer"] = ModelConfig(**PATTERN, vocab_size=12)
    return found


def longer(config: ModelConfig, length: int) -> ModelConfig:
    """The same for sequences of a length."""
    values = config.model_dump(mode="json")
    if "max_length" in values["options"]:
        values["options"]["max_length"] = length
    return ModelConfig(**values)


def step_row(config: ModelConfig, rows: int, length: int, graph: bool, device: str) -> dict[str, object]:
    """Time and memory of a training step in bf16."""
    model = build_model(longer(config, length), seed=0).to(device)
    tokens = torch.randint(12, (rows, length), device=device)
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    ms = timed(step_of(model, tokens, graph=graph and device == "cuda"), device)
    peak = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else 0
    return {"ms": f"{ms:.4g}", "mtokens_per_s": f"{rows * length / ms / 1e3:.4g}", "peak_gib": f"{peak:.3g}"}


def decode_row(config: ModelConfig, rows: int, device: str) -> dict[str, object]:
    """Time of a step of sampling behind a prompt of 4,096."""
    model = build_model(longer(config, 1 << 16), seed=0).to(device).eval()
    prompt = torch.randint(12, (4096,))
    call = {"num_samples": rows, "prompt": prompt, "precision": "bf16", "allowed": range(12)}
    ends = []
    # The first compiles and records.
    for length in (64, 64, 320):
        wait(device)
        since = time.perf_counter()
        generate(model, length=length, **call)
        ends.append(time.perf_counter() - since)
    path = sampling_path(model, rows=rows, precision="bf16", allowed=range(12))
    return {"ms": f"{(ends[2] - ends[1]) / 256 * 1e3:.4g}", "path": path, "prompt_ms": f"{ends[1] * 1e3:.4g}"}


def times_of(device: str) -> list[tuple[str, str, int, int]]:
    """(What, mixer, rows, length), from what must be known to what would be good to know."""
    rows, length, long = (1, 64, 256) if device == "cpu" else (256, 1024, LONG)
    names = list(models())
    some = ("transformer", "transformer window 512")
    work = [("step recorded", name, rows, length) for name in names]
    work += [("decode", name, 1, 4096) for name in names if name != "hyena"]
    work += [("step", name, 1, long) for name in names]
    return work + [("decode", name, 64, 4096) for name in some]


def timed_row(what: str, name: str, rows: int, length: int, device: str) -> dict[str, object]:
    """One row of the table of times."""
    if what == "decode":
        return decode_row(models()[name], rows, device)
    return step_row(models()[name], rows, length, what == "step recorded", device)


def beside(job: tuple, device: str) -> dict[str, object]:
    """A row of laws, or in few steps what a time takes, so that it is compiled; with the problem if there is one."""
    row: dict[str, object] = {"what": job[0], "mixer": job[1]}
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        if job[0] == "laws":
            of, settings = SUBJECTS[job[1]]
            row |= {key: f"{value:.1e}" for key, value in laws(of, settings, device).items()}
        else:
            _, name, rows, length = job
            model = build_model(longer(models()[name], length), seed=0).to(device)
            step_of(model, torch.randint(12, (rows, length), device=device))()
    except Exception as problem:  # the others must still run
        row["problem"] = f"{type(problem).__name__}: {problem}"[:300]
    gc.collect()
    if device == "cuda":  # for the other processes
        torch.cuda.empty_cache()
    return row


def side_by_side(device: str, processes: int, seconds: float) -> Iterator[dict[str, object]]:
    """Rows of laws as they are done, within some seconds; compiles what is timed."""
    jobs: list[tuple] = [("laws", name) for name in SUBJECTS]
    if device == "cuda":
        jobs += [("compiled", *work[1:]) for work in times_of(device) if work[0] == "step recorded"]
    pool = ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn"))
    try:
        for done in as_completed([pool.submit(beside, job, device) for job in jobs], timeout=seconds):
            if (row := done.result())["what"] == "laws" or "problem" in row:
                yield row
    except TimeoutError:
        yield {"what": "laws", "mixer": "the others", "problem": f"not done within {seconds:.0f} s"}
    own = list((pool._processes or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    for process in own:
        process.kill()
        process.join()


SUBJECTS: dict[str, tuple[str, dict]] = {name: (name, {}) for name in mixers()} | MORE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--limit", type=float, default=90, help="seconds after which nothing new begins")
    parser.add_argument("--share", type=float, default=0.6, help="of these, for laws and compiling")
    parser.add_argument("--processes", type=int, default=10)
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    since, device = time.perf_counter(), options.device
    fields = ["what", "mixer", "rows", "length", "parameters", "ms", "mtokens_per_s", "peak_gib", "path", "prompt_ms"]
    fields += ["problem", *environment(device)]

    def say(row: dict[str, object]) -> str:
        text = ", ".join(f"{key} {value}" for key, value in row.items())
        print(f"{time.perf_counter() - since:.0f} s  {text}", flush=True)
        return text

    with (options.out / "mixers_laws.txt").open("w") as laws_file:
        for row in side_by_side(device, options.processes, options.limit * options.share):
            laws_file.write(say(row) + "\n")
            laws_file.flush()
    with (options.out / "mixers_times.csv").open("w") as file:
        table = csv.DictWriter(file, fields, restval="", lineterminator="\n")
        table.writeheader()
        for what, name, rows, length in times_of(device):
            if time.perf_counter() - since > options.limit:
                break
            row = {"what": what, "mixer": name, "rows": rows, "length": length}
            try:
                row |= timed_row(what, name, rows, length, device)
            except Exception as problem:  # the others must still run
                row["problem"] = f"{type(problem).__name__}: {problem}"[:300]
            say(row)
            table.writerow(row | {"parameters": count_parameters(models()[name])} | environment(device))
            file.flush()


if __name__ == "__main__":
    main()
