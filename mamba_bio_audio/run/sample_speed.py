"""What `mba bench sample` measures: generation as `generate_blocks` runs it, by the path that it takes for each row.

A row of the table is a model, a batch and a precision of the matrices. Three things are timed apart:

    start        the model is made and moved to the device
    recording    what the first batch takes longer than the next: kernels compile, a graph is recorded, weights are laid out
    stepping     batches behind it, to their symbols on the host; draws, copies and all

Beside them stand the limit, the time that weights and state need at the rate of a copy, and mamba_ssm where it is installed.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.inference.generate import generate_blocks, sampling_path
from mamba_bio_audio.models.build import build_model
from mamba_bio_audio.models.config import ModelConfig
from mamba_bio_audio.models.unet import UNetModel
from mamba_bio_audio.pipelines.domains import domain_of
from mamba_bio_audio.run.config import load_config
from mamba_bio_audio.run.peer import has_peer, peer_model
from mamba_bio_audio.run.timing import OUT_OF_MEMORY, PAIRS, Row, Timing, copy_rate, timing_row

# Steps of the first two batches, from which the number of the others follows, which is a block of `generate_blocks` at most.
_PROBE = 64
_BLOCK = 1024
_LEAST_BATCHES = 3
_PRECISION = {"fp32": "float32", "bf16": "bfloat16"}


class SampleCase(NamedTuple):
    """What a row measures.

    Attributes:
        model: layers x width of a language model of DNA, such as 12x128, or a recipe of audio.
        batch: rows that are sampled together.
        precision: of the matrices, "fp32" or "bf16".
    """

    model: str
    batch: int
    precision: str

    @classmethod
    def of(cls, text: str) -> SampleCase:
        """A case written as 12x128:64 or 12x128:64,fp32; on a GPU without precision bf16, on a CPU fp32."""
        name, _, rest = text.rpartition(":")
        batch, _, precision = rest.partition(",")
        precision = precision or ("bf16" if torch.cuda.is_available() else "fp32")
        if not name or not batch.isdecimal() or not int(batch) or precision not in _PRECISION:
            raise InputError(
                f"--case {text}: not MODEL:ROWS or MODEL:ROWS,PRECISION with a whole number above 0 and fp32 or bf16, as "
                "12x128:64 or audio/sc09@small:1,fp32"
            )
        return cls(name, int(batch), precision)


def _cases(models: Sequence[str], batches: Sequence[int], precisions: Sequence[str]) -> list[SampleCase]:
    return [SampleCase(*case) for case in itertools.product(models, batches, precisions)]


SAMPLE_CASES = {
    "cuda": [
        *_cases(["12x128", "16x256", "24x768"], [1, 64, 512, 2048], ["bf16", "fp32"]),
        *_cases(["audio/sc09@small", "audio/piano"], [1, 1024], ["bf16", "fp32"]),
    ],
    "cpu": _cases(["4x64", "12x128", "audio/tiny"], [1, 16], ["fp32"]),
}


def sample(device: str, *, seconds: float = 3.0, cases: Sequence[SampleCase] | None = None) -> Iterator[Row]:
    """A row for each case; one that needs too much memory has no times."""
    rate = copy_rate(device)
    for case in cases or SAMPLE_CASES[device]:
        try:
            yield sample_row(case, device, seconds=seconds, rate=rate)
        except torch.cuda.OutOfMemoryError:
            more = {"path": OUT_OF_MEMORY, "us_per_step": OUT_OF_MEMORY}
            yield timing_row(
                device, "sample", "", _name(case), _PRECISION[case.precision], Timing([math.nan], None), **more
            )
        if device == "cuda":
            torch.cuda.empty_cache()


def sample_row(case: SampleCase, device: str, *, seconds: float, rate: float, path: Any = None) -> Row:
    """Measure one case.

    Args:
        case: what to measure.
        device: "cpu" or "cuda".
        seconds: time for the batches behind the recording, at least three of 64 steps.
        rate: bytes per second of a copy.
        path: how steps run; None takes the path that users get.
    """
    began = time.perf_counter()
    model, allowed = make_model(case.model)
    model = model.to(device).eval()
    start = _seconds_since(began, device)
    drawn: dict[str, Any] = {"precision": case.precision, "allowed": allowed}
    named = path or sampling_path(model, rows=case.batch, **drawn)
    prompt = torch.full((1,), allowed[0])

    def batches(steps: int) -> Iterator[float]:
        """Milliseconds of one batch after the other."""
        rows = case.batch * (PAIRS + 1)
        blocks = generate_blocks(
            model, length=steps, num_samples=rows, batch_size=case.batch, prompt=prompt, path=path, **drawn
        )
        while True:
            began = time.perf_counter()
            next(blocks)
            yield 1e3 * _seconds_since(began, device)

    first, second = itertools.islice(batches(_PROBE), 2)
    # A third of the time or more for each of the batches that are the least.
    steps = min(max(int(1e3 * seconds / (_LEAST_BATCHES + 1) / second) * _PROBE, _PROBE), _BLOCK)
    peer = peer_steps(case, steps) if has_peer(device) and "/" not in case.model else None
    timing = _timed(batches(steps), peer, seconds, device)
    step = statistics.median(timing.ours) / steps
    more: Row = {
        "path": named,
        "us_per_step": _digits(1e3 * step),
        "limit_us": _digits(1e6 * bytes_per_step(model, case.batch, case.precision) / rate),
        "tokens_per_s": _digits(1e3 * case.batch / step),
        "recording_s": f"{max(first - second, 0) / 1e3:.3g}",
        "start_s": f"{start:.3g}",
        "peer_us_per_step": "" if timing.peer is None else _digits(1e3 * statistics.median(timing.peer) / steps),
        "copy_tb_per_s": f"{rate / 1e12:.3g}",
    }
    return timing_row(device, "sample", f"{steps} steps", _name(case), _PRECISION[case.precision], timing, **more)


def _timed(batches: Iterator[float], peer: Callable[[], object] | None, seconds: float, device: str) -> Timing:
    """Ours and the peer's in turn; the first of each records."""
    ours: list[float] = []
    theirs: list[float] = []
    next(batches)
    if peer is not None:
        peer()
    began = time.perf_counter()
    while len(ours) < PAIRS and (len(ours) < _LEAST_BATCHES or time.perf_counter() - began < seconds):
        ours.append(next(batches))
        if peer is not None:
            before = time.perf_counter()
            peer()
            theirs.append(1e3 * _seconds_since(before, device))
    return Timing(ours, None if peer is None else theirs)


