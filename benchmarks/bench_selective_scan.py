"""Times the Triton selective scans on one GPU, checks them first against the fp64 oracle, writes CSV.

    python benchmarks/bench_selective_scan.py --out DIR [--sweep] [--profile] [--only S2,C2,C1]

Peer: mamba_ssm's CUDA selective scan. Where it is installed it runs in the same process, ours and the peer in turn, and
the ratio is the median of the ratios within pairs; its results must agree with ours on a small case first. Elsewhere
the ratio is to its medians of 2026-11-21 (2.3.2.post1, H100 80GB HBM3, PyTorch 2.11.0; bf16, N = 16, with z, D, delta
bias and softplus), and the CSV says "recorded".
"""

import argparse
import datetime
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mamba_bio_audio.kernels.scan.autograd import scan_triton
from mamba_bio_audio.kernels.scan.inputs import Plan, ScanInputs, make_plan
from mamba_bio_audio.kernels.scan.reference import scan_reference
from mamba_bio_audio.run.peer import has_peer, peer_scan
from mamba_bio_audio.run.timing import interleaved, write_rows

# name: kind, (B, L, D), recorded forward and backward ms of the peer
SHAPES: dict[str, tuple[str, tuple[int, int, int], float, float]] = {
    "S2": ("real", (8, 8192, 2048), 2.698, 9.718),
    "S3": ("real", (32, 1024, 512), 0.292, 1.230),
    "S1": ("real", (1, 1_048_576, 512), 11.839, 60.365),
    "M1": ("real", (8, 2048, 1536), 0.451, 1.855),
    "M2": ("real", (1, 131_072, 512), 1.487, 7.362),
    "M3": ("real", (2, 16_384, 256), 0.193, 0.948),
    # The finest tiers of audio U-Nets: few channels, so few programs.
    "U1": ("real", (64, 8192, 128), float("nan"), float("nan")),
    "U2": ("real", (16, 16_000, 128), float("nan"), float("nan")),
    "U3": ("real", (64, 2048, 256), float("nan"), float("nan")),
    "C2": ("complex", (8, 8192, 2048), 6.022, 22.560),
    "C1": ("complex", (1, 131_072, 512), 4.334, 11.391),
    "C3": ("complex", (16, 16_384, 128), 1.722, 5.897),
    "L2": ("complex-lti", (8, 8192, 2048), float("nan"), float("nan")),
    "L3": ("complex-lti", (16, 16_384, 128), float("nan"), float("nan")),
    "R2": ("real-lti", (8, 8192, 2048), float("nan"), float("nan")),
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
    {"bwd_unroll": 2},
]
OTHER_FWD_VARIANTS: list[dict[str, Any]] = [
    {"fwd_unroll": 2},
    {"group": 16},
    {"far": 0},
    {"fwd_block": 32, "fwd_warps": 1},
]
OTHER_BWD_VARIANTS: list[dict[str, Any]] = [
    {"bwd_unroll": 1},
    {"bwd_unroll": 2},
    {"bwd_unroll": 4},
    {"segment": 32},
    {"bwd_block": 8, "bwd_unroll": 4},
    {"bwd_block": 32, "bwd_unroll": 1},
]
CHUNKS = {
    "C1": [33, 66, 132],
    "C3": [4, 8, 16],
    "S1": [33, 66, 132, 264],
    "M2": [33, 66, 132],
    "M3": [16, 33, 64],
    "U1": [1, 2, 3, 4, 8],
    "U2": [1, 4, 8, 16, 32],
    "U3": [1, 2, 4],
    "S2": [2, 4],
    "S3": [2, 4],
    "M1": [2],
}


