"""Where the GPU's time of training steps goes, kernel by kernel: one profiled step of every model of the tables.

    python benchmarks/device/step_profile.py [--only REGEX] [--kernels 24] > FILE

Milliseconds and launches of a step by kernel, the largest first, and by kind; the step is launched singly, so what a recorded
step saves of the host's time does not show. Some ten seconds once kernels are compiled.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import defaultdict
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mamba_bio_audio.run.sample_speed import make_model
from mamba_bio_audio.run.train_speed import training_step

CASES = {
    "16x256": (128, 1024),
    "16x256 long": (1, 131072),
    "16x256+mamba2": (128, 1024),
    "16x256+mamba2 long": (1, 131072),
    "12x128": (256, 1024),
    "24x512": (64, 1024),
    "24x768": (8, 2048),
    "audio/sc09@small": (16, 16000),
    "audio/youtubemix+mamba": (64, 8192),
}
# The first that a kernel's name matches.
KINDS = {
    "scan backward": "scan_bwd",
    "scan forward": "scan_fwd",
    "dual backward": "values_kernel|maps_kernel",
    "dual forward": "^forward_kernel",
    "dual states": "walk_kernel|hand_on|steps_|sums_kernel",
    "chunks": "chunk_state|chunk_end|carry",
    "convolution": "conv",
    "norm": "norm|gated",
    "products": "gemm|cutlass|cublas|nvjet|wgmma|splitK",
    "sums": "reduce",
    "casts and copies": "copy|cast|Memcpy|direct_copy|plane",
    "zeros": "Memset|fill|zero",
    "elementwise": "elementwise|vectorized",
}


def kind_of(name: str) -> str:
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, name, re.IGNORECASE)), "other")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="REGEX")
    parser.add_argument("--kernels", type=int, default=24, help="kernels told of each step")
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--tiny", action="store_true", help="short sequences, for a test")
    args = parser.parse_args()
    for case, (batch, length) in CASES.items():
        if not re.search(args.only, case):
            continue
        if args.tiny:
            batch, length = 1, 64
        model, symbols = make_model(case.split()[0])
        model = model.to(args.device)
        tokens = torch.randint(symbols[0], symbols[-1] + 1, (batch, length), device=args.device)
        for _ in range(2):
            training_step(model, tokens, length)
        on_gpu = args.device == "cuda"
        if on_gpu:
            torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * on_gpu]) as found:
            training_step(model, tokens, length)
            if on_gpu:
                torch.cuda.synchronize()
        rows: dict[str, list[float]] = defaultdict(lambda: [0.0, 0])
        for event in found.events():
            if (event.device_type == torch.autograd.DeviceType.CUDA) == on_gpu:
                ms = (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e3
                rows[event.name][0] += ms
                rows[event.name][1] += 1
        kinds: dict[str, float] = defaultdict(float)
        for name, (ms, _) in rows.items():
            kinds[kind_of(name)] += ms
        total = sum(kinds.values())
        print(
            f"== {case} ({batch}, {length}): {total:.2f} ms of kernels, {sum(r[1] for r in rows.values()):.0f} launches"
        )
        print(
            "   "
            + ", ".join(
                f"{kind} {ms:.2f} ({ms / total:.0%})" for kind, ms in sorted(kinds.items(), key=lambda x: -x[1])
            )
        )
        for name, (ms, count) in sorted(rows.items(), key=lambda x: -x[1][0])[: args.kernels]:
            print(f"{ms:9.3f} ms x{count:4.0f}  {name[:110]}", flush=True)
        del model, found, tokens
        if on_gpu:
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
