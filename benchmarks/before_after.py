"""Times this package before and after a change in one process on one GPU, call by call in turn.

    benchmarks/device/before.sh COMMIT                          the package at COMMIT, under another name
    python benchmarks/before_after.py --out DIR [--only REGEX] [--seconds 1]

`after_ms`, `before_ms` and the quartiles of their ratio within pairs are of whole calls, as users make them, with flushes
of the L2 before each. Calls below 0.5 ms wait for the host as well, so these are timed twice more: `replay_*` is the same
call recorded as a CUDA graph and replayed, which is the GPU's time alone, and `host_*_us` what the host takes for a call
without waiting for the GPU (medians). A row is slower if the median ratio is below 0.98 and the upper quartile below 1:
`slower` by whole calls, `replay_slower` by replays. Scans, convolutions and steps say whether output and gradients are bit
for bit those of before, else which are not, and which of these differ between two runs of the same as well.
"""

import argparse
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / ".device/before"))
sys.path.insert(0, str(ROOT))

from mamba_bio_audio.run.environment import environment  # noqa: E402
from mamba_bio_audio.run.timing import Row, Timing, interleaved, write_rows  # noqa: E402

DEVICE = "cuda"
STATES, SLOWER = 16, 0.98
REPLAYED = 0.5  # milliseconds of a call below which the GPU is timed apart from the host
MODES = ("inference", "forward", "backward")
# name: case, (B, L, D)
SCANS = {
    "S2": ("real", (8, 8192, 2048)),
    "S3": ("real", (32, 1024, 512)),
    "S1": ("real", (1, 1 << 20, 512)),
    "M1": ("real", (8, 2048, 1536)),
    "M2": ("real", (1, 1 << 17, 512)),
    "M3": ("real", (2, 1 << 14, 256)),
    "U1": ("real", (64, 8192, 128)),
    "U2": ("real", (16, 16_000, 128)),
    "C2": ("complex", (8, 8192, 2048)),
    "C3": ("complex", (16, 1 << 14, 128)),
    "L2": ("complex lti", (8, 8192, 2048)),
    "L3": ("complex lti", (16, 1 << 14, 128)),
    "R2": ("real lti", (8, 8192, 2048)),
    "R3": ("real lti", (16, 1 << 14, 128)),
    "E1": ("real exact", (8, 2048, 1536)),
    "E2": ("complex exact", (16, 4096, 128)),
}
CONVOLUTIONS = ((8, 8192, 2048), (32, 1024, 512), (1, 1 << 17, 512), (2, 1 << 14, 256))
# layers, width, batch, length
STEPS = ((12, 128, 256, 1024), (16, 256, 128, 1024), (16, 256, 1, 1 << 17), (24, 768, 8, 2048))


def packages() -> tuple[Any, Any]:
    """The package after and before the change."""
    import mamba_before.models.build  # type: ignore[import-not-found]
    import mamba_before.ops

    import mamba_bio_audio.models.build
    import mamba_bio_audio.ops

    return mamba_bio_audio, mamba_before


class Pair(NamedTuple):
    """A call of each package, and what it computes where that is compared."""

    name: str
    mode: str
    calls: tuple[Callable[[], Any], Callable[[], Any]]
    compared: list[str]


def scan_inputs(case: str, batch: int, length: int, channels: int) -> dict[str, Tensor]:
    """Inputs of `selective_scan` as at the start of training, bf16."""
    generator = torch.Generator(DEVICE).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=DEVICE)

    is_complex, fixed = "complex" in case, "lti" in case
    parts = (2,) if is_complex else ()
    rates = torch.arange(1, STATES + 1, device=DEVICE).float().expand(channels, STATES)
    if is_complex:
        rates = torch.stack([torch.full_like(rates, 0.5), -torch.pi * (rates - 1)], dim=-1)

    def maps() -> Tensor:
        return normal(channels, STATES, *parts) if fixed else normal(batch, length, STATES, *parts).bfloat16()

    return {
        "u": normal(batch, length, channels).bfloat16(),
        "dt": normal(channels) * 0.5 if fixed else (normal(batch, length, channels) * 0.5).bfloat16(),
        "A": -rates.contiguous(),
        "B": maps(),
        "C": maps(),
        "D": normal(channels),
        "z": normal(batch, length, channels).bfloat16(),
        "dt_bias": normal(channels) * 0.5 - 4.0,
    }


def modes(
    name: str, runs: list[Callable[..., Tensor]], make: Callable[[], dict[str, Tensor]], only: re.Pattern[str]
) -> Iterator[Pair]:
    """Forward as in inference, forward that keeps what backward needs, backward; those of them that are wanted."""
    wanted = [mode for mode in MODES if only.search(f"{name} {mode}")]
    if not wanted:
        return
    inputs = make()
    leaves = {k: v.detach().requires_grad_() for k, v in inputs.items()}
    if "inference" in wanted:
        calls = [lambda run=run: run(**inputs) for run in runs]
        yield Pair(name, "inference", (calls[0], calls[1]), [])
    if "forward" in wanted:
        calls = [lambda run=run: run(**leaves) for run in runs]
        yield Pair(name, "forward", (calls[0], calls[1]), [])
    if "backward" not in wanted:
        return
    outs = [run(**leaves) for run in runs]
    g = torch.randn_like(outs[0])

    def backward(out: Tensor) -> list[Tensor]:
        return [out, *torch.autograd.grad(out, list(leaves.values()), g, retain_graph=True)]

    calls = [lambda out=out: backward(out) for out in outs]
    yield Pair(name, "backward", (calls[0], calls[1]), ["out", *leaves])


