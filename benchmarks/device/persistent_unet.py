"""Times persistent decoding of U-Nets on one GPU: samples a second, medians, several variants; first checks each.

    PYTHONPATH=. python benchmarks/device/persistent_unet.py [--budget 75] [--variants 5]

sc09-small (40 real blocks) and piano (15 complex time-invariant ones), random weights. Drawn symbols of every fp32 variant must
equal the model's own step loop over 256 samples from phase 5; in bf16 they part sooner or later. A process per variant
compiles, all at the same time; then they measure in turn. A variant that fails prints one line, and the next one follows.
"""

import argparse
import importlib.util
import statistics
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path

import torch
import triton

from mamba_bio_audio.inference import decoding
from mamba_bio_audio.inference.generate import _Choice
from mamba_bio_audio.inference.gpu_unet import packed_unet, rows_of
from mamba_bio_audio.kernels.decode.lost import confirm
from mamba_bio_audio.kernels.decode.unet import decode_unet
from mamba_bio_audio.layers.config import SsmConfig

path = Path(__file__).resolve().parents[2] / "tests/kernels/decode/test_unet.py"
spec = importlib.util.spec_from_file_location("unet_test", path)
helpers = importlib.util.module_from_spec(spec)
spec.loader.exec_module(helpers)

BF16, FP32 = torch.bfloat16, torch.float32
# Mixer and blocks a stage; matrices, warps, programs a row, rows.
SC09, PIANO = ("mamba", 8), ("s4d", 3)
PLAN = [
    (SC09, BF16, 16, 3, (1, 44)),
    (PIANO, BF16, 16, 3, (1,)),
    (SC09, FP32, 16, 3, (1, 44)),
    (PIANO, FP32, 16, 3, (1, 44)),
    (SC09, BF16, 8, 1, (132, 264, 1024)),
    (SC09, BF16, 16, 1, (132, 1024)),
    (SC09, FP32, 16, 1, (132, 1024)),
    (PIANO, BF16, 8, 1, (264, 1024)),
    (PIANO, FP32, 16, 1, (1024,)),
]


def seconds(call, repeats=3):
    call()
    found = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        began = time.perf_counter()
        call()
        torch.cuda.synchronize()
        found.append(time.perf_counter() - began)
    return statistics.median(found)


def model_of(mixer, layers):
    return helpers.make_model(64, layers, 256, mixer=mixer, ssm=SsmConfig(), device="cuda")


def run_variant(pipe, net, dtype, warps, programs, rows_list, steps):
    """In a process of its own: says when it has compiled, waits for the reference, measures."""
    try:
        began = time.time()
        network = packed_unet(model_of(*net), range(256), dtype, warps=warps)
        how = {"split": programs == 3}
        last = torch.zeros(1, 1, dtype=torch.long, device="cuda")
        draws = torch.zeros(1, 1, dtype=torch.float64, device="cuda")
        state = model_of(*net).init_state(1, "cuda")
        decode_unet(network, rows_of(network.case, state, last), draws, **how)
        if rows_list[0] == 1:
            decode_unet(network, rows_of(network.case, state, last), draws, top_p=0.9, **how)
        torch.cuda.synchronize()
        pipe.send(f"compiled in {time.time() - began:.0f} s")
        draws, own_symbols, own_scores = torch.load(pipe.recv(), map_location="cuda", weights_only=True)
        before, last = beginning(model_of(*net))
        symbols, scores, *_ = decode_unet(network, rows_of(network.case, before, last), draws, **how)
        confirm(scores)
        same = (symbols == own_symbols).all(1).int().cumprod(0).sum().item()
        off = (scores - own_scores)[:same].abs().max().item() if same else float("nan")
        line = f"{same} of {len(draws)} symbols equal, scores off by {off:.1e};"
        for rows in rows_list:
            many = torch.utils._pytree.tree_map(
                lambda leaf, n=rows: leaf.expand(n, *leaf.shape[1:]) if isinstance(leaf, torch.Tensor) else leaf, before
            )
            state = rows_of(network.case, many, last.expand(rows, 1))
            numbers = torch.rand(steps if rows <= 132 else steps // 8, rows, dtype=torch.float64, device="cuda")
            took = seconds(lambda s=state, n=numbers: decode_unet(network, s, n, **how)) / len(numbers)
            line += f" rows {rows}: {took * 1e6:.1f} us, {rows / took:,.0f} samples/s;"
            if rows == 1:
                took = seconds(lambda s=state, n=numbers: decode_unet(network, s, n, top_p=0.9, **how)) / len(numbers)
                line += f" with top-p {took * 1e6:.1f} us;"
        pipe.send(line)
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {str(error)[:300]}")


def beginning(model):
    """The state after five symbols, and the sixth."""
    tokens = torch.arange(6, device="cuda")[None]
    with torch.no_grad():
        return decoding.prefill(model, tokens[:, :-1], None), tokens[:, -1:]


def reference(net, path):
    """The draws, symbols and scores of the step loop, in a file."""
    model = model_of(*net)
    before, last = beginning(model)
    choice = _Choice.check(model, 1.0, None, None, list(range(256)), None).to("cuda")
    draws = torch.rand(256, 1, dtype=torch.float64, device="cuda")
    with torch.no_grad():
        symbols, scores, _ = decoding.steps(model, choice.next, last, before, draws)
    torch.save((draws, symbols, scores), path)
    return path


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=512)
    parser.add_argument("--budget", type=float, default=75, help="seconds; nothing begins after them")
    parser.add_argument("--variants", type=int, default=len(PLAN), help="the first so many")
    options = parser.parse_args()
    began = time.time()
    print(torch.cuda.get_device_name(), torch.__version__, triton.__version__, flush=True)
    context = get_context("spawn")
    running = []
    for variant in PLAN[: options.variants]:
        pipe, other = context.Pipe()
        process = context.Process(target=run_variant, args=(other, *variant, options.steps), daemon=True)
        process.start()
        running.append((variant, pipe, process))
    with tempfile.TemporaryDirectory() as folder:
        paths = {net: reference(net, f"{folder}/{net[0]}.pt") for net in (SC09, PIANO)}
        print(f"step loops done after {time.time() - began:.0f} s", flush=True)
        compiled = []
        for variant, pipe, process in running:
            if not pipe.poll(max(0, options.budget - 25 - (time.time() - began))):
                print(variant, "still compiling", flush=True)
                process.kill()
                continue
            line = pipe.recv()
            print(variant, line, flush=True)
            if line.startswith("compiled"):
                compiled.append((variant, pipe, process))
        for variant, pipe, process in compiled:
            if time.time() - began > options.budget:
                print("budget spent", flush=True)
                break
            pipe.send(paths[variant[0]])
            print(f"{time.time() - began:.1f} s", variant, pipe.recv() if pipe.poll(20) else "no answer", flush=True)
            process.kill()
    print(f"{time.time() - began:.0f} s in all", flush=True)


if __name__ == "__main__":
    main()
