"""Checks and times persistent decoding on one GPU: microseconds per step, medians, several variants in one process.

    PYTHONPATH=. python benchmarks/device/persistent_decode.py [--plan wide] [--budget 85] [--only TEXT]

A variant is `form layers x width matrices rows warps w programs g block b`, with `pair` where two programs run on a
multiprocessor. Form a is `decode`, c `decode_split` (g programs a row), b
`decode_together` (blocks of b rows, g programs a block). Of every variant the greedy symbols of the first row must equal those
of the fp32 step loop over 256 steps (fp32), or the logits of the first step lie within 3e-2 of its largest (bf16).
One that fails says so in a line; none begins after the budget.
"""

import argparse
import importlib.util
import multiprocessing
import os
import statistics
import time
from pathlib import Path
from typing import NamedTuple

import torch

from mamba_bio_audio.inference import decoding
from mamba_bio_audio.inference.generate import _Choice
from mamba_bio_audio.kernels.decode.lost import confirm
from mamba_bio_audio.kernels.decode.pack import Layer, pack
from mamba_bio_audio.kernels.decode.persistent import State, decode
from mamba_bio_audio.kernels.decode.split import decode_split
from mamba_bio_audio.kernels.decode.together import decode_together

path = Path(__file__).resolve().parents[2] / "tests/kernels/decode/test_persistent.py"
spec = importlib.util.spec_from_file_location("decode_test", path)
helpers = importlib.util.module_from_spec(spec)
spec.loader.exec_module(helpers)

RUNS = {"a": decode, "b": decode_together, "c": decode_split}
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
CHECKED = 256


class Variant(NamedTuple):
    form: str
    dtype: str
    rows: int
    warps: int
    programs: int = 1
    block: int = 1
    bar: str = ""  # must / aim of the issue
    registers: int | None = None


# The most telling first.
def together_of(rows, warps, programs, bar="", registers=None):
    return Variant("b", "bf16", rows, warps, programs, 16, bar, registers)


PLANS = {
    "wide": [
        ((24, 768), [
            together_of(512, 16, 4, "1900/1200"),
            Variant("c", "bf16", 1, 16, 48, bar="500/250"),
            Variant("c", "fp32", 1, 16, 96),
        ]),
        ((12, 128), [
            together_of(2048, 16, 1, "600/350"),
            together_of(2048, 8, 2, registers=128),
            together_of(512, 16, 4),
            together_of(64, 8, 8, "200/105"),
            Variant("a", "fp32", 1, 16, bar="120/80"),
            Variant("a", "bf16", 1, 16, bar="80/50"),
        ]),
        ((24, 512), [Variant("c", "bf16", 1, 16, 32), Variant("c", "fp32", 1, 16, 32)]),
        ((16, 256), [
            together_of(2048, 8, 2, "1450/850", registers=128),
            together_of(2048, 16, 1),
            together_of(512, 16, 4, "500/300"),
            together_of(64, 8, 16, "380/220"),
            Variant("c", "bf16", 1, 8, 16, bar="140/95"),
            Variant("c", "fp32", 1, 8, 16, bar="220/150"),
        ]),
    ],
    "left": [
        ((24, 768), [Variant("c", "fp32", 1, 16, 96), Variant("c", "bf16", 1, 16, 48, bar="500/250")]),
        ((24, 512), [Variant("c", "fp32", 1, 16, 32), Variant("c", "bf16", 1, 16, 32)]),
    ],
    "rows": [
        ((16, 256), [Variant("a", "bf16", 132, 16), Variant("a", "fp32", 132, 16)]),
        ((12, 128), [Variant("a", "bf16", 132, 16), Variant("a", "fp32", 132, 16)]),
    ],
}  # fmt: skip


def name_of(sizes, variant):
    form, dtype, rows, warps, programs, block, _, registers = variant
    kind = " pair" * bool(registers)
    return f"{form} {sizes[0]} x {sizes[1]} {dtype} {rows} rows {warps} w {programs} g {block} b{kind}"


def seconds(call, repeats=3):
    call()
    found = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in "se")
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        found.append(start.elapsed_time(end) / 1e3)
    return statistics.median(found)


def spread(state, tokens, rows):
    """The state of so many rows like the first, of as many as a kernel's blocks need."""
    many = tuple(type(s)(*(t.expand(rows, *t.shape[1:]) for t in s)) for s in state)
    return helpers.kernel_state(many, tokens[:, -1:].expand(rows, 1))


def packed(variant, weights, eps):
    options = {} if variant.form == "a" else {"programs": variant.programs}
    if variant.form == "b":
        options |= {"tiled": False, "rows": variant.block, "registers": variant.registers}
    return pack(*weights, dtype=DTYPES[variant.dtype], eps=eps, warps=variant.warps, **options)


