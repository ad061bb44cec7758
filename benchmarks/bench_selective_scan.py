"""Times the Triton selective scan on one GPU, checks it first against the fp64 oracle, writes CSV.

    python benchmarks/bench_selective_scan.py --out DIR [--sweep] [--profile] [--only S2,S3]

Peer: mamba_ssm 2.3.2.post1, its CUDA selective scan, measured on an H100 80GB HBM3 on 2026-11-21 with PyTorch 2.11.0
(medians of triton.testing.do_bench, bf16, N = 16, with z, D, delta bias and softplus); it is not run here.
"""

import argparse
import csv
import datetime
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mamba_bio_audio.kernels.selective_scan.ref import selective_scan_ref
from mamba_bio_audio.kernels.selective_scan.triton_op import Plan, make_plan, selective_scan_triton

# name: (B, L, D), peer forward ms, peer backward ms
SHAPES: dict[str, tuple[tuple[int, int, int], float, float]] = {
    "S2": ((8, 8192, 2048), 2.698, 9.718),
    "S3": ((32, 1024, 512), 0.292, 1.230),
    "S1": ((1, 1_048_576, 512), 11.839, 60.365),
    "M1": ((8, 2048, 1536), 0.451, 1.855),
    "M2": ((1, 131_072, 512), 1.487, 7.362),
    "M3": ((2, 16_384, 256), 0.193, 0.948),
}
STATES = 16

FWD_VARIANTS: list[dict[str, Any]] = [
    {},
    {"group": 16},
    {"far": 0},
    {"fwd_unroll": 2},
    {"fwd_block": 32, "fwd_warps": 1},
]
BWD_VARIANTS: list[dict[str, Any]] = [
    {},
    {"segment": 32},
    {"bwd_tiles": 2},
    {"bwd_unroll": 2},
]
CHUNKS = {
    "S1": [33, 66, 132, 264],
    "M2": [33, 66, 132],
    "M3": [16, 33, 64],
    "S2": [2, 4],
    "S3": [2, 4],
    "M1": [2],
}


def inputs(batch: int, length: int, channels: int, states: int, dtype: torch.dtype, seed: int = 0) -> dict[str, Tensor]:
    g = torch.Generator("cuda").manual_seed(seed)

    def r(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, device="cuda")

    rates = torch.arange(1, states + 1, device="cuda").float().expand(channels, states)
    return {
        "u": r(batch, length, channels).to(dtype),
        "dt": (r(batch, length, channels) * 0.5).to(dtype),
        "A": -rates.contiguous(),
        "B": r(batch, length, states).to(dtype),
        "C": r(batch, length, states).to(dtype),
        "D": r(channels),
        "z": r(batch, length, channels).to(dtype),
        "dt_bias": r(channels) * 0.5 - 4.0,
    }


def check(quick: bool = False) -> list[str]:
    """Relative L2 errors of output, state and gradients against the fp64 oracle; returns the cases that fail."""
    failed = []
    cases = [
        ((2, 300, 96), 16, torch.float32, {}, {}),
        ((2, 300, 96), 16, torch.bfloat16, {}, {}),
        ((1, 517, 40), 16, torch.float32, {"chunks": 4}, {}),
        ((1, 517, 128), 16, torch.float32, {"chunks": 4}, {"reset": True}),
        ((2, 130, 64), 16, torch.float32, {}, {"precise": True}),
        ((2, 65, 50), 5, torch.float32, {}, {}),
        ((1, 65, 33), 64, torch.float32, {}, {}),
        ((1, 65, 16), 256, torch.float32, {}, {}),
    ]
    for (batch, length, channels), states, dtype, plan_changes, flags in cases[2:3] if quick else cases:
        x = inputs(batch, length, channels, states, dtype)
        x["h0"] = torch.randn(batch, channels, states, device="cuda")
        reset = torch.rand(batch, length, device="cuda") < 0.05 if flags.get("reset") else None
        precise = flags.get("precise", False)
        plan = make_plan(batch, length, channels, states, x["u"].device, **plan_changes)
        g_out = torch.randn(batch, length, channels, device="cuda").to(dtype)
        g_h = torch.randn(batch, channels, states, device="cuda")
        found = []
        for kind in ("triton", "again", "fp64", "rounded"):
            leaf: dict[str, Any] = {
                k: (v.double() if kind == "fp64" else v).clone().requires_grad_() for k, v in x.items()
            }
            if kind in ("triton", "again"):
                out = selective_scan_triton(**leaf, reset=reset, precise=precise, return_state=True, plan=plan)
            else:
                out = selective_scan_ref(**leaf, reset=reset, precise=precise)
            loss = (out[0].double() * g_out.double()).sum() + (out[1].double() * g_h.double()).sum()
            found.append([*(o.detach() for o in out), *torch.autograd.grad(loss, list(leaf.values()))])
        names = ["out", "hT", *x]
        errors, oracle = (
            {n: ((a.double() - b).norm() / b.norm()).item() for n, a, b in zip(names, found[i], found[2], strict=True)}
            for i in (0, 3)
        )
        same = all(torch.equal(a, b) for a, b in zip(found[0], found[1], strict=True))
        worst = max(errors, key=lambda n: errors[n] / (1.5 * oracle[n] + 1e-5))
        good = same and errors[worst] <= 1.5 * oracle[worst] + 1e-5
        print(
            f"check {(batch, length, channels, states)} {dtype} {plan_changes} {flags}: {'ok' if good else 'FAILED'}; "
            f"worst {worst} {errors[worst]:.2e} (rounded oracle {oracle[worst]:.2e}); "
            f"largest {max(errors.values()):.2e}; two runs {'equal' if same else 'DIFFER'}",
            flush=True,
        )
        if not good:
            failed.append(str((batch, length, channels, states, dtype, plan_changes, flags)))
            print("   ", {k: f"{v:.1e}/{oracle[k]:.1e}" for k, v in errors.items()})
    return failed