def scans(only: re.Pattern[str]) -> Iterator[Pair]:
    operations = [package.ops.selective_scan for package in packages()]
    for name, (case, shape) in SCANS.items():
        runs = [partial(operation, exact_zoh="exact" in case) for operation in operations]
        yield from modes(f"scan {name} {case} {shape}", runs, partial(scan_inputs, case, *shape), only)


def convolution_inputs(batch: int, length: int, channels: int) -> dict[str, Tensor]:
    x = torch.randn(batch, length, channels, device=DEVICE).bfloat16()
    return {"x": x, "weight": torch.randn(channels, 4, device=DEVICE), "bias": torch.randn(channels, device=DEVICE)}


def convolutions(only: re.Pattern[str]) -> Iterator[Pair]:
    runs = [package.ops.causal_conv1d for package in packages()]
    for shape in CONVOLUTIONS:
        yield from modes(f"conv {shape}", runs, partial(convolution_inputs, *shape), only)


def steps(only: re.Pattern[str]) -> Iterator[Pair]:
    for layers, width, batch, length in STEPS:
        row = f"step {layers}x{width} {(batch, length)}"
        if not only.search(f"{row} step"):
            continue
        tokens = torch.randint(7, 11, (batch, length), device=DEVICE)
        targets, calls = tokens.roll(-1, 1), []
        for package in packages():
            config = package.models.config.ModelConfig(d_model=width, num_layers=layers, vocab_size=12)
            model = package.models.build.build_model(config, seed=0).to(DEVICE)

            def step(model: Any = model, tokens: Tensor = tokens, targets: Tensor = targets) -> list[Tensor]:
                with torch.autocast(DEVICE, torch.bfloat16):
                    found = model(tokens, targets=targets, logits="none")
                (found.loss_sum / found.count).backward()
                grads = [p.grad for p in model.parameters()]
                model.zero_grad(set_to_none=True)
                return [found.loss_sum.detach(), *grads]

            calls.append(step)
        names = ["loss", *(name for name, _ in model.named_parameters())]
        yield Pair(row, "step", (calls[0], calls[1]), names)


def judged(timing: Timing, prefix: str = "") -> Row:
    """The columns of one way of timing."""
    assert timing.peer is not None
    low, ratio, high = timing.ratio()
    found = {
        "after_ms": f"{statistics.median(timing.ours):.4f}", "before_ms": f"{statistics.median(timing.peer):.4f}",
        "before_over_after": f"{ratio:.3f}", "q1": f"{low:.3f}", "q3": f"{high:.3f}",
        "slower": ratio < SLOWER and high < 1,
    }  # fmt: skip
    return {prefix + key: value for key, value in found.items()}


def recorded(call: Callable[[], Any]) -> Callable[[], Any]:
    """The call as a CUDA graph of the current stream, which must not be the default one."""
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
        call()
    return graph.replay


def host_times(calls: tuple[Callable[[], Any], Callable[[], Any]], pairs: int) -> Row:
    """Microseconds of the host for a call of each, in turn, the GPU idle before it."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(pairs):
        for call, found in zip(calls, times, strict=True):
            if DEVICE == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            call()
            found.append(1e6 * (time.perf_counter() - start))
    return dict(zip(("host_after_us", "host_before_us"), (f"{statistics.median(t):.1f}" for t in times), strict=True))


def row_of(pair: Pair, seconds: float, commit: str) -> Row:
    name, mode, calls, compared = pair
    after, before = calls
    results = zip(compared, *(call() for call in (after, after, before)), strict=True) if compared else ()
    unequal = {n: not torch.equal(a, again) for n, a, again, b in results if not torch.equal(a, b)}
    differ = [f"{n} (two runs as well)" if unsteady else n for n, unsteady in unequal.items()]
    timing = interleaved(after, before, DEVICE, seconds=seconds, pairs=40)
    row = {"row": name, "mode": mode, **judged(timing)}
    keys = [f"replay_{key}" for key in row if key not in ("row", "mode")]
    row |= dict.fromkeys([*keys, "host_after_us", "host_before_us"], "")
    if statistics.median(timing.ours) < REPLAYED:
        replays = interleaved(recorded(after), recorded(before), DEVICE, seconds=seconds, pairs=40)
        row |= judged(replays, "replay_") | host_times(calls, pairs=40)
    bits = ("differ: " + " ".join(differ[:6]) if differ else "equal") if compared else ""
    return row | {"bits": bits, "before": commit, **environment(DEVICE)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of before_after.csv")
    parser.add_argument("--only", default="", metavar="REGEX", help='of rows as "scan M3 real (2, 16384, 256) forward"')
    parser.add_argument("--seconds", type=float, default=1, help="of each way of timing a row")
    args = parser.parse_args()
    only = re.compile(args.only)
    commit = (ROOT / ".device/before/COMMIT").read_text().strip()
    rows: list[Row] = []
    # Not the default stream, which cannot be recorded.
    with torch.cuda.stream(torch.cuda.Stream()) if DEVICE == "cuda" else nullcontext():
        for make in (scans, convolutions, steps):
            for pair in make(only):
                rows.append(row_of(pair, args.seconds, commit))
                write_rows(args.out / "before_after.csv", rows)
                print(*list(rows[-1].values())[:17], sep="  ", flush=True)
            if DEVICE == "cuda":
                torch.cuda.empty_cache()
    slow = [f"{row['row']} {row['mode']}" for row in rows if row["slower"]]
    replayed = [f"{row['row']} {row['mode']}" for row in rows if row["replay_slower"]]
    print(f"{len(rows)} rows; slower as whole calls: {slow}; in replays: {replayed}")


if __name__ == "__main__":
    main()
