"""Times persistent decoding of U-Nets on one GPU: samples a second, medians, several variants; first checks each.

    PYTHONPATH=. python benchmarks/device/persistent_unet.py [--budget 80] [--steps 512]

sc09-small (40 real blocks) and piano (15 complex time-invariant ones), random weights. Drawn symbols of every fp32 variant must
equal the model's own step loop over 256 samples from phase 5; in bf16 they part sooner or later. Kernels are compiled first,
at the same time, in processes of their own. A variant that fails prints one line, and the next one follows.
"""

import argparse
import importlib.util
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
import triton

from mamba_bio_audio.inference import decoding
from mamba_bio_audio.inference.generate import _Choice
from mamba_bio_audio.inference.gpu_unet import packed_unet, rows_of
from mamba_bio_audio.kernels.decode.unet import decode_unet
from mamba_bio_audio.layers.config import SsmConfig

path = Path(__file__).resolve().parents[2] / "tests/kernels/decode/test_unet.py"
spec = importlib.util.spec_from_file_location("unet_test", path)
helpers = importlib.util.module_from_spec(spec)
spec.loader.exec_module(helpers)

BF16, FP32 = torch.bfloat16, torch.float32
# mixer and blocks a stage; then (matrices, warps, form, rows). A form is 3 programs a row, one (1), or one of 8 rows (-8).
PLAN = [
    (("mamba", 8), [
        (BF16, 16, 3, (1, 44)), (BF16, 16, 1, (1, 132, 1024)), (FP32, 16, 3, (1, 44)), (FP32, 16, 1, (1, 132)),
        (BF16, 16, -8, (8, 1024)), (BF16, 8, 3, (1,)), (BF16, 8, 1, (132, 1024)), (FP32, 16, -8, (1024,)),
        (BF16, 16, -4, (1024,)),
    ]),
    (("s4d", 3), [(BF16, 16, 3, (1, 44)), (FP32, 16, 3, (1,)), (BF16, 16, 1, (1, 1024))]),
]  # fmt: skip


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


def measure(model, tokens, before, expected, draws, dtype, warps, form, rows_list, steps):
    """One line: equality with the step loop, then samples a second for each number of rows."""
    began = time.perf_counter()
    network = packed_unet(model, range(256), dtype, warps)
    state = rows_of(network.case, before, tokens[:, -1:])
    symbols, scores, *_ = decode_unet(network, state, draws, **how_of(form))
    torch.cuda.synchronize()
    own_symbols, own_scores = expected
    same = (symbols == own_symbols).all(1).int().cumprod(0).sum().item()
    off = (scores - own_scores)[:same].abs().max().item() if same else float("nan")
    line = (
        f"{same} of {len(draws)} symbols equal, scores off by {off:.1e}, ready in {time.perf_counter() - began:.1f} s;"
    )
    for rows in rows_list:
        many = torch.utils._pytree.tree_map(
            lambda leaf, n=rows: leaf.expand(n, *leaf.shape[1:]) if isinstance(leaf, torch.Tensor) else leaf, before
        )
        state = rows_of(network.case, many, tokens[:, -1:].expand(rows, 1))
        numbers = torch.rand(steps if rows <= 132 else steps // 8, rows, dtype=torch.float64, device="cuda")
        took = seconds(lambda s=state, n=numbers: decode_unet(network, s, n, **how_of(form))) / len(numbers)
        line += f" rows {rows}: {took * 1e6:.1f} us, {rows / took:,.0f} samples/s;"
    return line


def how_of(form):
    return {"split": form == 3, "group": max(1, -form)}


def model_of(mixer, layers):
    return helpers.make_model(64, layers, 256, mixer=mixer, ssm=SsmConfig(), device="cuda")


def compile_variant(mixer, layers, dtype, warps, form):
    """Leaves the kernel in Triton's cache."""
    began = time.time()
    name = f"{mixer} {str(dtype)[6:]} warps {warps} form {form}"
    try:
        model = model_of(mixer, layers)
        network = packed_unet(model, range(256), dtype, warps)
        last = torch.zeros(1, 1, dtype=torch.long, device="cuda")
        draws = torch.zeros(1, 1, dtype=torch.float64, device="cuda")
        decode_unet(network, rows_of(network.case, model.init_state(1, "cuda"), last), draws, **how_of(form))
    except Exception as error:
        return f"{name}: {type(error).__name__}: {str(error)[:300]}"
    return f"{name}: compiled in {time.time() - began:.0f} s"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=512)
    parser.add_argument("--budget", type=float, default=80, help="seconds; no variant begins after them")
    options = parser.parse_args()
    began = time.time()
    print(torch.cuda.get_device_name(), torch.__version__, triton.__version__, flush=True)
    pool = ProcessPoolExecutor(12, get_context("spawn"))
    waiting = [
        pool.submit(compile_variant, *network, *variant[:3]) for network, variants in PLAN for variant in variants
    ]
    for (mixer, layers), variants in PLAN:
        model = model_of(mixer, layers)
        tokens = torch.arange(6, device="cuda")[None]
        choice = _Choice.check(model, 1.0, None, None, list(range(256)), None).to("cuda")
        draws = torch.rand(256, 1, dtype=torch.float64, device="cuda")
        with torch.inference_mode():
            before = decoding.prefill(model, tokens[:, :-1], None)
            *expected, _ = decoding.steps(model, choice.next, tokens[:, -1:], before, draws)
        print(f"{mixer} {layers}: step loop done after {time.time() - began:.0f} s", flush=True)
        if pool is not None:
            for compiled in waiting:
                print(compiled.result(), flush=True)
            pool.shutdown()
            pool = None
        for dtype, warps, form, rows_list in variants:
            if time.time() - began > options.budget:
                print("budget spent", flush=True)
                return
            name = f"{mixer} {str(dtype)[6:]} warps {warps} form {form}:"
            try:
                how = (dtype, warps, form, rows_list, options.steps)
                print(name, measure(model, tokens, before, expected, draws, *how), flush=True)
            except Exception as error:
                print(name, f"{type(error).__name__}: {str(error)[:300]}", flush=True)
    print(f"{time.time() - began:.0f} s in all", flush=True)


if __name__ == "__main__":
    main()
