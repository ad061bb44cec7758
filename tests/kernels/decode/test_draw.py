"""Draws inside a kernel against those of `generate`: top-k, top-p and both, among equal logits."""

import os
from dataclasses import replace

import pytest
import torch

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402

from mamba_bio_audio.inference.generate import _Choice  # noqa: E402
from mamba_bio_audio.inference.uniforms import uniforms  # noqa: E402
from mamba_bio_audio.kernels.decode.draw import choose, settings_of  # noqa: E402
from mamba_bio_audio.kernels.decode.pack import sizes_of  # noqa: E402

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"


@triton.jit
def draw_kernel(logits_p, draws_p, settings_p, symbols_p, scores_p, k, CASE: tl.constexpr, ROWS: tl.constexpr):
    """So many rows a program."""
    b = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    logits = tl.load(logits_p + b[:, None] * CASE.S + tl.arange(0, CASE.S)[None, :])
    index, score = choose(logits, tl.load(draws_p + b), tl.load(settings_p), k, tl.load(settings_p + 1), CASE)
    tl.store(symbols_p + b, index)
    tl.store(scores_p + b, score)


def check(symbols, together, temperature, top_k, top_p, device="cpu", rows=16):
    """Against the rule of `generate`, for logits of which many are equal."""
    generator = torch.Generator().manual_seed(symbols)
    logits = torch.randn(rows, symbols, generator=generator)
    # 0.0 and -0.0 have places of their own in a kernel.
    logits[1::2] = (2 * logits[1::2]).round() / 2 + 0.0
    logits[3] = 0
    logits[2, : symbols // 2] = -float("inf")
    draws = torch.from_numpy(uniforms(5, range(rows), 3, 1)[:, 0].copy())
    choice = _Choice.check(None, temperature, top_k, top_p, range(symbols), None)
    expected, expected_scores = choice.next(logits, draws)
    case = sizes_of(64, 128, 16, 4, 4, symbols, 1, 16)
    case = replace(case, scaled=temperature != 1, top_k=top_k is not None, top_p=top_p is not None)
    padded = torch.nn.functional.pad(logits, (0, case.S - symbols)).to(device)
    found = torch.empty(rows, dtype=torch.int32, device=device)
    scores = torch.empty(rows, dtype=torch.float64, device=device)
    settings = settings_of(temperature, top_k, top_p, torch.device(device))
    draw_kernel[(rows // together,)](
        padded, draws.to(device), settings, found, scores, top_k or 0, CASE=case, ROWS=together, num_warps=16
    )
    assert torch.equal(found.cpu().long(), expected)
    assert (scores.cpu() - expected_scores).abs().max() < 1e-10
    assert len(expected.unique()) > 3


DRAWINGS = [(1.0, 4, None), (1.0, None, 0.7), (1.3, 4, 0.9), (0.8, 11, 0.999)]
CASES = [
    (5, 1, 1.0, 3, 0.9),
    (256, 1, 1.0, 200, 0.95),
    *((12, 16, *drawing) for drawing in DRAWINGS),
    *((200, 1, *drawing) for drawing in DRAWINGS),
]


def test_interpreted(run_interpreted):
    run_interpreted()


@pytest.mark.skipif(not INTERPRETING, reason="runs in the process that test_interpreted starts")
class TestInterpreted:
    @pytest.mark.parametrize("case", CASES, ids=str)
    def test_draws(self, case):
        check(*case)


@pytest.mark.gpu
@pytest.mark.skipif(INTERPRETING or not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("case", [*CASES, (40, 16, 1.0, 9, 0.9)], ids=str)
def test_on_a_gpu(case):
    check(*case, device="cuda", rows=1024)