def inputs(
    kind: str, batch: int, length: int, channels: int, states: int, dtype: torch.dtype, seed: int = 0
) -> dict[str, Tensor]:
    """Inputs of `selective_scan` as at the start of training; kind is "real" or "complex", with or without "-lti"."""
    g = torch.Generator("cuda").manual_seed(seed)

    def r(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, device="cuda")

    is_complex, lti = kind.startswith("complex"), kind.endswith("-lti")
    parts = (2,) if is_complex else ()
    rates = torch.arange(1, states + 1, device="cuda").float().expand(channels, states)
    if is_complex:
        rates = torch.stack([torch.full_like(rates, 0.5), -torch.pi * (rates - 1)], dim=-1)
    return {
        "u": r(batch, length, channels).to(dtype),
        "dt": r(channels) * 0.5 if lti else (r(batch, length, channels) * 0.5).to(dtype),
        "A": -rates.contiguous(),
        "B": r(channels, states, *parts) if lti else r(batch, length, states, *parts).to(dtype),
        "C": r(channels, states, *parts) if lti else r(batch, length, states, *parts).to(dtype),
        "D": r(channels),
        "z": r(batch, length, channels).to(dtype),
        "dt_bias": r(channels) * 0.5 - 4.0,
    }


def default_plan(x: dict[str, Tensor], **changes: Any) -> Plan:
    return make_plan(*x["u"].shape, x["A"].shape[1], x["u"].device, ScanInputs(**x).case, **changes)


def scan_and_state(plan: Plan | None = None, **x: Any) -> tuple[Tensor, Tensor]:
    return scan_triton(ScanInputs(**x), plan)


def peer_inputs(x: dict[str, Tensor]) -> dict[str, Any]:
    """The same numbers as mamba_ssm takes them: (B, D, L); complex maps (B, N, 2 L) with the parts side by side."""
    rows = ("u", "dt", "z")
    found: dict[str, Any] = {
        k: v.transpose(1, 2).contiguous() if k in rows and v.ndim == 3 else v for k, v in x.items()
    }
    if x["dt"].ndim == 1:
        found["dt"] = x["dt"].to(x["u"].dtype)[None, :, None].expand_as(found["u"]).contiguous()
    is_complex = x["A"].ndim == 3
    if is_complex:
        found["A"] = torch.view_as_complex(x["A"])
    for name in "BC":
        if x[name].ndim == x["A"].ndim:
            found[name] = torch.view_as_complex(x[name].float()) if is_complex else x[name].float()
        else:
            found[name] = x[name].transpose(1, 2).flatten(2).contiguous()
    return found


def check_peer(kind: str) -> None:
    """Raises where the peer and ours differ on a small case: then one of them was called wrongly."""
    x = inputs(kind, 2, 300, 64, STATES, torch.bfloat16)
    ours, _ = scan_and_state(**x)
    peer = peer_scan(**peer_inputs(x)).transpose(1, 2)
    error = ((ours.double() - peer.double()).norm() / peer.double().norm()).item()
    print(f"peer {kind}: differs by {error:.1e}", flush=True)
    if not error < 2e-2:
        raise RuntimeError(f"{kind}: ours and mamba_ssm differ by {error:.1e}")