def run(variant, network, state, draws):
    return RUNS[variant.form](network, state, draws, temperature=0.0, want_logits=True)


def build(job):
    """Compiles a variant in a process of its own: one step of one layer of zeros, after which its code lies on disk."""
    (_, width), variant = job
    E, N, R, W = 2 * width, 16, width // 16, 4
    sizes = [(width,), (2 * E, width), (E, W), (E,), (R + 2 * N, E), (E, R), (E,), (E, N), (E,), (width, E)]
    layer = Layer(*(torch.zeros(size, device="cuda") for size in sizes))
    table = torch.zeros(12, width, device="cuda")
    try:
        network = packed(variant, ([layer], table, table[0], table, range(12)), 1e-5)
        rows = -(-variant.rows // network.case.ROWS) * network.case.ROWS
        state = State.of(
            *(torch.zeros(rows, 1, *size, device="cuda") for size in ((W - 1, E), (E, N))), torch.zeros(rows)
        )
        state = state._replace(last=state.last.cuda())
        run(variant, network, state, torch.zeros(1, variant.rows, dtype=torch.float64, device="cuda"))
        torch.cuda.synchronize()
    except Exception:  # told by the measurement
        pass


def measure(variant, weights, eps, before, tokens, expected, own):
    """One line: how far from the step loop, and microseconds a step."""
    network = packed(variant, weights, eps)
    rows, padded = variant.rows, -(-variant.rows // network.case.ROWS) * network.case.ROWS
    began = time.time()
    draws = torch.rand(CHECKED if rows <= 64 else 16, rows, dtype=torch.float64, device="cuda")
    symbols, scores, logits, _ = run(variant, network, spread(before, tokens, padded), draws)
    confirm(scores)
    torch.cuda.synchronize()
    built = time.time() - began
    alike = "rows alike" if (symbols == symbols[:, :1]).all() else "ROWS DIFFER"
    same = (symbols[:, :1] == expected[: len(symbols)]).all(1).int().cumprod(0).sum().item()
    off = (logits[0] - own).abs().max().item()
    bound = (3e-2 if variant.dtype == "bf16" else 1e-4) * max(1, own.abs().max().item())
    good = off < bound and (variant.dtype == "bf16" or same == len(symbols))
    state = spread(before, tokens, padded)
    took = seconds(lambda: run(variant, network, state, draws)) / len(draws) * 1e6
    return (
        f"{took:.1f} us; {'ok' if good else 'WRONG'}, {same} of {len(symbols)} symbols equal, {alike}, "
        f"logits off by {off:.1e} (first call {built:.1f} s)"
    )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--plan", default="wide", choices=PLANS)
    parser.add_argument("--budget", type=float, default=85, help="seconds; no variant begins after them")
    parser.add_argument("--only", default="", help="part of a variant's name")
    options = parser.parse_args()
    began = time.time()
    jobs = [
        (sizes, v) for sizes, variants in PLANS[options.plan] for v in variants if options.only in name_of(sizes, v)
    ]
    jobs.sort(key=lambda job: -job[0][1])  # the widest take longest
    with multiprocessing.get_context("spawn").Pool(min(len(jobs), os.cpu_count() - 1)) as pool:
        pool.map_async(build, jobs, chunksize=1).wait(options.budget / 2)
    print(f"{time.time() - began:.1f} s: {len(jobs)} variants compiled", flush=True)
    print(torch.cuda.get_device_name(), torch.__version__, helpers.triton.__version__, flush=True)
    for (layers, width), variants in PLANS[options.plan]:
        model = helpers.make_model(width, layers, device="cuda")
        allowed = list(range(12))
        choice = _Choice.check(model, 0.0, None, None, allowed, None).to("cuda")
        tokens = torch.arange(33, device="cuda")[None] % 12
        with torch.inference_mode():
            before = decoding.prefill(model, tokens[:, :-1], None)
            own = model(tokens[:, -1:], before).logits[0, -1, :12]
            none = torch.zeros(CHECKED, 1, dtype=torch.float64, device="cuda")
            expected = decoding.GraphSteps(model, choice.next)(tokens[:, -1:], before, none)[0]
        weights = (helpers.layers_of(model), model.embedding.weight, model.norm_f.weight, model.lm_head.weight, allowed)
        for variant in variants:
            name = name_of((layers, width), variant)
            if options.only not in name:
                continue
            if time.time() - began > options.budget:
                print("budget spent", flush=True)
                return
            try:
                line = measure(variant, weights, model.model_config.norm_eps, before, tokens, expected, own)
            except Exception as error:  # one variant that fails must not cost the others
                line = "FAILED: " + repr(error)[:300]
            print(f"{time.time() - began:5.1f} s {name} [{variant.bar}]: {line}", flush=True)
    print(f"{time.time() - began:.0f} s in all", flush=True)


if __name__ == "__main__":
    main()
