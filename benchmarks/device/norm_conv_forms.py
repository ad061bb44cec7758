"""Forms of the norm's backward and of the convolution's forward on one GPU: rows of a program, loads at once, warps.

    python benchmarks/device/norm_conv_forms.py --prepare      (compiles, beside other work)
    python benchmarks/device/norm_conv_forms.py

GPU times in ms, L2 flushed, medians; the first form of a shape is the present one. Prints as it goes.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mamba_bio_audio import ops
from mamba_bio_audio.kernels.conv import gpu as conv
from mamba_bio_audio.kernels.norm import gpu as norm
from mamba_bio_audio.run.kernel_speed import conv_inputs, norm_inputs
from mamba_bio_audio.run.timing import queued

# (rows of a tile, warps, programs)
NORM = {
    (128, 1024, 256): [None, (4, 2, 2112), (2, 1, 2112), (2, 1, 4224), (4, 1, 1584), (1, 1, 4224)],
    (64, 1024, 512): [None, (1, 1, 2112), (1, 1, 4224), (2, 2, 2112), (1, 2, 2112)],
    (8, 2048, 768): [None, (1, 2, 2112), (1, 4, 1056), (1, 1, 2112)],
}
# (rows of a program, loads at once, channels of it)
CONV = {
    (32, 1024, 512): [None, (32, 4, 128), (32, 8, 128), (16, 8, 128), (64, 8, 128), (32, 8, 64), (32, 8, 256), (16, 4, 128)],
    (8, 8192, 2048): [None, (64, 8, 128), (32, 8, 128), (64, 8, 256)],
    (2, 16384, 256): [None, (32, 8, 128), (16, 8, 128)],
}  # fmt: skip
JOBS = [("norm", shape, form) for shape, forms in NORM.items() for form in forms]
JOBS += [("conv", shape, form) for shape, forms in CONV.items() for form in forms]


def timed(job: tuple, seconds: float) -> float:
    what, (batch, length, channels), form = job
    if what == "norm":
        if form is not None:
            rows, warps, programs = form
            norm._tile = lambda channels: (max(norm.power_of_2(channels), 16), rows, warps)
            norm._BACKWARD_PROGRAMS = programs
        leaves = {
            k: v.requires_grad_() for k, v in norm_inputs(batch, length, channels, torch.bfloat16, "cuda").items()
        }
        outs = ops.rms_norm(**leaves)
        g = [torch.randn_like(t) for t in outs]

        def call() -> object:
            return torch.autograd.grad(outs, list(leaves.values()), g, retain_graph=True)

    else:
        if form is not None:
            rows, unroll, block = form
            conv.forward_rows = lambda length: rows
            conv._UNROLL = unroll
            conv._block = lambda channels: block
        x = conv_inputs(batch, length, channels, torch.bfloat16, "cuda")

        def call() -> object:
            return ops.causal_conv1d(**x)

    call()
    return statistics.median(queued([call], 30, seconds)[0])


def once(job: tuple, seconds: float = 0.0) -> str:
    """In a process of its own: forms are set where the operations look for them."""
    try:
        return f"{job[0]} {job[1]} {job[2] or 'now'}: {timed(job, seconds):.4f} ms"
    except Exception as error:
        return f"{job}: {type(error).__name__} {str(error)[:200]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prepare", action="store_true", help="only compile")
    parser.add_argument("--workers", type=int, default=10)
    args = parser.parse_args()
    began = time.time()
    if args.prepare:
        with ProcessPoolExecutor(args.workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            list(pool.map(once, JOBS))
        return
    saved = norm._tile, norm._BACKWARD_PROGRAMS, conv.forward_rows, conv._UNROLL, conv._block
    for job in JOBS:
        print(once(job, 0.1), flush=True)
        norm._tile, norm._BACKWARD_PROGRAMS, conv.forward_rows, conv._UNROLL, conv._block = saved
        torch.cuda.empty_cache()
    print(f"{time.time() - began:.0f} s")


if __name__ == "__main__":
    main()
