"""Times plans of the scan kernels beside the default ones and mamba_ssm, one table for each shape and direction.

    python benchmarks/device/scan_trials.py --prepare          (compiles, beside other work)
    python benchmarks/device/scan_trials.py --workers 0 --seconds 100 --check

"alone" leaves the pass over chunks out (what enters a chunk is then 0: a wrong result, the time of the main kernel). "worst" is
the largest relative difference from the first of a table. Prints as it goes, and writes $OUT/scan_trials-DECAYS.txt.
"""

from __future__ import annotations

import argparse
import concurrent.futures as futures
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mamba_bio_audio.kernels.scan import inputs, launch
from mamba_bio_audio.kernels.scan.inputs import ScanInputs, make_plan
from mamba_bio_audio.kernels.scan.launch import prepared, scan_backward, scan_forward
from mamba_bio_audio.run.timing import by_the_clock, host_times, queued

DEVICE = "cuda"  # a test may say "cpu"
SHAPES = {
    "S2": (8, 8192, 2048), "S3": (32, 1024, 512), "S1": (1, 1 << 20, 512), "M2": (1, 131072, 512),
    "T1": (256, 1024, 256), "T2": (128, 1024, 512), "U1": (64, 8192, 128), "W1": (8, 2048, 1536), "W2": (64, 1024, 1024),
    "W3": (64, 1024, 512),
    "K1": (1, 2048, 1024), "K2": (2, 16384, 256), "K3": (8, 2048, 512), "C3": (16, 16384, 128), "C2": (8, 8192, 2048),
}  # fmt: skip


DECAYS = "bench"


def make(shape, seed=0, dtype=torch.bfloat16, states=16, name=""):
    batch, length, channels = shape
    g = torch.Generator(DEVICE).manual_seed(seed)

    def r(*size):
        return torch.randn(*size, generator=g, device=DEVICE)

    rates = torch.arange(1, states + 1, device=DEVICE).float().expand(channels, states)
    parts = ()
    if name.startswith("C"):
        rates = torch.stack([torch.full_like(rates, 0.5), -torch.pi * (rates - 1)], dim=-1)
        parts = (2,)
    xz = r(batch, length, 2 * channels).to(dtype)
    found = dict(
        u=r(batch, length, channels).to(dtype), dt=(r(batch, length, channels) * 0.5).to(dtype), A=-rates.contiguous(),
        B=r(batch, length, states, *parts).to(dtype), C=r(batch, length, states, *parts).to(dtype), D=r(channels),
        z=xz[..., channels:], dt_bias=r(channels) * 0.5 - 4.0,
    )  # fmt: skip
    if DECAYS != "bench":
        low = (
            torch.rand(channels, generator=g, device=DEVICE)
            if DECAYS == "init"
            else torch.zeros(channels, device=DEVICE)
        )
        dt = torch.exp(low * 4.605 - 6.908)  # 1e-3 to 1e-1
        found["dt_bias"] = dt + torch.log(-torch.expm1(-dt))
        found["dt"] = found["dt"] * (0.6 if DECAYS == "init" else 0)
    if DECAYS == "worst":
        found["A"] = -torch.ones_like(found["A"])
    return found


def fields_of(g):
    return {k: v for k, v in vars(g).items() if v is not None}


BACKWARD = {
    "now": {},
    "s32": {"segment": 32},
    "u2 r168": {"bwd_unroll": 2, "bwd_registers": 168},
}
BLOCK_16 = {"fwd_block": 16, "fwd_warps": 1}
BLOCK_32 = {"fwd_block": 32, "fwd_warps": 1}
# Between how many warps a scheduler a channel has two lanes.
FORWARD = {"now": {}, "one lane": {"lanes_from_to": (1, 0)}, "two lanes": {"lanes_from_to": (0.9, 99)}}


