"""Times this package before and after a change in one process on one GPU, call by call in turn.

    benchmarks/device/before.sh COMMIT                          the package at COMMIT, under another name
    python benchmarks/before_after.py --out DIR [--only scan,conv,step] [--seconds 1]

A row is slower if the median ratio within pairs is below 0.98 and the upper quartile of the ratios below 1. Scans say
whether output and gradients are bit for bit those of before, else which are not.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / ".device/before"))
sys.path.insert(0, str(ROOT))

from mamba_bio_audio.run.environment import environment  # noqa: E402
from mamba_bio_audio.run.timing import Row, interleaved, write_rows  # noqa: E402

STATES, SLOWER = 16, 0.98
# name: case, (B, L, D)
SCANS = {
    "S2": ("real", (8, 8192, 2048)),
    "S3": ("real", (32, 1024, 512)),
    "S1": ("real", (1, 1 << 20, 512)),
    "M1": ("real", (8, 2048, 1536)),
    "M2": ("real", (1, 1 << 17, 512)),
    "M3": ("real", (2, 1 << 14, 256)),
    "U1": ("real", (64, 8192, 128)),
    "U2": ("real", (16, 16_000, 128)),
    "C2": ("complex", (8, 8192, 2048)),
    "C3": ("complex", (16, 1 << 14, 128)),
    "L2": ("complex lti", (8, 8192, 2048)),
    "L3": ("complex lti", (16, 1 << 14, 128)),
    "R2": ("real lti", (8, 8192, 2048)),
    "R3": ("real lti", (16, 1 << 14, 128)),
    "E1": ("real exact", (8, 2048, 1536)),
    "E2": ("complex exact", (16, 4096, 128)),
}
CONVOLUTIONS = ((8, 8192, 2048), (32, 1024, 512), (1, 1 << 17, 512), (2, 1 << 14, 256))
# layers, width, batch, length
STEPS = ((12, 128, 256, 1024), (16, 256, 128, 1024), (16, 256, 1, 1 << 17), (24, 768, 8, 2048))


def packages() -> tuple[Any, Any]:
    """The package after and before the change."""
    import mamba_before.models.build  # type: ignore[import-not-found]
    import mamba_before.ops

    import mamba_bio_audio.models.build
    import mamba_bio_audio.ops

    return mamba_bio_audio, mamba_before


class Pair(NamedTuple):
    """A call of each package, and what it computes where that is compared."""

    name: str
    mode: str
    calls: tuple[Callable[[], Any], Callable[[], Any]]
    compared: list[str]


def scan_inputs(case: str, batch: int, length: int, channels: int) -> dict[str, Tensor]:
    """Inputs of `selective_scan` as at the start of training, bf16."""
    generator = torch.Generator("cuda").manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device="cuda")

    is_complex, fixed = "complex" in case, "lti" in case
    parts = (2,) if is_complex else ()
    rates = torch.arange(1, STATES + 1, device="cuda").float().expand(channels, STATES)
    if is_complex:
        rates = torch.stack([torch.full_like(rates, 0.5), -torch.pi * (rates - 1)], dim=-1)

    def maps() -> Tensor:
        return normal(channels, STATES, *parts) if fixed else normal(batch, length, STATES, *parts).bfloat16()

    return {
        "u": normal(batch, length, channels).bfloat16(),
        "dt": normal(channels) * 0.5 if fixed else (normal(batch, length, channels) * 0.5).bfloat16(),
        "A": -rates.contiguous(),
        "B": maps(),
        "C": maps(),
        "D": normal(channels),
        "z": normal(batch, length, channels).bfloat16(),
        "dt_bias": normal(channels) * 0.5 - 4.0,
    }


def modes(name: str, runs: list[Callable[..., Tensor]], inputs: dict[str, Tensor]) -> Iterator[Pair]:
    """Forward as in inference, forward that keeps what backward needs, backward."""
    leaves = {k: v.detach().requires_grad_() for k, v in inputs.items()}
    calls = [lambda run=run: run(**inputs) for run in runs]
    yield Pair(name, "inference", (calls[0], calls[1]), [])
    calls = [lambda run=run: run(**leaves) for run in runs]
    yield Pair(name, "forward", (calls[0], calls[1]), [])
    outs = [run(**leaves) for run in runs]
    g = torch.randn_like(outs[0])

    def backward(out: Tensor) -> list[Tensor]:
        return [out, *torch.autograd.grad(out, list(leaves.values()), g, retain_graph=True)]

    calls = [lambda out=out: backward(out) for out in outs]
    yield Pair(name, "backward", (calls[0], calls[1]), ["out", *leaves])


def scans(only: set[str]) -> Iterator[Pair]:
    operations = [package.ops.selective_scan for package in packages()]
    for name, (case, shape) in SCANS.items():
        if not only or name in only:
            runs = [partial(operation, exact_zoh="exact" in case) for operation in operations]
            yield from modes(f"scan {name} {case} {shape}", runs, scan_inputs(case, *shape))


def convolutions() -> Iterator[Pair]:
    runs = [package.ops.causal_conv1d for package in packages()]
    for batch, length, channels in CONVOLUTIONS:
        x = torch.randn(batch, length, channels, device="cuda").bfloat16()
        weight, bias = torch.randn(channels, 4, device="cuda"), torch.randn(channels, device="cuda")
        yield from modes(f"conv {(batch, length, channels)}", runs, {"x": x, "weight": weight, "bias": bias})


def steps() -> Iterator[Pair]:
    for layers, width, batch, length in STEPS:
        tokens = torch.randint(7, 11, (batch, length), device="cuda")
        targets, calls = tokens.roll(-1, 1), []
        for package in packages():
            config = package.models.config.ModelConfig(d_model=width, num_layers=layers, vocab_size=12)
            model = package.models.build.build_model(config, seed=0).cuda()

            def step(model: Any = model, tokens: Tensor = tokens, targets: Tensor = targets) -> list[Tensor]:
                with torch.autocast("cuda", torch.bfloat16):
                    found = model(tokens, targets=targets, logits="none")
                (found.loss_sum / found.count).backward()
                grads = [p.grad for p in model.parameters()]
                model.zero_grad(set_to_none=True)
                return [found.loss_sum.detach(), *grads]

            calls.append(step)
        names = ["loss", *(name for name, _ in model.named_parameters())]
        yield Pair(f"step {layers}x{width} {(batch, length)}", "step", (calls[0], calls[1]), names)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of before_after.csv")
    parser.add_argument("--only", default="scan,conv,step", help="scan, conv, step, or names of scans such as S2,M1")
    parser.add_argument("--seconds", type=float, default=1, help="of each row")
    args = parser.parse_args()
    only = set(args.only.split(","))
    commit = (ROOT / ".device/before/COMMIT").read_text().strip()
    rows: list[Row] = []
    named = only & SCANS.keys()
    pairs = [scans(named)] if "scan" in only or named else []
    pairs += [make() for name, make in (("conv", convolutions), ("step", steps)) if name in only]
    for found in pairs:
        for name, mode, (after, before), compared in found:
            differ = [n for n, a, b in zip(compared, after(), before(), strict=False) if not torch.equal(a, b)]
            timing = interleaved(after, before, "cuda", seconds=args.seconds, pairs=40)
            assert timing.peer is not None
            low, ratio, high = timing.ratio()
            bits = ("differ: " + " ".join(differ[:6]) if differ else "equal") if compared else ""
            slower = ratio < SLOWER and high < 1
            rows.append(
                {
                    "row": name, "mode": mode, "after_ms": f"{statistics.median(timing.ours):.4f}",
                    "before_ms": f"{statistics.median(timing.peer):.4f}", "before_over_after": f"{ratio:.3f}",
                    "q1": f"{low:.3f}", "q3": f"{high:.3f}", "slower": slower, "bits": bits, "before": commit,
                    **environment("cuda"),
                }
            )  # fmt: skip
            write_rows(args.out / "before_after.csv", rows)
            print(*list(rows[-1].values())[:9], sep="  ", flush=True)
        torch.cuda.empty_cache()
    slow = [f"{row['row']} {row['mode']}" for row in rows if row["slower"]]
    print(f"{len(rows)} rows, {len(slow)} slower: {slow}")


if __name__ == "__main__":
    main()