def scan(x: dict[str, Any], plan: Plan | None = None) -> Tensor:
    out = selective_scan_triton(**x, plan=plan)
    assert isinstance(out, Tensor)
    return out


def timings(x: dict[str, Tensor], plan: Plan, *, forward: bool, backward: bool) -> tuple[float, float]:
    leaf = {k: v.detach().requires_grad_() for k, v in x.items()}

    def run() -> Tensor:
        return scan(leaf, plan)

    fwd = bwd = float("nan")
    if forward:
        fwd = triton.testing.do_bench(run, warmup=30, rep=100, return_mode="median")
    if backward:
        out = run()
        g = torch.randn_like(out)
        leaves = list(leaf.values())
        bwd = triton.testing.do_bench(
            lambda: torch.autograd.grad(out, leaves, g, retain_graph=True),
            warmup=30,
            rep=150,
            return_mode="median",
        )
    return fwd, bwd


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default=os.environ.get("OUT", "benchmarks/results"))
    parser.add_argument("--sweep", action="store_true", help="time variants of the plan, not only the default")
    parser.add_argument("--profile", action="store_true", help="time per kernel of the default plan")
    parser.add_argument("--quick", action="store_true", help="one check instead of all")
    parser.add_argument("--once", action="store_true", help="run forward and backward once, for a profiler")
    parser.add_argument("--only", default="", help="comma-separated shape names")
    parser.add_argument("--commit", default="")
    args = parser.parse_args()

    gpu = torch.cuda.get_device_name()
    commit = args.commit
    if not commit:
        got = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
        commit = got.stdout.strip() or "unknown"
    start = time.time()
    if args.once:
        for name in args.only.split(","):
            x = inputs(*SHAPES[name][0], STATES, torch.bfloat16)
            leaf = {k: v.detach().requires_grad_() for k, v in x.items()}
            out = scan(leaf)
            torch.autograd.grad(out, list(leaf.values()), torch.randn_like(out))
            torch.cuda.synchronize()
        return
    print(gpu, torch.__version__, triton.__version__, commit)
    failed = check(args.quick)
    print(f"checks: {len(failed)} failed, {time.time() - start:.0f} s", flush=True)

    rows = []

    def note(name: str, mode: str, variant: dict[str, Any], ms: float) -> None:
        (batch, length, channels), peer_f, peer_b = SHAPES[name]
        peer = peer_f if mode == "forward" else peer_b
        rows.append(
            {
                "op": "selective_scan", "implementation": "triton", "mode": mode, "dtype": "bfloat16", "shape": name,
                "B": batch, "L": length, "D": channels, "N": STATES, "variant": str(variant), "median_ms": f"{ms:.4f}",
                "mamba_ssm_ms": peer, "ratio": f"{peer / ms:.3f}", "correct": not failed, "gpu": gpu,
                "torch": torch.__version__, "triton": triton.__version__, "python": platform.python_version(),
                "commit": commit, "date": datetime.date.today().isoformat(),
            }
        )  # fmt: skip
        print(f"{name} {mode:8} {ms:8.3f} ms  {peer / ms:5.2f}x  {variant}", flush=True)

    names = args.only.split(",") if args.only else list(SHAPES)
    for name in names:
        (batch, length, channels), _, _ = SHAPES[name]
        x = inputs(batch, length, channels, STATES, torch.bfloat16)
        jobs: list[tuple[str, dict[str, Any]]] = [("forward", {}), ("backward", {})]
        if args.sweep:
            jobs += [("forward", v) for v in FWD_VARIANTS[1:]] + [("backward", v) for v in BWD_VARIANTS[1:]]
            jobs += [("forward", {"chunks": k}) for k in CHUNKS.get(name, [])]
            jobs += [("backward", {"bwd_chunks": k}) for k in CHUNKS.get(name, [])]
        for mode, variant in jobs:
            try:
                plan = make_plan(batch, length, channels, STATES, x["u"].device, **variant)
                fwd, bwd = timings(x, plan, forward=mode == "forward", backward=mode == "backward")
                note(name, mode, variant, fwd if mode == "forward" else bwd)
            except (RuntimeError, triton.runtime.errors.OutOfResources) as error:
                print(f"{name} {mode} {variant}: {str(error)[:200]}", flush=True)
        if args.profile:
            leaf = {k: v.detach().requires_grad_() for k, v in x.items()}
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as prof:
                out = scan(leaf)
                torch.autograd.grad(out, list(leaf.values()), torch.ones_like(out))
                torch.cuda.synchronize()
            events = [e for e in prof.key_averages() if e.device_time_total > 0]
            for e in sorted(events, key=lambda e: -e.device_time_total)[:9]:
                print(f"   {e.device_time_total / 1000:8.3f} ms x{e.count} {e.key[:90]}")
        del x
        torch.cuda.empty_cache()

    folder = Path(args.out)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"selective_scan-{gpu.replace(' ', '_')}-torch{torch.__version__.split('+')[0]}.csv"
    with path.open("w", newline="") as f:
        writer = csv.DictWriter(f, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    print(f"{path} {len(rows)} rows, {time.time() - start:.0f} s")
    if failed:
        sys.exit(f"wrong results: {failed}")


if __name__ == "__main__":
    main()