def shorts(name):
    """Plans of forward in one launch."""
    block = 4 if name == "K2" else 8
    plan = {"short": block}
    return {f"short {block}": plan, f"short {block} u4": {**plan, "short_unroll": 4}}


STATE_16 = {"state_block": 16, "state_warps": 1}
STATE_32 = {"state_block": 32, "state_warps": 1}
COMPLEX_BACKWARD = {"now": {}, "u1": {"bwd_unroll": 1}, "states 16": STATE_16, "states 32": STATE_32}
COMPLEX_FORWARD = {
    "now": {},
    "32": BLOCK_32,
    "32 u2": {**BLOCK_32, "fwd_unroll": 2},
    "32 r168": {**BLOCK_32, "fwd_registers": 168},
    "32 u2 r168": {**BLOCK_32, "fwd_unroll": 2, "fwd_registers": 168},
    "16": BLOCK_16,
    "16 u2": {**BLOCK_16, "fwd_unroll": 2},
    "states 16": STATE_16,
    "32 u2 r168, states 16": {**BLOCK_32, "fwd_unroll": 2, "fwd_registers": 168, **STATE_16},
    "32 u2 r168, states u2": {**BLOCK_32, "fwd_unroll": 2, "fwd_registers": 168, "state_unroll": 2},
    "16 u2, states 16": {**BLOCK_16, "fwd_unroll": 2, **STATE_16},
}


def plan_of(x, shape=None, **changes):
    s = ScanInputs(**x)
    before = inputs._LANES_FROM, inputs._LANES_TO
    inputs._LANES_FROM, inputs._LANES_TO = changes.pop("lanes_from_to", before)
    make_plan.cache_clear()
    plan = make_plan(*(shape or s.u.shape), s.A.shape[1], s.u.device, s.case, **changes)
    inputs._LANES_FROM, inputs._LANES_TO = before
    return plan


REAL_STARTS = launch.chunk_starts


def no_starts(call, x, first, chunks, steps, *, reverse):
    batch, _, channels, states = call.sizes
    return torch.zeros(batch, chunks, call.case.parts, states, channels, device=x.device)


def alone(run):
    def without():
        launch.chunk_starts = no_starts
        try:
            return run()
        finally:
            launch.chunk_starts = REAL_STARTS

    return without


def backward_call(x, changes, g, cache):
    call = prepared(ScanInputs(**x), plan_of(x, **changes))
    segment = call.plan.segment
    if segment not in cache:
        cache[segment] = scan_forward(call, None, True)[2]
    states = cache[segment]
    return lambda: scan_backward(call, states, g, None, False, narrow=(True, True))


def forward_call(x, changes, train):
    call = prepared(ScanInputs(**x), plan_of(x, **changes))
    return lambda: scan_forward(call, None, train)


def starts_call(x, changes, reverse, g):
    plan = plan_of(x, **changes)
    call = prepared(ScanInputs(**x), plan)
    if reverse:
        return lambda: (launch.chunk_starts(call, g, None, plan.bwd_chunks, plan.bwd_chunk_steps, reverse=True),)
    return lambda: (launch.chunk_starts(call, x["u"], None, plan.chunks, plan.chunk_steps, reverse=False),)


def peer_calls(x):
    """Forward and backward of mamba_ssm, or None."""
    try:
        from mamba_bio_audio.run.peer import has_peer, peer_scan

        if not has_peer("cuda"):
            return None
    except ImportError:
        return None
    found = {k: v.transpose(1, 2).contiguous() if k in ("u", "dt", "z", "B", "C") else v for k, v in x.items()}
    if x["A"].ndim == 3:
        found |= {name: x[name].transpose(1, 2).flatten(2).contiguous() for name in "BC"}
        found["A"] = torch.view_as_complex(x["A"])
    leaf = {k: v.detach().requires_grad_() for k, v in found.items()}
    out = peer_scan(**leaf)
    g = torch.randn_like(out)
    return (
        lambda: peer_scan(**leaf),
        lambda: torch.autograd.grad(out, list(leaf.values()), g, retain_graph=True),
    )