def check(quick: bool = False) -> list[str]:
    """Relative L2 errors of output, state and gradients against the fp64 oracle; returns the cases that fail."""
    failed = []
    cases: list[tuple[str, tuple[int, int, int], int, torch.dtype, dict[str, Any], dict[str, Any]]] = [
        ("real", (2, 300, 96), 16, torch.float32, {}, {}),
        ("real", (2, 300, 96), 16, torch.bfloat16, {}, {}),
        ("real", (1, 517, 40), 16, torch.float32, {"chunks": 4}, {}),
        ("real", (1, 517, 128), 16, torch.float32, {"chunks": 4}, {"reset": True}),
        ("real", (2, 130, 64), 16, torch.float32, {}, {"precise": True}),
        ("real", (2, 65, 50), 5, torch.float32, {}, {}),
        ("real", (1, 65, 33), 64, torch.float32, {}, {}),
        ("real", (1, 65, 16), 256, torch.float32, {}, {}),
        ("complex", (1, 517, 128), 16, torch.float32, {"chunks": 4}, {"reset": True}),
        ("complex", (2, 300, 96), 16, torch.bfloat16, {}, {}),
        ("complex", (2, 130, 64), 16, torch.float32, {}, {"precise": True}),
        ("complex", (1, 65, 16), 256, torch.float32, {}, {}),
        ("complex-lti", (2, 300, 96), 16, torch.float32, {"chunks": 4}, {}),
        ("complex-lti", (2, 300, 96), 16, torch.bfloat16, {}, {"reset": True}),
        ("real-lti", (1, 517, 40), 16, torch.bfloat16, {"chunks": 4}, {}),
    ]
    for kind, (batch, length, channels), states, dtype, plan_changes, flags in cases[8:9] if quick else cases:
        x = inputs(kind, batch, length, channels, states, dtype)
        x["h0"] = torch.randn(batch, *x["A"].shape, device="cuda")
        reset = torch.rand(batch, length, device="cuda") < 0.05 if flags.get("reset") else None
        precise = flags.get("precise", False)
        plan = default_plan(x, **plan_changes)
        g_out = torch.randn(batch, length, channels, device="cuda").to(dtype)
        g_h = torch.randn_like(x["h0"])
        found = []
        for run in ("triton", "again", "fp64", "rounded"):
            leaf: dict[str, Any] = {
                k: (v.double() if run == "fp64" else v).clone().requires_grad_() for k, v in x.items()
            }
            if run in ("triton", "again"):
                out = scan_and_state(plan, **leaf, reset=reset, precise=precise)
            else:
                out = scan_reference(ScanInputs(**leaf, reset=reset, precise=precise))
            loss = (out[0].double() * g_out.double()).sum() + (out[1].double() * g_h.double()).sum()
            found.append([*(o.detach() for o in out), *torch.autograd.grad(loss, list(leaf.values()))])
        names = ["out", "hT", *x]
        errors, oracle = (
            {n: ((a.double() - b).norm() / b.norm()).item() for n, a, b in zip(names, found[i], found[2], strict=True)}
            for i in (0, 3)
        )
        same = all(torch.equal(a, b) for a, b in zip(found[0], found[1], strict=True))
        if dtype != torch.float32:  # what rounding the result costs, also where it stays fp32
            exact = dict(zip(names, found[2], strict=True))
            oracle |= {n: max(oracle[n], ((b.to(dtype) - b).norm() / b.norm()).item()) for n, b in exact.items()}
        worst = max(errors, key=lambda n: errors[n] / (1.5 * oracle[n] + 1e-5))
        good = same and errors[worst] <= 1.5 * oracle[worst] + 1e-5
        print(
            f"check {kind} {(batch, length, channels, states)} {dtype} {plan_changes} {flags}: "
            f"{'ok' if good else 'FAILED'}; "
            f"worst {worst} {errors[worst]:.2e} (rounded oracle {oracle[worst]:.2e}); "
            f"largest {max(errors.values()):.2e}; two runs {'equal' if same else 'DIFFER'}",
            flush=True,
        )
        if not good:
            failed.append(str((kind, batch, length, channels, states, dtype, plan_changes, flags)))
            print("   ", {k: f"{v:.1e}/{oracle[k]:.1e}" for k, v in errors.items()})
    return failed


def calls(run: Callable[..., Tensor], x: dict[str, Any], mode: str) -> Callable[[], object]:
    """What is timed: the forward with everything that backward needs, or the backward alone."""
    leaf = {k: v.detach().requires_grad_() for k, v in x.items()}
    if mode == "forward":
        return lambda: run(**leaf)
    out = run(**leaf)
    g = torch.randn_like(out)
    return lambda: torch.autograd.grad(out, list(leaf.values()), g, retain_graph=True)


