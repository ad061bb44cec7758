"""Times the Triton causal convolution, width 4 with SiLU, channels last, on one GPU, after checking it; writes CSV.

    python benchmarks/bench_causal_conv1d.py --out DIR

Peer: Dao-AILab/causal-conv1d 0d2252d in its channels-last form, measured on an H100 80GB HBM3 on 2026-11-21 with
PyTorch 2.11.0 (medians of triton.testing.do_bench, bf16); it is not run here.
"""

import argparse
import csv
import datetime
import os
import sys
from pathlib import Path
from typing import Any

import torch
import triton

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mamba_bio_audio.kernels import causal_conv1d_triton as kernels
from mamba_bio_audio.kernels.causal_conv1d import causal_conv1d_ref

# (B, L, D), peer forward ms, peer backward ms
SHAPES = [((8, 8192, 2048), 0.210, 0.714), ((1, 1_048_576, 512), 0.809, 3.354)]


def check() -> None:
    generator = torch.Generator("cuda").manual_seed(0)
    for dtype, limit in ((torch.float32, 1e-5), (torch.bfloat16, 6e-3)):
        x = torch.randn(2, 150, 48, device="cuda", generator=generator).to(dtype)
        rest = {"weight": torch.randn(48, 4, device="cuda"), "bias": torch.randn(48, device="cuda")}
        rest["tail"] = torch.randn(2, 3, 48, device="cuda").to(dtype)
        reset = torch.rand(2, 150, device="cuda") < 0.1
        g = torch.randn(2, 150, 48, device="cuda").to(dtype)
        found = []
        for run, wide in ((kernels.causal_conv1d_triton, False), (causal_conv1d_ref, True)):
            leaves: dict[str, Any] = {k: v.double() if wide else v for k, v in {"x": x, **rest}.items()}
            leaves = {k: v.clone().requires_grad_() for k, v in leaves.items()}
            out = run(**leaves, reset=reset)
            found.append([out, *torch.autograd.grad((out.double() * g.double()).sum(), list(leaves.values()))])
        errors = [((a.double() - b).norm() / b.norm()).item() for a, b in zip(*found, strict=True)]
        print(f"check {dtype}: largest relative error {max(errors):.1e}")
        if max(errors) > limit:
            sys.exit("wrong results")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default=os.environ.get("OUT", "benchmarks/results"))
    parser.add_argument("--commit", default="unknown")
    args = parser.parse_args()
    check()
    rows = []
    for (batch, length, channels), peer_forward, peer_backward in SHAPES:
        x = torch.randn(batch, length, channels, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        weight = torch.randn(channels, 4, device="cuda", requires_grad=True)
        bias = torch.randn(channels, device="cuda", requires_grad=True)
        out = kernels.causal_conv1d_triton(x, weight, bias)
        g = torch.randn_like(out)
        jobs: dict[str, tuple[Any, float]] = {
            "forward": (lambda a=(x, weight, bias): kernels.causal_conv1d_triton(*a), peer_forward),
            "backward": (
                lambda o=out, i=(x, weight, bias), g=g: torch.autograd.grad(o, i, g, retain_graph=True),
                peer_backward,
            ),
        }
        for mode, (run, peer) in jobs.items():
            ms = triton.testing.do_bench(run, warmup=20, rep=100, return_mode="median")
            print(f"conv {(batch, length, channels)} {mode:8} {ms:.3f} ms {peer / ms:.2f}x")
            rows.append(
                {
                    "op": "causal_conv1d", "implementation": "triton", "mode": mode, "dtype": "bfloat16", "B": batch,
                    "L": length, "D": channels, "width": 4, "median_ms": f"{ms:.4f}", "causal_conv1d_ms": peer,
                    "ratio": f"{peer / ms:.3f}", "gpu": torch.cuda.get_device_name(), "torch": torch.__version__,
                    "triton": triton.__version__, "commit": args.commit,
                    "date": datetime.date.today().isoformat(),
                }
            )  # fmt: skip
        del x, out, g
    folder = Path(args.out)
    folder.mkdir(parents=True, exist_ok=True)
    gpu = torch.cuda.get_device_name().replace(" ", "_")
    with (folder / f"causal_conv1d-{gpu}-torch{torch.__version__.split('+')[0]}.csv").open("w", newline="") as f:
        writer = csv.DictWriter(f, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