def timed(calls, seconds):
    """Median ms of each, in turn, L2 flushed."""
    return [statistics.median(times) for times in queued(calls, 20, seconds)]


def jobs_of(name, parts):
    """(part, label, changes, alone)"""
    found = []
    is_complex = name.startswith("C")
    long = name in ("S1", "M2", "U1", "C3")
    chunks = {
        "S1": (66, 132, 264), "M2": (66, 132), "U1": (4, 8), "W1": (1, 2, 4), "C3": (16, 32, 64),
        "K1": (32,), "K2": (128,), "K3": (),
    }.get(name, (2, 4))  # fmt: skip
    few = name in ("T1", "T2", "M2")
    if few:
        chunks = ()
    backward, forward = (COMPLEX_BACKWARD, COMPLEX_FORWARD) if is_complex else (BACKWARD, FORWARD)
    if name == "T2" or is_complex:
        labels = list(backward)
    else:
        labels = [] if name[0] in "KM" else ["now"]
    if "backward" in parts:
        found += [("backward", label, backward[label], False) for label in labels]
        if name == "U1":
            found += [("backward", "states 32", STATE_32, False), ("backward", "states 16", STATE_16, False)]
        if name in ("U1", "T2"):  # states of every 64 made finer
            found.append(("backward", "s64", {"segment": 64}, False))
        for k in chunks if labels and name not in ("S2", "S3") else ():
            found.append(("backward", f"chunks {k}", {"bwd_chunks": k}, False))
            if name == "U1":
                found.append(("backward", f"chunks {k} alone", {"bwd_chunks": k}, True))
    for part in ("forward", "inference"):
        if part not in parts:
            continue
        for label, changes in forward.items():
            found.append((part, label, changes, False))
        if name in ("K1", "K2", "K3"):
            found += [(part, label, changes, False) for label, changes in shorts(name).items()]
    for part in ("starts", "reverse starts"):
        if part in parts and not is_complex and long:
            for ends in (False, True):
                found.append((part, "ends" if ends else "states", {"ends": ends, "bwd_ends": ends}, False))
    return found


def build(job, cache):
    part, _, changes, without = job
    x, g = cache["x"], cache["g"]
    if part == "backward":
        run = backward_call(x, changes, g, cache)
    elif part.endswith("starts"):
        run = starts_call(x, changes, part.startswith("reverse"), g)
    else:
        run = forward_call(x, changes, part == "forward")
    return alone(run) if without else run


def named(part, result):
    if part == "backward":
        return fields_of(result)
    return dict(zip(("out", "last"), result, strict=False))


def compile_job(arguments):
    """In a process of its own: the same kernels on a short sequence, so that they are in the cache on the disk."""
    name, index, parts = arguments
    shape = SHAPES[name]
    part, label, changes, _ = jobs_of(name, parts)[index]
    x = make(shape if "short" in changes else (2, 64, shape[2]), name=name)
    full = plan_of(x, shape, **changes)
    fixed = {"chunks": min(full.chunks, 2), "bwd_chunks": min(full.bwd_chunks, 2), "far": full.far}
    fixed |= {"lanes": full.lanes, "lanes_inference": full.lanes_inference}
    changes = {k: v for k, v in changes.items() if k != "lanes_from_to"}
    try:
        build((part, label, {**changes, **fixed}, False), {"x": x, "g": torch.randn_like(x["u"])})()
        torch.cuda.synchronize()
    except Exception as error:
        return f"{name} {label}: {type(error).__name__} {str(error)[:300]}"
    return None