def scan(plan: Plan | None = None, **x: Any) -> Tensor:
    return scan_and_state(plan, **x)[0]


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
            kind, shape, _, _ = SHAPES[name]
            x = inputs(kind, *shape, STATES, torch.bfloat16)
            leaf = {k: v.detach().requires_grad_() for k, v in x.items()}
            out = scan(**leaf)
            torch.autograd.grad(out, list(leaf.values()), torch.randn_like(out))
            torch.cuda.synchronize()
        return
    peer_here = has_peer("cuda")
    print(gpu, torch.__version__, triton.__version__, commit, "peer in this process" if peer_here else "peer recorded")
    failed = check(args.quick)
    print(f"checks: {len(failed)} failed, {time.time() - start:.0f} s", flush=True)
    names = args.only.split(",") if args.only else list(SHAPES)
    if peer_here:
        for kind in dict.fromkeys(SHAPES[name][0] for name in names):
            check_peer(kind)

    rows: list[dict[str, Any]] = []
    path = Path(args.out) / f"selective_scan-{gpu.replace(' ', '_')}-torch{torch.__version__.split('+')[0]}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)

    def note(name: str, mode: str, variant: dict[str, Any], ms: float, peer: float, ratio: float) -> None:
        kind, (batch, length, channels), _, _ = SHAPES[name]
        rows.append(
            {
                "op": "selective_scan", "implementation": "triton", "kind": kind, "mode": mode, "dtype": "bfloat16",
                "shape": name, "B": batch, "L": length, "D": channels, "N": STATES, "variant": str(variant),
                "median_ms": f"{ms:.4f}", "mamba_ssm_ms": f"{peer:.4f}", "ratio": f"{ratio:.3f}",
                "peer": "same process" if peer_here and not variant else "recorded", "correct": not failed, "gpu": gpu,
                "torch": torch.__version__, "triton": triton.__version__, "python": platform.python_version(),
                "commit": commit, "date": datetime.date.today().isoformat(),
            }
        )  # fmt: skip
        write_rows(path, rows)
        print(f"{name} {kind:11} {mode:8} {ms:8.3f} ms  peer {peer:8.3f}  {ratio:5.2f}x  {variant}", flush=True)

    for name in names:
        kind, shape, *recorded = SHAPES[name]
        x = inputs(kind, *shape, STATES, torch.bfloat16)
        jobs: list[tuple[str, dict[str, Any]]] = [("forward", {}), ("backward", {})]
        if args.sweep:
            forward, backward = (
                (FWD_VARIANTS[1:], BWD_VARIANTS[1:]) if kind == "real" else (OTHER_FWD_VARIANTS, OTHER_BWD_VARIANTS)
            )
            jobs += [("forward", v) for v in forward] + [("backward", v) for v in backward]
            jobs += [("forward", {"chunks": k}) for k in CHUNKS.get(name, [])]
            jobs += [("backward", {"bwd_chunks": k}) for k in CHUNKS.get(name, [])]
        for mode, variant in jobs:
            try:
                ours = calls(partial(scan, default_plan(x, **variant)), x, mode)
                if peer_here and not variant:
                    timing = interleaved(ours, calls(peer_scan, peer_inputs(x), mode), "cuda")
                    assert timing.peer is not None
                    ours_ms, peer_ms = statistics.median(timing.ours), statistics.median(timing.peer)
                    note(name, mode, variant, ours_ms, peer_ms, timing.ratio()[1])
                else:
                    ms = triton.testing.do_bench(ours, warmup=30, rep=100, return_mode="median")
                    peer = recorded[mode == "backward"]
                    note(name, mode, variant, ms, peer, peer / ms)
            except (RuntimeError, triton.runtime.errors.OutOfResources) as error:
                print(f"{name} {mode} {variant}: {str(error)[:200]}", flush=True)
        if args.profile:
            leaf = {k: v.detach().requires_grad_() for k, v in x.items()}
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as prof:
                out = scan(**leaf)
                torch.autograd.grad(out, list(leaf.values()), torch.ones_like(out))
                torch.cuda.synchronize()
            events = [e for e in prof.key_averages() if e.device_time_total > 0]
            for e in sorted(events, key=lambda e: -e.device_time_total)[:9]:
                print(f"   {e.device_time_total / 1000:8.3f} ms x{e.count} {e.key[:90]}")
        del x
        torch.cuda.empty_cache()

    print(f"{path} {len(rows)} rows, {time.time() - start:.0f} s")
    if failed:
        sys.exit(f"wrong results: {failed}")


if __name__ == "__main__":
    main()
