"""Times persistent decoding on one GPU: microseconds per step, medians, several variants in one process; first checks each.

    PYTHONPATH=. python benchmarks/device/persistent_decode.py [--small] [--steps 512] [--budget 170]

A variant is named by matrices, warps and tiles loaded ahead (in_proj, x_proj, out_proj); `graph` is today's path, fp32.
Greedy symbols of every fp32 variant must equal the model's own over 256 steps (bf16: logits within 3e-2 at the first step).
"""

import argparse
import importlib.util
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch

from mamba_bio_audio.inference import decoding
from mamba_bio_audio.inference.generate import _Choice
from mamba_bio_audio.kernels.decode import together as together_module
from mamba_bio_audio.kernels.decode.pack import pack
from mamba_bio_audio.kernels.decode.persistent import decode
from mamba_bio_audio.kernels.decode.together import decode_together

path = Path(__file__).resolve().parents[2] / "tests/kernels/decode/test_persistent.py"
spec = importlib.util.spec_from_file_location("decode_test", path)
helpers = importlib.util.module_from_spec(spec)
spec.loader.exec_module(helpers)

# layers, width; rows; then (dtype, warps, (IN_AHEAD, X_AHEAD, OUT_AHEAD))
BF16, FP32 = torch.bfloat16, torch.float32
PLAN = [
    ((12, 128), (1, 132), [(BF16, 16, (1, 4, 2)), (FP32, 16, (1, 4, 2)), (BF16, 16, (2, 4, 8)), (BF16, 16, (1, 1, 1)),
                           (BF16, 8, (1, 4, 2)), (FP32, 16, (2, 4, 8)), (BF16, 16, (0, 0, 0))]),
    ((16, 256), (1, 132), [(BF16, 16, (1, 4, 1)), (FP32, 16, (1, 4, 2)), (BF16, 16, (0, 0, 0))]),
]  # fmt: skip


def seconds(call, repeats=5):
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


def time_together(model, weights, before, tokens, name, options, began):
    """16 rows a program: 512 and 2,048 rows, 8 and 16 warps, states asked for ahead or not; greedy, bf16."""
    for warps, limit in ((16, together_module._L2), (16, 1 << 60), (8, together_module._L2)):
        if options.small or time.time() - began > options.budget:
            continue
        together_module._L2 = limit
        network = pack(*weights, dtype=BF16, eps=model.model_config.norm_eps, warps=warps, tiled=False)
        line = f"{name} together bf16 warps {warps} {'far' if limit < 1 << 60 else 'near'}:"
        for rows in (16, 512, 2048):
            many = tuple(type(s)(*(t.expand(rows, *t.shape[1:]) for t in s)) for s in before)
            state = helpers.kernel_state(many, tokens[:, -1:].expand(rows, 1))
            numbers = torch.rand(64, rows, dtype=torch.float64, device="cuda")
            _, _, logits, _ = decode_together(network, state, numbers[:1], temperature=0.0, want_logits=True)
            if rows == 16:
                with torch.inference_mode():
                    own = model(tokens[:, -1:], before).logits[0, -1, :12]
                line += f" logits off by {(logits[0] - own).abs().max().item():.1e} of {own.abs().max().item():.2f},"
            took = seconds(lambda s=state, n=numbers, w=network: decode_together(w, s, n, temperature=0.0), 3) / 64
            line += f" rows {rows} {took * 1e6:.0f} us,"
        print(line, flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--small", action="store_true", help="the first network and two variants")
    parser.add_argument("--steps", type=int, default=512)
    parser.add_argument("--budget", type=float, default=170, help="seconds; no variant begins after them")
    options = parser.parse_args()
    began = time.time()
    print(torch.cuda.get_device_name(), torch.__version__, helpers.triton.__version__, flush=True)
    for (layers, width), rows_list, variants in PLAN[:1] if options.small else PLAN:
        model = helpers.make_model(width, layers, device="cuda")
        allowed = list(range(12))
        choice = _Choice.check(model, 0.0, None, None, allowed, None).to("cuda")
        tokens = torch.arange(33, device="cuda")[None] % 12
        with torch.inference_mode():
            before = decoding.prefill(model, tokens[:, :-1], None)
        draws = torch.rand(256, 1, dtype=torch.float64, device="cuda")
        with torch.inference_mode():
            graphs = decoding.GraphSteps(model, choice.next)
            expected = graphs(tokens[:, -1:], before, draws)[0]
            today = seconds(lambda g=graphs, t=tokens[:, -1:], b=before, d=draws: g(t, b, d[:128])) / 128
        print(f"{layers} x {width} graph fp32 rows 1: {today * 1e6:.1f} us a step", flush=True)
        weights = (helpers.layers_of(model), model.embedding.weight, model.norm_f.weight, model.lm_head.weight, allowed)
        for dtype, warps, ahead in variants[:2] if options.small else variants:
            if time.time() - began > options.budget:
                print("budget spent", flush=True)
                return
            network = pack(*weights, dtype=dtype, eps=model.model_config.norm_eps, warps=warps)
            case = replace(network.case, IN_AHEAD=ahead[0], X_AHEAD=ahead[1], OUT_AHEAD=ahead[2])
            network = network._replace(case=case)
            state = helpers.kernel_state(before, tokens[:, -1:])
            symbols, *_ = decode(network, state, draws, temperature=0.0)
            torch.cuda.synchronize()
            same = (symbols == expected).all(1).int().cumprod(0).sum().item()
            line = f"{layers} x {width} {str(dtype)[6:]} warps {warps} ahead {ahead}: {same} of 256 symbols equal;"
            for rows in rows_list:
                many = tuple(type(s)(*(t.expand(rows, *t.shape[1:]) for t in s)) for s in before)
                state = helpers.kernel_state(many, tokens[:, -1:].expand(rows, 1))
                numbers = torch.rand(options.steps, rows, dtype=torch.float64, device="cuda")
                for name, how in (("greedy", {"temperature": 0.0}), ("drawn", {})):
                    if name == "drawn" and ahead != (1, 4, 2):
                        continue
                    took = seconds(lambda s=state, n=numbers, h=how, w=network: decode(w, s, n, **h)) / options.steps
                    line += f" rows {rows} {name} {took * 1e6:.1f} us,"
            print(line, flush=True)
        time_together(model, weights, before, tokens, f"{layers} x {width}", options, began)
    print(f"{time.time() - began:.0f} s in all", flush=True)


if __name__ == "__main__":
    main()