def check(say, candidates):
    """The candidates against fp64, beside the present kernel, on small cases."""
    from mamba_bio_audio.kernels.scan.reference import scan_reference

    for shape, chunks in (((2, 132, 96), 1), ((1, 301, 128), 3)):
        x = make(shape)
        g = torch.randn_like(x["u"])
        leaf = {k: v.double().requires_grad_() for k, v in x.items()}
        out = scan_reference(ScanInputs(**leaf))[0]
        exact = dict(zip(x, torch.autograd.grad(out, list(leaf.values()), g.double()), strict=True))
        names = dict(u="u", dt="dt", A="A", B="B", C="C", skip="D", z="z", bias="dt_bias")
        for label, changes in candidates.items():
            run = backward_call(x, {**changes, "bwd_chunks": chunks}, g, {})
            one, two = fields_of(run()), fields_of(run())
            same = all(torch.equal(one[k], two[k]) for k in one)
            errors = {v: float((one[k].double() - exact[v]).norm() / exact[v].norm()) for k, v in names.items()}
            say(
                f"check {shape} chunks {chunks} {label}: {'equal' if same else 'TWO RUNS DIFFER'} "
                + " ".join(f"{k} {e:.1e}" for k, e in errors.items())
            )


def as_called(name, changes, train, x):
    """The call as users make it, by a plan of its own."""
    from mamba_bio_audio.kernels.scan import autograd
    from mamba_bio_audio.ops import selective_scan

    module = sys.modules["mamba_bio_audio.ops.selective_scan"]
    inputs = {k: v.detach().requires_grad_() for k, v in x.items()} if train else x
    plan, mine = plan_of(x, **changes), {}

    def run():
        module._prepared, autograd.make_plan = mine, lambda *_: plan
        with torch.set_grad_enabled(train):
            return selective_scan(**inputs)

    return run


def time_calls(say, names):
    """By the clock, one behind the other, and what the host takes for one, beside mamba_ssm."""
    for name in names:
        x = make(SHAPES[name], name=name)
        peer = peer_calls(x)
        for train in (False, True):
            runs, base = {}, None
            for label, changes in {"now": {}, **shorts(name)}.items():
                run = as_called(name, changes, train, x)
                try:
                    out = run().detach().float()
                    torch.cuda.synchronize()
                    base = out if base is None else base
                    off = float((out - base).norm() / base.norm())
                    runs[f"{label}, off {off:.0e}"] = run
                except Exception as error:
                    say(f"{name} {label}: {type(error).__name__} {str(error)[:200]}")
            if peer is not None:
                runs["peer"] = peer[0]
            clock, host = by_the_clock(list(runs.values())), host_times(list(runs.values()))
            for i, label in enumerate(runs):
                us, own = statistics.median(clock[i]), statistics.median(host[i])
                ratio = statistics.median(a / b for a, b in zip(clock[-1], clock[i], strict=True))
                mode = "forward" if train else "inference"
                say(f"{name} {mode} as called {label:24} {us:7.1f} us, {ratio:.2f}x of the peer, host {own:6.1f} us")