def _seconds_since(began: float, device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def _digits(value: float) -> str:
    """Four digits, or all of a number's whole part."""
    return f"{value:.4g}" if value < 1e4 else f"{value:.0f}"


def _name(case: SampleCase) -> str:
    return f"{case.model}, batch {case.batch}"


def make_model(name: str) -> tuple[nn.Module, Sequence[int]]:
    """The model of a case, with random weights, and the symbols that it is about.

    Args:
        name: layers x width of a language model of DNA, such as 12x128, or a recipe of audio; behind a + the mixer of all
            layers.

    Raises:
        InputError: it is neither, or there is no such mixer.
    """
    name, _, mixer = name.partition("+")
    if "/" in name:
        loaded = load_config(name, ["data.path=.", *([f"model.mixer={mixer}"] if mixer else [])])
        codec = domain_of(loaded.data.kind).codec(loaded.data)
        if codec.vocab_size != 256:
            raise InputError(
                f"{name}: its symbols are not 256 levels; a language model of DNA is written LAYERSxWIDTH, as 12x128"
            )
        return build_model(loaded.model.model_copy(update={"vocab_size": 256}), seed=0), range(256)
    sizes = name.split("x")
    if len(sizes) != 2 or not all(size.isdecimal() and int(size) for size in sizes):
        raise InputError(f"{name}: neither LAYERSxWIDTH, as 12x128, nor a recipe, as audio/sc09@small")
    layers, width = map(int, sizes)
    try:
        config = ModelConfig(d_model=width, num_layers=layers, vocab_size=12, **({"mixer": mixer} if mixer else {}))
    except ValidationError as error:
        what = f"{name}+{mixer}" if mixer else name
        raise InputError(f"{what}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None
    return build_model(config, seed=0), range(7, 11)


def peer_steps(case: SampleCase, steps: int) -> Callable[[], object]:
    """mamba_ssm's generation of as many steps by a CUDA graph, which it records in the first call and keeps."""
    layers, width = map(int, case.model.split("x"))
    dtype = torch.bfloat16 if case.precision == "bf16" else torch.float32
    model: Any = peer_model(layers, width).to(dtype).eval()
    prompt = torch.zeros(case.batch, 1, dtype=torch.long, device="cuda")
    return lambda: model.generate(prompt, max_length=1 + steps, top_k=0, cg=True)


def bytes_per_step(model: nn.Module, rows: int, precision: str) -> float:
    """Bytes that a step must move: all weights read once, the state of every row read and written.

    Tiers of a U-Net count by the share of steps in which they run. In bf16 the weights of linear layers have two bytes.
    """
    matrices = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)}
    total = 0.0
    for name, weight in model.named_parameters():
        size = 2 if precision == "bf16" and id(weight) in matrices else weight.element_size()
        total += size * weight.numel() * _share(model, name)
    state = model.init_state(rows, "meta")  # type: ignore[operator]
    parts = [(state, 1.0)]
    if isinstance(model, UNetModel):
        tiers = [(tier, _share(model, f"down.{number}")) for number, tier in enumerate(state.tiers)]
        parts = [*tiers, (state.centre, _share(model, "centre"))]
    return total + 2 * sum(share * _bytes(part) for part, share in parts)


def _bytes(state: Any) -> int:
    return sum(leaf.numel() * leaf.element_size() for leaf in tree_leaves(state) if isinstance(leaf, Tensor))


def _share(model: nn.Module, name: str) -> float:
    """In which share of the steps a part of the model runs, by its name."""
    if not isinstance(model, UNetModel):
        return 1.0
    pools = model.model_config.pools
    part, _, rest = name.partition(".")
    if part == "centre":
        tier = len(pools)
    elif part in ("down", "up", "down_pools", "up_pools"):
        # A pool runs when a frame of the coarser side is complete.
        tier = int(rest.split(".")[0]) + part.endswith("_pools")
    else:
        tier = 0
    return 1 / math.prod(pools[:tier])