def compile_call(arguments):
    """As `compile_job`."""
    name, changes, train = arguments
    try:
        as_called(name, changes, train, make(SHAPES[name], name=name))()
        torch.cuda.synchronize()
    except Exception as error:
        return f"{name} call {changes}: {type(error).__name__} {str(error)[:300]}"
    return None


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--only", default="S2,S3,S1,U1,T2,M2,C3")
    parser.add_argument("--parts", default="backward,forward,inference,starts,reverse starts")
    parser.add_argument("--workers", type=int, default=24, help="processes that compile first; 0 for none")
    parser.add_argument("--prepare", action="store_true", help="only compile, beside other work")
    parser.add_argument("--once", help="run one job, as S2:backward:now, for a profiler")
    parser.add_argument("--check", action="store_true", help="first, against fp64")
    parser.add_argument("--decays", default="bench", choices=("bench", "init", "worst"))
    parser.add_argument("--each", type=float, default=1.2, help="seconds of timing a table")
    args = parser.parse_args()
    if args.once:
        name, part, label = args.once.split(":")
        x = make(SHAPES[name], name=name)
        job = next(j for j in jobs_of(name, [part]) if j[1] == label)
        build(job, {"x": x, "g": torch.randn_like(x["u"])})()
        torch.cuda.synchronize()
        return
    began = time.time()
    global DECAYS
    DECAYS = args.decays
    path = Path(os.environ.get("OUT", ".")) / f"scan_trials-{args.decays}.txt"
    log = path.open("w")

    def say(text):
        print(text, flush=True)
        log.write(text + "\n")
        log.flush()

    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    say(f"{torch.cuda.get_device_name()} torch {torch.__version__} commit {commit or 'copy'} {time.ctime()}")
    parts = args.parts.split(",")
    names = args.only.split(",")
    work = {}
    for name in names:
        for i, (part, _, changes, _) in enumerate(jobs_of(name, parts)):
            short = SHAPES[name][0] * SHAPES[name][2] < 16384 or "chunks" in changes or "bwd_chunks" in changes
            plain = {k: v for k, v in changes.items() if "chunks" not in k}
            key = (SHAPES[name][2], name[0] == "C", part, str(plain), short)
            work.setdefault(key, (name, i, parts))
    work = list(work.values())
    if args.workers:
        import multiprocessing

        context = multiprocessing.get_context("spawn")
        with futures.ProcessPoolExecutor(args.workers, mp_context=context) as pool:
            problems = [pool.submit(compile_job, job) for job in work]
            for name in names if "calls" in parts else ():
                if name[0] == "K":
                    for changes in ({}, *shorts(name).values()):
                        problems += [pool.submit(compile_call, (name, changes, train)) for train in (False, True)]
            for problem in problems:
                if problem.result():
                    say("compile " + problem.result())
        say(f"compiled {len(work)} in {time.time() - began:.0f} s")
    if args.prepare:
        return
    if args.check:
        check(say, BACKWARD)
        say(f"-- {time.time() - began:.0f} s of {args.seconds:.0f}")
    if "calls" in parts:
        time_calls(say, [name for name in names if name[0] == "K"])
    for name in names:
        for part in parts:
            if time.time() - began > args.seconds - 4:
                say("out of time")
                return
            jobs = jobs_of(name, [part])
            if not jobs:
                continue
            x = make(SHAPES[name], name=name)
            cache = {"x": x, "g": torch.randn_like(x["u"])}
            labels, calls, base = [], [], None
            for job in jobs:
                label = f"{part} {job[1]}"
                try:
                    call = build(job, cache)
                    result = call()
                    torch.cuda.synchronize()
                except Exception as error:
                    say(f"{name} {label}: {type(error).__name__} {str(error)[:200]}")
                    continue
                note = ""
                if not job[3]:
                    found = named(part, result)
                    base = base or found
                    errors = {
                        k: float((found[k].float() - base[k].float()).norm() / base[k].float().norm()) for k in base
                    }
                    worst = max(errors, key=lambda k: (errors[k] != errors[k], errors[k]))
                    note = f"worst {worst} {errors[worst]:.1e}"
                labels.append((label, note))
                calls.append(call)
                del result
            try:
                peer = peer_calls(x)
            except Exception as error:
                say(f"{name} peer: {type(error).__name__} {str(error)[:200]}")
                peer = None
            if peer is not None:
                labels.append(("peer", ""))
                calls.append(peer[1 if part == "backward" else 0])
            times = timed(calls, args.each)
            for (label, note), ms in zip(labels, times, strict=True):
                versus = f"{times[-1] / ms:.2f}x" if peer is not None else ""
                say(f"{name} {label:44} {ms:8.3f} ms  {times[0] / ms:5.2f} of now {versus:6} {note}")
            say(f"-- {time.time() - began:.0f} s of {args.seconds:.0f}")
            del calls, cache, x, base, peer
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
